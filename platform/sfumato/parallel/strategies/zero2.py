"""DeepSpeed's ZeRO, stage 2: see `parallel/zero.py`."""

from __future__ import annotations

from sfumato.parallel.capabilities import Part
from sfumato.parallel.zero import Zero


class Zero2(Zero):
    """Optimizer state and gradients sharded."""

    name = "zero2"
    about = "parameters and averages; 1/N of gradients and optimizer state"
    stage = 2
    cut = frozenset({Part.OPTIMIZER, Part.GRADIENTS})
    masters = True
    features = Zero.features
    even_passes = True  # gradients are reduced in every backward pass, not only in an update's last one


COMPONENT = Zero2
