"""LoRA (Hu et al. 2021, sec. 4.1) and DoRA (Liu et al. 2024, eq. 5), by peft.

A module's output W x becomes W x + alpha / r B A x, of which A [r, in] and B [out, r] train. B starts at
zero, so that the first step sees the base. DoRA also trains the length of each row of the sum.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.family import Nets
from sfumato.core.pretrained import Pretrained
from sfumato.core.stored import matches
from sfumato.errors import CapabilityError, CheckpointError, with_extra
from sfumato.families.diffusion.adapters import AdapterConfig, anywhere, unmatched
from sfumato.families.diffusion.interchange import lora_files

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
NAME = "default"
"""Of the adapter in peft's modules."""
_FITTING = (nn.Linear, nn.Conv2d)


class LoraConfig(AdapterConfig):
    """Low-rank additions to linear and convolutional layers."""

    inside: ClassVar[str] = "base_layer"
    kind: Literal["lora"] = Field("lora", description="Selects low-rank additions.")
    rank: int = Field(8, ge=1, description="Rank r of an addition.")
    alpha: float | None = Field(
        None, gt=0, description="Additions are multiplied by alpha / rank; null: rank."
    )
    modules: tuple[str, ...] = Field(
        ATTENTION,
        min_length=1,
        description='Patterns over the names of modules that get one, such as ["to_q", "ff.net.*"]; a text '
        'encoder that trains with the network has "q_proj" and the like.',
    )
    text_encoder: bool = Field(
        False,
        description="Look for modules in frozen text encoders too; name theirs, such as q_proj and v_proj.",
    )
    ranks: dict[str, int] = Field({}, description="Other ranks, by pattern: the last that matches counts.")
    alphas: dict[str, float] = Field(
        {}, description="Other alphas, by pattern: the last that matches counts."
    )
    dora: bool = Field(False, description="Train the lengths of the weights' rows too (DoRA).")
    start: Pretrained | None = Field(
        None,
        description="Start from this file instead of from zero: pytorch_lora_weights.safetensors of "
        "diffusers, or one with kohya's keys. Ranks and alphas have to be those of the file.",
    )

    @property
    def reaches_encoders(self) -> bool:
        """As set."""
        return self.text_encoder

    def trained(self) -> tuple[str, ...]:
        """A and B, and the lengths."""
        both = ("*.lora_A.*", "*.lora_B.*")
        return (*both, "*.lora_magnitude_vector.*") if self.dora else both

    def added(self, network: nn.Module) -> nn.Module:
        """With peft's modules in the place of the chosen ones, float32 whatever the base is."""
        if importlib.util.find_spec("peft") is None:
            raise CapabilityError(f"model.adapter: lora needs peft, not installed: {with_extra('adapt')}")
        from peft import LoraConfig as Peft
        from peft import inject_adapter_in_model

        chosen = self._chosen(network)
        ranks = {re.escape(name): self._rank(name) for name in chosen}
        alphas = {re.escape(name): self._alpha(name) for name in chosen}
        config = Peft(
            r=self.rank,
            lora_alpha=self.alpha or self.rank,
            target_modules=list(chosen),
            rank_pattern=ranks,
            alpha_pattern=alphas,
            use_dora=self.dora,
        )
        inject_adapter_in_model(config, network, NAME)
        for name, parameter in network.named_parameters():
            if matches(name, self.trained()):
                parameter.data = parameter.data.float()
        return network

    @property
    def begins(self) -> bool:
        """Whether `begin` has something to do."""
        return self.dora or self.start is not None

    def begin(self, network: nn.Module) -> None:
        """What follows from the base's weights or from a file, before the first step, in place.

        Raises CheckpointError if the file does not fit.
        """
        if self.start is not None:
            self._load(network, Path(self.start.file))
        if self.dora and self.start is None:
            for module in wrapped(network).values():
                _measure(module)

    def problems(self, network: nn.Module) -> list[str]:
        """Patterns that match nothing, and ranks above a layer's size."""
        fitting = {name: module for name, module in network.named_modules() if isinstance(module, _FITTING)}
        found = unmatched(self.modules, list(fitting), "model.adapter.modules")
        for field, patterns in (("ranks", self.ranks), ("alphas", self.alphas)):
            found += unmatched(list(patterns), list(fitting), f"model.adapter.{field}")
        if self.start is not None and self.start.source[0] != "file":
            found.append("model.adapter.start: name a safetensors file in model.adapter.start.file")
        for name, module in self._chosen(network).items():
            most = min(module.weight.shape[0], module.weight[0].numel())
            if self._rank(name) > most:
                found.append(
                    f"model.adapter.rank: {self._rank(name)} is above the {most} of {name}; use at most "
                    f"{most}, or leave that module out"
                )
                break
        return found

    def files(self, nets: Nets, base: str) -> lora_files.LoraFiles:
        """Its tensors by module, for diffusers and kohya."""
        modules = {
            name: lora_files.Addition(
                rank=self._rank(name),
                alpha=self._alpha(name),
                tensors=_tensors(module, dora=self.dora),
            )
            for name, module in wrapped(nets["ema"]).items()
        }
        return lora_files.LoraFiles(modules, base=base, dora=self.dora)

    def merged(self, network: nn.Module) -> nn.Module:
        """The plain network with the additions in its weights, in place."""
        for name, module in wrapped(network).items():
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.base_layer)
        return network

    def _chosen(self, network: nn.Module) -> dict[str, Any]:
        return {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, _FITTING) and matches(f".{name}", anywhere(self.modules))
        }

    def _rank(self, name: str) -> int:
        return int(_last(self.ranks, name, self.rank))

    def _alpha(self, name: str) -> float:
        usual = self.alpha if self.alpha is not None else self._rank(name)
        return float(_last(self.alphas, name, usual))

    def _load(self, network: nn.Module, file: Path) -> None:
        stored = lora_files.read(file)
        own = wrapped(network)
        short = {lora_files.plain(name): name for name in own}
        if unknown := sorted(set(stored) - set(short)):
            raise CheckpointError(
                f"model.adapter.start: {file} adapts {unknown[0]}, which model.adapter.modules leaves out"
            )
        for name, addition in stored.items():
            module, full = own[short[name]], short[name]
            if (addition.rank, addition.alpha) != (self._rank(full), self._alpha(full)):
                raise CheckpointError(
                    f"model.adapter.start: {file} has rank {addition.rank} and alpha {addition.alpha:g} for "
                    f"{name}, the recipe {self._rank(full)} and {self._alpha(full):g}; set those of the file"
                )
            for key, value in _tensors(module, dora=self.dora).items():
                if key not in addition.tensors or addition.tensors[key].shape != value.shape:
                    raise CheckpointError(
                        f"model.adapter.start: {file} has no {key} for {name} of this shape"
                    )
                value.copy_(addition.tensors[key])

    @classmethod
    def tiny(cls) -> LoraConfig:
        """Rank 2 on the attention."""
        return cls(rank=2)


def wrapped(network: nn.Module) -> dict[str, Any]:
    """peft's modules in a network, by name."""
    return {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}


def _tensors(module: Any, *, dora: bool) -> dict[str, Tensor]:
    """A and B, and DoRA's lengths, of one module; they share its memory."""
    found = {"lora_A": module.lora_A[NAME].weight.data, "lora_B": module.lora_B[NAME].weight.data}
    if dora:
        found["lora_magnitude_vector"] = module.lora_magnitude_vector[NAME].weight.data
    return found


def _measure(module: Any) -> None:
    """DoRA's lengths of the base's weight, since B is zero (Liu et al. 2024, sec. 4.1)."""
    weight = module.base_layer.weight.data.float()
    length = torch.linalg.norm(weight.flatten(1), dim=1)
    own = module.lora_magnitude_vector[NAME].weight
    own.data.copy_(length.view_as(own))


def _last(values: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    found = [value for pattern, value in values.items() if matches(f".{name}", anywhere([pattern]))]
    return found[-1] if found else otherwise


COMPONENT = LoraConfig
