"""Starts DeepSpeed's engines. DeepSpeed is imported only here, when the first engine is created."""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn


def make_engine(
    module: nn.Module, optimizer: torch.optim.Optimizer | None, stage: int, *, offload: bool = False
) -> Any:
    """An engine around the module, in place; without an optimizer (stage 3) it only shards and gathers."""
    deepspeed = _import()
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 0  # small parameters are sharded as well
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    config = {
        "train_micro_batch_size_per_gpu": 1,  # numbers that DeepSpeed requires but nothing uses
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**12,
    }
    engine, *_ = deepspeed.initialize(
        model=module, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine


def _import() -> Any:
    """DeepSpeed, kept from compiling anything."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Set by torchrun and Ray Train; DeepSpeed expects it from every launcher, to choose the device.
    here = torch.cuda.current_device() if torch.cuda.is_available() else 0
    os.environ.setdefault("LOCAL_RANK", str(here))
    # A killed build leaves a lock in the shared folder, on which every later start would wait forever.
    # This folder is created only if DeepSpeed does compile something.
    own = Path(tempfile.gettempdir()) / f"sfumato-extensions-{secrets.token_hex(8)}"
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(own))
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # 30 s of C++ for CPUs of one machine
    if not deepspeed.comm.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        deepspeed.init_distributed(dist_backend=backend)  # joins the existing process group
    return deepspeed
