"""DeepSpeed's ZeRO, stage 1: see `parallel/zero.py`."""

from __future__ import annotations

from sfumato.parallel.capabilities import Part
from sfumato.parallel.zero import Zero


class Zero1(Zero):
    """Optimizer state sharded."""

    name = "zero1"
    about = "parameters, gradients and averages; 1/N of optimizer state"
    stage = 1
    cut = frozenset({Part.OPTIMIZER})
    masters = True
    features = Zero.features


COMPONENT = Zero1
