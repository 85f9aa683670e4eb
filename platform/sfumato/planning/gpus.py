"""What data sheets say of GPUs: operations a second, memory, links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from sfumato.errors import ConfigError

Precision = Literal["bf16", "float32"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU.

    `bf16` and `float32` are dense operations a second, float32 without TF32. `memory` is in bytes, as
    nvidia-smi reports it. `peer` and `host` are bytes a second in one direction: to the other GPUs of its
    node, and to the host.
    """

    name: str
    bf16: float
    float32: float
    memory: float
    peer: float
    host: float

    def peak(self, precision: Precision) -> float:
        """Operations a second in this precision."""
        return self.bf16 if precision == "bf16" else self.float32


_MIB = 2.0**20
GPUS: Mapping[str, Gpu] = MappingProxyType(
    {
        gpu.name.lower(): gpu
        for gpu in (
            Gpu("A100", 312e12, 19.5e12, 81_920 * _MIB, 300e9, 32e9),
            Gpu("H100", 989e12, 67e12, 81_559 * _MIB, 450e9, 64e9),
            Gpu("H200", 989e12, 67e12, 143_771 * _MIB, 450e9, 64e9),
            Gpu("L40S", 362e12, 91.6e12, 46_068 * _MIB, 32e9, 32e9),
            Gpu("A10", 125e12, 31.2e12, 23_028 * _MIB, 32e9, 32e9),
            Gpu("L4", 121e12, 30.3e12, 23_034 * _MIB, 32e9, 32e9),
        )
    }
)
"""By lower-case name. NVIDIA's data sheets; of A100 and H100 the SXM variants with 80 GB."""


def find(name: str) -> Gpu:
    """The GPU of this name, in any case. Raises ConfigError for one without figures, naming those with."""
    gpu = GPUS.get(name.lower())
    if gpu is None:
        raise ConfigError(f"--gpu {name}: no figures of it are known; known are {', '.join(GPUS)}")
    return gpu


def of_device(name: str) -> Gpu | None:
    """The GPU that a driver calls `name` (`NVIDIA H100 80GB HBM3`); None for one without figures."""
    words = name.replace("-", " ").upper().split()
    return next((gpu for gpu in GPUS.values() if gpu.name in words), None)
