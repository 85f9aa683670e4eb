"""The optimizer of a network, with its learning rate as a function of images.

Parameters may be grouped by name; each group has its own learning rate and weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from sfumato.core.config import Config
from sfumato.core.muon import Muon, Rows
from sfumato.core.schedules import LearningRate
from sfumato.errors import ConfigError

_Decay = Annotated[float, Field(ge=0, lt=1)]
LR_FACTOR = "lr_factor"
"""The entry of a torch parameter group that multiplies the learning rate of a step."""
_ORTHOGONAL = "orthogonal"


class OptimizerGroup(Config):
    """Parameters whose names match a pattern, and their settings."""

    pattern: str = Field(
        min_length=1,
        description="Names of parameters, with * for any characters: `*.bias`, `encoder.*`. If several "
        "groups match a parameter, the first one counts.",
    )
    lr_factor: float = Field(1.0, ge=0, description="Multiplies the optimizer's learning rate.")
    weight_decay: float | None = Field(
        None, ge=0, description="Weight decay of these parameters; null: the optimizer's."
    )
    orthogonal: bool = Field(
        True,
        exclude_if=lambda value: value is True,
        description="Whether muon orthogonalises the updates of matrices here; false: AdamW updates them, "
        "as Muon's authors advise for embeddings and the last layer.",
    )


class OptimizerConfig(Config):
    """Adam (Kingma & Ba 2015), AdamW (Loshchilov & Hutter 2019), RAdam (Liu et al. 2020), Muon (Jordan et al.
    2024) or SGD."""

    name: Literal["adam", "adamw", "radam", "muon", "sgd"] = Field(
        "adamw",
        description="Update rule. radam shortens adam's first steps by how little its second moment knows. "
        "muon updates matrices and kernels, AdamW the rest, at the same rate.",
    )
    lr: LearningRate = Field(LearningRate(), description="Learning rate against images seen.")
    betas: tuple[_Decay, _Decay] = Field(
        (0.9, 0.99), description="Decay of the two moments (SGD: the first is the momentum)."
    )
    eps: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")
    momentum: float = Field(
        0.95,
        ge=0,
        lt=1,
        exclude_if=lambda value: value == 0.95,
        description="Muon's momentum.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled for adamw and muon, L2 for the others.")
    groups: tuple[OptimizerGroup, ...] = Field(
        (), description="Parameters with their own learning rate or weight decay, by name."
    )
    clip_weights: float | None = Field(
        None,
        gt=0,
        exclude_if=lambda value: value is None,
        description="After each update, bring every weight into [-c, c]; null leaves them.",
    )

    unit_rows: tuple[str, ...] = Field(
        (),
        exclude_if=lambda value: not value,
        description="After each update, scale each row (output) of the parameters with these names to root "
        "mean square 1: forced weight normalisation (Karras et al. 2024, EDM2), for networks that use "
        "directions only.",
    )

    @property
    def needs_whole_matrices(self) -> bool:
        """Whether an update depends on more than a parameter's own elements, one by one."""
        return self.name == "muon" or bool(self.unit_rows)

    def build(
        self, parameters: Mapping[str, nn.Parameter], rows: Rows | None = None
    ) -> torch.optim.Optimizer:
        """Build the optimizer of these named parameters; the loop sets the learning rate of every step.

        `rows` gets whole matrices where the parameters are the rows that a rank holds.

        Raises ConfigError for a group without parameters.
        """
        optimizer = self._build(parameters, rows)
        if self.clip_weights is not None:
            optimizer.register_step_post_hook(partial(_clip_weights, self.clip_weights))
        if self.unit_rows:
            optimizer.register_step_post_hook(partial(_unit_rows, self._with_unit_rows(parameters)))
        return optimizer

    def _build(self, parameters: Mapping[str, nn.Parameter], rows: Rows | None) -> torch.optim.Optimizer:
        groups = self.grouped(parameters)
        rate = self.lr.peak
        if self.name == "muon" and (matrices := _part(groups, matrices=True)):
            return Muon(
                matrices,
                _part(groups, matrices=False),
                lr=rate,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                betas=self.betas,
                eps=self.eps,
                rows=rows,
            )
        if self.name == "sgd":
            return torch.optim.SGD(
                groups, lr=rate, momentum=self.betas[0], weight_decay=self.weight_decay, fused=True
            )
        if self.name == "radam":
            return torch.optim.RAdam(
                groups, lr=rate, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
            )
        kind = torch.optim.Adam if self.name == "adam" else torch.optim.AdamW
        # The fused kernels exist on CPU and CUDA; on CPU they save most of the time of a small step.
        return kind(
            groups,
            lr=rate,
            betas=self.betas,
            eps=self.eps,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def grouped(self, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
        """torch's parameter groups: first the parameters in none of our groups, then our groups in order.

        Raises ConfigError for a group without parameters.
        """
        members: list[list[nn.Parameter]] = [[] for _ in self.groups]
        rest = []
        for name, parameter in parameters.items():
            for number, group in enumerate(self.groups):
                if fnmatchcase(name, group.pattern):
                    members[number].append(parameter)
                    break
            else:
                rest.append(parameter)
        made: list[dict[str, Any]] = [{"params": rest, LR_FACTOR: 1.0}] if rest or not self.groups else []
        for group, chosen in zip(self.groups, members, strict=True):
            if not chosen:
                raise ConfigError(self._without_parameters(group, list(parameters)))
            decay = self.weight_decay if group.weight_decay is None else group.weight_decay
            made.append({"params": chosen, LR_FACTOR: group.lr_factor, "weight_decay": decay})
            if not group.orthogonal:
                made[-1][_ORTHOGONAL] = False
        return made

    def _with_unit_rows(self, parameters: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
        found = [
            p
            for name, p in parameters.items()
            if p.dim() > 1 and any(fnmatchcase(name, pattern) for pattern in self.unit_rows)
        ]
        if not found:
            names = ", ".join(list(parameters)[:3])
            raise ConfigError(
                f"optimizer.unit_rows: no matrix matches {', '.join(self.unit_rows)}; names are like {names}"
            )
        return found

    def _without_parameters(self, group: OptimizerGroup, names: list[str]) -> str:
        if any(fnmatchcase(name, group.pattern) for name in names):
            return (
                f"optimizer.groups: every parameter that {group.pattern!r} matches belongs to an earlier "
                "group; put the narrower pattern first"
            )
        examples = ", ".join(names[:3])
        return (
            f"optimizer.groups: no parameter matches {group.pattern!r}; names are like {examples}"
            if names
            else f"optimizer.groups: no parameter matches {group.pattern!r}; none of the network's trains"
        )


def _part(groups: list[dict[str, Any]], *, matrices: bool) -> list[dict[str, Any]]:
    """The groups with their matrices (and kernels) that muon may update, or with all else."""
    parts = [
        {
            **group,
            "params": [
                p for p in group["params"] if (p.dim() > 1 and group.get(_ORTHOGONAL, True)) == matrices
            ],
        }
        for group in groups
    ]
    return [part for part in parts if part["params"]]


@torch.no_grad()
def _clip_weights(largest: float, optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Element by element, so any part of a parameter that a rank updates will do."""
    for group in optimizer.param_groups:
        torch._foreach_clamp_min_(group["params"], -largest)
        torch._foreach_clamp_max_(group["params"], largest)


@torch.no_grad()
def _unit_rows(parameters: list[nn.Parameter], *_: object) -> None:
    """Row by row, so the rows that a rank holds will do."""
    for parameter in parameters:
        if parameter.numel():
            rows = parameter.flatten(1)
            scale = rows.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-4)
            parameter.copy_((rows / scale).view_as(parameter))
