"""A model that starts from a pipeline of diffusers: looked up, built, trained for one step, drawn from."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec, Piece, Texts
from sfumato.core.columns import Column
from sfumato.core.family import EmaOf, SampleRequest, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.core.stored import matches
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.runtime.runs.pretrained import resolved_model
from sfumato.sampling.pretrained_files import load_stored

DATA = DataSpec(1, 8, 8, (), {"text": Column("text", "str"), "edge": Column("image", "uint8", (1, 8, 8))})
PROMPTS, NEGATIVE = ["the one", "a"], "the"
PROGRESS = Progress(step=0, images=64, total_images=1_000, batch=2)


def looked_up(root: Path, **model: Any) -> DiffusionConfig:
    """The model of a recipe as it is when a run starts."""
    found = resolved_model(DiffusionConfig.model_validate({"family": "diffusion", **model}), root)
    assert isinstance(found, DiffusionConfig)
    if found.text is not None:
        encoders = tuple(encoder.learnt(lambda: ()) for encoder in found.text.encoders)
        found = found.model_copy(update={"text": found.text.model_copy(update={"encoders": encoders})})
    return found


def nets_of(config: DiffusionConfig, data: DataSpec = DATA) -> dict[str, nn.Module]:
    """As training builds them: with stored weights, the adapter begun, and the average a copy."""
    family = config.build(data)
    nets: dict[str, nn.Module] = {}
    for name, spec in family.nets.items():
        if isinstance(spec, EmaOf):
            continue
        with seeded(0, "init", name):
            nets[name] = spec.build()
        if spec.weights is not None:
            load_stored(nets[name], spec.weights, spec.adapter if isinstance(spec, Trainable) else ())
    if config.adapter is not None:
        with torch.no_grad():
            config.adapter.begin(nets["network"])
    nets["ema"] = copy.deepcopy(nets["network"])
    return {name: net.eval() for name, net in nets.items()}


def step(
    config: DiffusionConfig, nets: dict[str, nn.Module], rate: float = 0.05, data: DataSpec = DATA
) -> Tensor:
    """One update of what trains, in place, of the network and its average; returns the loss [2]."""
    family = config.build(data)
    (phase,), spec = family.phases, family.nets["network"]
    assert isinstance(spec, Trainable)
    generator = torch.Generator().manual_seed(3)
    batch: Batch = {
        "image": torch.rand(2, *data.shape, generator=generator) * 2 - 1,
        "text": Texts(PROMPTS),
    }
    batch |= {name: control_images() for name, column in data.extra.items() if column.kind == "image"}
    rng = StreamRng([Piece(0, 0, 2)], rows_per_stream=2, seed=5, images=64, phase=phase.name)
    for name, parameter in nets["network"].named_parameters():
        parameter.requires_grad_(not spec.adapter or matches(name, spec.adapter))
    with torch.no_grad():
        batch = family.prepare(nets, batch, PROGRESS, rng)
    loss_B = phase.loss(nets, batch, PROGRESS, rng).loss_B
    loss_B.mean().backward()
    with torch.no_grad():
        for parameter in nets["network"].parameters():
            if parameter.grad is not None:
                parameter -= rate * parameter.grad / (parameter.grad.norm() + 1e-6)
    nets["ema"].load_state_dict(nets["network"].state_dict())
    return loss_B.detach()


def control_images(rows: int = 2) -> Tensor:
    """Images of control in [-1, 1]."""
    return torch.rand(rows, 1, 8, 8, generator=torch.Generator().manual_seed(9)) * 2 - 1


@torch.no_grad()
def drawn(config: DiffusionConfig, nets: Mapping[str, nn.Module], data: DataSpec = DATA) -> Tensor:
    """Two images in [0, 1], of `PROMPTS` away from `NEGATIVE`."""
    texts = {"text": Texts(PROMPTS), "negative_text": Texts([NEGATIVE] * 2)}
    conditions: dict[str, Any] = dict(texts) if config.text is not None else {}
    conditions |= {each.name: control_images() for each in config.conditions(data) if each.kind == "image"}
    request = SampleRequest(num=2, options=config.sampling, conditions=conditions)
    return config.build(data).sample(nets, request, PROGRESS, SampleRng(7, range(2))) / 2 + 0.5


def swapped(target: Path, base: Path, exported: Path) -> Path:
    """The folder that diffusers wrote, with the scheduler that Sfumato samples by."""
    shutil.copytree(base, target)
    shutil.rmtree(target / "scheduler")
    shutil.copytree(exported / "scheduler", target / "scheduler")
    index = json.loads((target / "model_index.json").read_text())
    index["scheduler"] = json.loads((exported / "model_index.json").read_text())["scheduler"]
    (target / "model_index.json").write_text(json.dumps(index))
    return target
