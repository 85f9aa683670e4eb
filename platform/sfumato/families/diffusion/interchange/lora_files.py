"""LoRA in the ecosystem's forms: diffusers' `pytorch_lora_weights.safetensors`, and kohya's keys.

diffusers: `unet.PATH.lora_A.weight`, with ranks and alphas as JSON in the header (`lora_adapter_metadata`).
kohya: `lora_unet_PATH_WITH_UNDERSCORES.lora_down.weight`, `.lora_up.weight` and `.alpha`, with the header of
Stability's ModelSpec 1.0.0 (`modelspec.*`); ComfyUI and others read it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import CheckpointError, ConfigError

DIFFUSERS = "pytorch_lora_weights.safetensors"
KOHYA = "kohya"
METADATA = "lora_adapter_metadata"
_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
_PREFIXES = {"unet": "lora_unet", "text_encoder": "lora_te", "text_encoder_2": "lora_te2"}
_ARCHITECTURES = {
    "sd1": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-768-v/lora",
    "xl": "stable-diffusion-xl-v1-base/lora",
}
"""ModelSpec's names of the bases that it has names for."""


@dataclass(frozen=True, slots=True)
class Addition:
    """What one module gets: `lora_A` [r, in], `lora_B` [out, r], of DoRA `lora_magnitude_vector` [out]."""

    rank: int
    alpha: float
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LoraFiles:
    """All additions, by the dotted names of their modules; `base` is the kind of model that they adapt."""

    modules: Mapping[str, Addition]
    base: str
    dora: bool

    def write(self, folder: Path, name: str) -> None:
        """Both forms into a new folder; DoRA and transformers only in diffusers' form."""
        folder.mkdir(parents=True)
        self._write_diffusers(folder / DIFFUSERS)
        parts = {_split(module)[0] for module in self.modules}
        if not self.dora and parts <= _PREFIXES.keys():
            (folder / KOHYA).mkdir()
            self._write_kohya(folder / KOHYA / f"{name}.safetensors", name)

    def _write_diffusers(self, file: Path) -> None:
        state: dict[str, Tensor] = {}
        parts: dict[str, dict[str, Addition]] = {}
        for name, addition in self.modules.items():
            part, inner = _split(name)
            parts.setdefault(part, {})[inner] = addition
            for key, value in addition.tensors.items():
                state[f"{part}.{inner}.{key}.weight"] = value.detach().cpu().contiguous().clone()
        header = {
            f"{part}.{key}": value
            for part, modules in parts.items()
            for key, value in _peft_config(modules, dora=self.dora).items()
        }
        save_file(state, file, {"format": "pt", METADATA: json.dumps(header, indent=2, sort_keys=True)})

    def _write_kohya(self, file: Path, title: str) -> None:
        state = {}
        for name, addition in self.modules.items():
            part, inner = _split(name)
            key = f"{_PREFIXES[part]}_{inner.replace('.', '_')}"
            for own, theirs in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
                state[f"{key}.{theirs}.weight"] = addition.tensors[own].detach().cpu().contiguous().clone()
            state[f"{key}.alpha"] = torch.tensor(float(addition.alpha))
        ranks, alphas = (Counter(getattr(a, n) for a in self.modules.values()) for n in ("rank", "alpha"))
        header = {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.title": title,
            "modelspec.implementation": "diffusers",
            "modelspec.architecture": _ARCHITECTURES.get(self.base, f"{self.base}/lora"),
            "ss_network_module": "networks.lora",
            "ss_network_dim": str(ranks.most_common(1)[0][0]),
            "ss_network_alpha": str(alphas.most_common(1)[0][0]),
        }
        save_file(state, file, header)


def read(file: Path) -> dict[str, Addition]:
    """The additions in a file of either form, by `plain` names. Raises CheckpointError for any other file."""
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{file} is not a safetensors file; a pickle is never read, so convert it first"
        )
    try:
        with safe_open(file, framework="pt") as content:
            header = content.metadata() or {}
            state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors ({error})") from None
    state = {_of_peft(key): value for key, value in state.items()}
    if any(".lora_A." in key for key in state):
        return _of_diffusers(state, json.loads(header.get(METADATA, "{}")))
    if any(key.endswith(".lora_down.weight") for key in state):
        return _of_kohya(state)
    raise CheckpointError(f"{file} holds no LoRA: it has neither the keys of diffusers nor those of kohya")


def plain(name: str) -> str:
    """A module's name as files give it, with underscores alone, since kohya's keys have no dots."""
    part, inner = _split(name)
    return f"{part}.{inner.replace('.', '_')}"


def _of_peft(key: str) -> str:
    """peft's name of a tensor for which diffusers' scripts have another one."""
    for theirs, ours in ((".lora.", "."), (".lora_linear_layer.", ".")):
        for side, name in (("down", "lora_A"), ("up", "lora_B")):
            key = key.replace(f"{theirs}{side}.weight", f"{ours}{name}.weight")
    return key


def _of_diffusers(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Addition]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        name, _, kind = key.removesuffix(".weight").rpartition(".")
        found.setdefault(name, {})[kind] = value
    additions = {}
    for name, tensors in found.items():
        part, _, inner = name.partition(".")
        rank = len(tensors["lora_A"])
        alpha = config.get(f"{part}.alpha_pattern", {}).get(inner, config.get(f"{part}.lora_alpha", rank))
        additions[f"{part}.{inner.replace('.', '_')}"] = Addition(rank, float(alpha), tensors)
    return additions


def _of_kohya(state: Mapping[str, Tensor]) -> dict[str, Addition]:
    prefixes = {prefix: part for part, prefix in _PREFIXES.items()} | {"lora_te1": "text_encoder"}
    additions = {}
    for key in state:
        if not key.endswith(".lora_down.weight"):
            continue
        name = key.removesuffix(".lora_down.weight")
        prefix = next((p for p in sorted(prefixes, key=len, reverse=True) if name.startswith(f"{p}_")), None)
        if prefix is None:
            raise CheckpointError(
                f"{name} adapts no U-Net and no text encoder; kohya's keys begin with lora_unet_"
            )
        down, up = state[key], state[f"{name}.lora_up.weight"]
        alpha = state.get(f"{name}.alpha", torch.tensor(float(len(down))))
        tensors = {"lora_A": down, "lora_B": up}
        inner = name.removeprefix(f"{prefix}_")
        additions[f"{prefixes[prefix]}.{inner}"] = Addition(len(down), float(alpha), tensors)
    return additions


def _split(name: str) -> tuple[str, str]:
    """The part of a pipeline that a module of ours belongs to, and its name in there."""
    words = name.split(".")
    for place, word in enumerate(words):
        if word in _PARTS:
            inner = words[place + 1 :]
            return word, ".".join(inner[1:] if word.startswith("text") and inner[:1] == ["model"] else inner)
    raise ConfigError(f"{name} is in no part that pipelines of diffusers have; use --format safetensors")


def _peft_config(modules: Mapping[str, Addition], *, dora: bool) -> dict[str, Any]:
    """peft's description of the additions to one part."""
    rank = Counter(addition.rank for addition in modules.values()).most_common(1)[0][0]
    alpha = Counter(addition.alpha for addition in modules.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: a.rank for name, a in modules.items() if a.rank != rank},
        "alpha_pattern": {name: a.alpha for name, a in modules.items() if a.alpha != alpha},
        "target_modules": sorted(modules),
        "use_dora": dora,
        "lora_bias": False,
        "peft_type": "LORA",
    }
