"""A component of each kind from outside of Sfumato, one file and no edit elsewhere, trained and measured."""

from __future__ import annotations

import importlib
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sfumato import recipe as recipes
from sfumato.core.progress import Progress
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.data.reading import local_reader
from sfumato.errors import ConfigError
from sfumato.evaluation.blocks.block import Task
from sfumato.evaluation.blocks.store import BlockStore
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.stage import evaluate
from sfumato.parallel import Placement, make
from sfumato.recipe import Recipe
from sfumato.runtime.commands.pack import pack as pack_command
from sfumato.runtime.pipeline.plan import plan
from sfumato.runtime.pipeline.records import Records
from sfumato.runtime.pipeline.settings import Pipeline, load
from sfumato.runtime.pipeline.stage import Work
from sfumato.runtime.runs.display import Display
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training.loop import Trainer, install

PARTS = '''
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from diffusers import DDIMScheduler
from pydantic import Field
from torch import nn

from sfumato.core.config import Config
from sfumato.core.family import LossOut
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.array_source import ArraySource
from sfumato.data.packing.source import SourceConfig
from sfumato.evaluation.features.extractor import Extracted
from sfumato.evaluation.metric_inputs import MetricInput, Prepared
from sfumato.evaluation.metrics.metric import BaseMetric, MetricResult
from sfumato.families.diffusion.networks import NetworkConfig, predict
from sfumato.families.diffusion.objectives import Objective, ObjectiveConfig, SamplingBase
from sfumato.families.diffusion.samplers import Sampler
from sfumato.families.gan.losses import Loss
from sfumato.parallel.strategies.single import Single
from sfumato.runtime.pipeline.stage import StageSettings


class Plain(NetworkConfig):
    """Two convolutions; time and class are added between them."""

    width: int = Field(4, ge=1, description="Channels.")

    def build(self, data, *, conditional):
        return Convolutions(self.width, data, conditional)


class Convolutions(nn.Module):
    def __init__(self, width, data, conditional):
        super().__init__()
        self.first = nn.Conv2d(data.channels, width, 3, padding=1)
        self.time = nn.Linear(1, width)
        self.label = nn.Embedding(data.num_classes + 1, width) if conditional else None
        self.last = nn.Conv2d(width, data.channels, 3, padding=1)

    def forward(self, x, t, label=None, return_dict=False):
        shift = self.time(t.to(x.device).float().expand(len(x))[:, None])
        if self.label is not None:
            shift = shift + self.label(label)
        return (self.last(torch.relu(self.first(x) + shift[:, :, None, None])),)


class Halving(SamplingBase):
    """Options of the sampler below."""

    steps: int = Field(3, ge=1, description="Halvings of the noise.")


class OneLevel(ObjectiveConfig):
    """Denoising at one level of noise."""

    Sampling: ClassVar[type[SamplingBase]] = Halving
    level: float = Field(1.0, gt=0, description="Standard deviation of the noise.")

    def build(self, *, latents=False):
        return Denoising(self.level)


class Denoising(Objective):
    phase = "denoise"

    def __init__(self, level):
        self.level = level

    def loss(self, nets, batch, labels, progress, rng):
        x = batch["image"]
        noisy = x + self.level * rng.normal(*x.shape[1:])
        found = predict(nets["network"], noisy, torch.ones(len(x)), labels.draw(batch, rng))
        return LossOut((found - x).square().mean(dim=(1, 2, 3)))

    def sample(self, network, noise_NCHW, options, rng, *, clip):
        x = self.level * noise_NCHW
        for _ in range(options.steps):
            x = (x + network(x, torch.ones(()))) / 2
        return x


class Leading(Sampler):
    """DDIM that starts below the last timestep."""

    offset: int = Field(0, ge=0, description="Timesteps that are left out.")

    def scheduler(self, levels, *, clip):
        settings = levels.for_diffusers() | {"timestep_spacing": "leading", "steps_offset": self.offset}
        return DDIMScheduler(**settings, clip_sample=clip)


class Margin(Loss):
    """A hinge whose margin is a setting."""

    margin: float = Field(1.0, gt=0, description="The margin.")

    def discriminator(self, s_B, f_B):
        return torch.relu(self.margin - s_B) + torch.relu(self.margin + f_B)

    def generator(self, f_B):
        return -f_B


class Slow(Single):
    """Takes smaller steps."""

    class Settings(Config):
        factor: float = Field(0.5, gt=0, description="Of every learning rate.")

    name = "slow"
    about = "everything, in one process"
    taken: ClassVar[list[float]] = []

    def step(self, trains, *, lr, **how):
        self.taken.append(lr * self.options.own.factor)
        return super().step(trains, lr=self.taken[-1], **how)


class Edges(MetricInput):
    """The mean absolute difference of neighbouring pixels of every image, and numbers of its own."""

    name = "edges"

    def prepare(self, setting, opened):
        return PreparedEdges(setting.reference, setting.options.of(EdgeSettings).rows)


@dataclass(frozen=True)
class PreparedEdges(Prepared):
    reference: object
    number: int

    @property
    def rows(self):
        return self.number

    def beside(self, source, index, drawn, extractors):
        return {"edges": edges(drawn.images)}

    def block(self, source, index, *, seed, labels_B):
        first = index * source.block
        return np.arange(first, min(first + source.block, self.number), dtype=np.float64)

    def of_reference(self, features, name, made):
        return replace(features, inputs={"edges": edges(self.reference.read(0, 100)[0]), "own": made.own})

    def of_generated(self, features, name, made):
        return replace(features, inputs={"edges": made.beside("edges")})


def edges(images):
    return np.abs(np.diff(images.astype(np.float64), axis=1)).mean(axis=(1, 2, 3))


class EdgeSettings(Config):
    edge_scale: float = Field(1.0, gt=0, description="edge_gap: factor of the figure.")
    rows: int = Field(70, ge=1, description="edge_gap: numbers of its own.")


class EdgeGap(BaseMetric):
    """How much sharper samples are than real images."""

    name = "edge_gap"
    inputs = (Edges(),)
    Settings = EdgeSettings

    def compute(self, reference, generated, options):
        terms = generated.inputs["edges"] - reference.inputs["edges"].mean()
        scale = options.of(EdgeSettings).edge_scale
        own = float(reference.inputs["own"].sum())
        return MetricResult(self.name, scale * float(terms.mean()), {"own": own}, scale * terms)


class Stripes(SourceConfig):
    """Pictures of stripes, drawn as they are opened."""

    count: int = Field(6, ge=1, description="How many pictures.")

    @property
    def name(self):
        return "stripes"

    def open(self, opening):
        pixels = np.zeros((self.count, 8, 8, 1), np.uint8)
        for row in range(self.count):
            pixels[row, row % 8 :: 2] = 255
        return ArraySource(pixels, None, (), f"{self.count} pictures of stripes")


class Count(StageSettings):
    """Counts the samples of a data set. Gives `samples`."""

    GIVES: ClassVar[tuple[str, ...]] = ("samples",)
    data: str = Field(description="The data set.")

    @classmethod
    def clashes(cls, stages):
        return [f"stages.{name}: counting once is enough" for name in list(stages)[1:]]

    def identity(self, place):
        return {"data": Manifest.load(place.path(self.data)).digest}

    def in_place(self, outputs, place):
        return True

    def perform(self, work):
        samples = Manifest.load(work.place.path(self.data)).samples
        return {"samples": samples, "digest": str(samples)}


class Means:
    """The mean of every channel and row."""

    name = "means"
    classifies = gives_logits = False
    options = Config

    def problems(self, data):
        return []

    def build(self, reference, options, cache):
        return MeanExtractor(reference.spec.channels * reference.spec.height)


@dataclass(frozen=True)
class MeanExtractor:
    dim: int
    name = "means"
    digest = "means"
    facts = {}

    def extract(self, images):
        return Extracted(images.mean(axis=2).reshape(len(images), -1).astype(np.float32), None)
'''


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package, on the path under a name that no other test has."""
    folder = tmp_path / "own_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text('"""Components of a user."""\n')
    (folder / "parts.py").write_text(f'"""All in one file."""\n\nfrom __future__ import annotations\n{PARTS}')
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return importlib.import_module("own_parts.parts")


def recipe(data: Path, model: dict[str, Any], **sections: Any) -> Recipe:
    content = {
        "name": "own",
        "data": {"path": str(data), "streams": 8, "shuffle_window": 100},
        "model": model,
        "train": {"images": 192, "batch": 64, "log_every": 64},
        "parallel": {"strategy": "single"},
    }
    found = recipes.parse(content | sections)
    found.check(Manifest.load(data).spec)
    return found


def trained(chosen: Recipe, folder: Path) -> list[float]:
    """Three steps of the real loop under the recipe's strategy, stored as a model folder; the losses."""
    manifest = Manifest.load(chosen.data.path)
    family, strategy = chosen.model.build(manifest.spec), make(chosen.parallel, Placement())
    install(family, strategy, seed=chosen.seed)
    losses: list[float] = []
    trainer = Trainer(
        family,
        strategy,
        chosen.train,
        seed=chosen.seed,
        streams=chosen.data.streams,
        report=lambda _, found: losses.extend(v for k, v in sorted(found.items()) if k.endswith("/loss")),
    )
    trainer.run(local_reader.read(chosen.data, manifest, seed=chosen.seed, batch=64))
    weights = strategy.weights(family.samplers)
    save_model_folder(folder, chosen.model, manifest.spec, weights, name="own", progress=Progress.at(192))
    return losses


@pytest.mark.usefixtures("parts")
def test_network_objective_strategy_and_metric(parts: Any, digits_data: Path, tmp_path: Path) -> None:
    model = {
        "family": "diffusion",
        "network": {"kind": "own_parts.parts:Plain", "width": 6},
        "objective": {"kind": "own_parts.parts:OneLevel", "level": 0.5},
        "optimizer": {"lr": {"peak": 0.1}},
        "sampling": {"steps": 2},
    }
    measure = {
        "metrics": ["own_parts.parts:EdgeGap", "precision"],
        "features": "own_parts.parts:Means",
        "metric_options": {"edge_scale": 2.0},
        "samples": 80,
        "actors": 0,
        "preview": 0,
    }
    strategy = {"strategy": "own_parts.parts:Slow", "options": {"factor": 0.25}}
    chosen = recipe(digits_data, model, parallel=strategy, evaluate=measure)
    again = recipes.parse(yaml.safe_load(chosen.to_yaml()))
    assert again == chosen
    assert pickle.loads(pickle.dumps(chosen)) == chosen  # noqa: S301
    wider = recipe(digits_data, {**model, "network": {**model["network"], "width": 7}})
    assert wider.digest() != chosen.digest()

    losses = trained(chosen, tmp_path / "model")
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    rates = parts.Slow.taken
    assert len(rates) == 3
    assert max(rates) <= 0.25 * chosen.model.optimizer.lr.peak

    with pytest.raises(ConfigError, match="allow that with trust=True"):
        Generator.load(tmp_path / "model")
    images = Generator.load(tmp_path / "model", trust=True).sample(4, seed=0)
    assert images.shape == (4, 8, 8, 1)

    evaluation = Evaluation.of_model(
        chosen.evaluate,
        model_folder=tmp_path / "model",
        reference=PackedReference(digits_data, "fail"),
        out=tmp_path / "evaluation",
        cache=tmp_path / "cache",
        trust=True,
    )
    report = evaluate(evaluation)
    assert set(report.metrics) == {"edge_gap", "precision"}
    assert report.details["edge_gap"]["own"] == sum(range(70)), "its own blocks, whole and in order"
    stored = BlockStore(tmp_path / "evaluation" / report.blocks)
    made = stored.arrays([Task(index, None, keep_images=False) for index in range(2)], "edges", 80)
    real = parts.edges(PackedReference(digits_data, "fail").read(0, 100)[0])
    assert made is not None
    assert report.metrics["edge_gap"] == pytest.approx(2 * (made.mean() - real.mean()))


@pytest.mark.usefixtures("parts")
def test_a_sampler_with_settings(digits_data: Path, tmp_path: Path) -> None:
    sampler = {"kind": "own_parts.parts:Leading", "offset": 1}
    tiny = {"channels": [8, 16], "head_dim": 8, "norm_groups": 4}
    model = {"family": "diffusion", "network": tiny, "objective": {"timesteps": 20}}
    chosen = recipe(digits_data, {**model, "sampling": {"sampler": sampler, "steps": 3}})
    trained(chosen, tmp_path / "model")
    generator = Generator.load(tmp_path / "model", trust=True)
    own = generator.sample(4, seed=0)
    plain = generator.sample(4, seed=0, options={"sampler": "ddim"})
    assert own.shape == plain.shape
    assert not (own == plain).all()
    assert chosen.model.model_dump()["sampling"]["sampler"] == sampler
    (line,) = mistakes({**model, "sampling": {"sampler": {**sampler, "ofset": 1}}})
    assert line == "model.sampling.sampler.ofset: unknown key; did you mean 'offset'?"


@pytest.mark.usefixtures("parts")
def test_a_loss_of_two_networks(digits_data: Path, tmp_path: Path) -> None:
    network = {"channels": [8], "generator_norm": "group"}
    losses = {
        name: trained(
            recipe(digits_data, {"family": "gan", "network": network, "objective": {"loss": loss}}),
            tmp_path / name,
        )
        for name, loss in {
            "hinge": "hinge",
            "same": "own_parts.parts:Margin",
            "wider": {"kind": "own_parts.parts:Margin", "margin": 3},
        }.items()
    }
    assert losses["same"] == losses["hinge"]
    assert losses["wider"][0] != losses["hinge"][0]


@pytest.mark.usefixtures("parts")
def test_a_source_of_images(tmp_path: Path) -> None:
    """It fills a recipe's data set, and `sfumato pack` takes it, too."""
    source = {"kind": "own_parts.parts:Stripes", "count": 5}
    content = {"name": "x", "train": {"images": 8, "batch": 8}, "model": {"family": "gan"}}
    chosen = recipes.parse({**content, "data": {"path": "d", "source": source}})
    assert recipes.parse(yaml.safe_load(chosen.to_yaml())) == chosen
    assert chosen.data.source is not None
    manifest = pack(chosen.data.source, tmp_path / "packed").manifest
    assert (manifest.samples, manifest.source) == (5, "5 pictures of stripes")

    how: dict[str, Any] = {"on_error": "fail", "max_errors": 0, "overwrite": False, "display": Display()}
    dest = str(tmp_path / "other")
    options = {"kind": source["kind"], "count": "7", "val": "0.0"}
    assert pack_command("stripes", dest, options=options, **how)["samples"] == 7
    with pytest.raises(ConfigError, match="countt: unknown key; did you mean 'count'"):
        pack_command("stripes", dest, options={"kind": source["kind"], "countt": "7"}, **how)
    with pytest.raises(ConfigError, match=r"kind: 'own_parts.parts:Plain' .* must subclass .*SourceConfig"):
        pack_command("stripes", dest, options={"kind": "own_parts.parts:Plain"}, **how)


@pytest.mark.usefixtures("parts")
def test_a_kind_of_stage(digits_data: Path, tmp_path: Path) -> None:
    """It takes overrides and references, is planned, and runs."""
    count = {"kind": "own_parts.parts:Count", "data": "${images.data}"}
    pack = {"kind": "pack", "source": {"kind": "digits"}, "dest": str(digits_data)}

    def loaded(*overrides: str, **stages: dict[str, Any]) -> Pipeline:
        path = tmp_path / "pipeline.yaml"
        path.write_text(yaml.safe_dump({"name": "own", "stages": {"images": pack, **stages}}))
        return load(path, overrides, root=tmp_path)

    pipeline = loaded("count.needs=[images]", count=count)
    assert [(step.name, step.state) for step in plan(pipeline, Records(pipeline.state))] == [
        ("images", "run"),
        ("count", "wait"),
    ]
    work = Work(place=pipeline.place, display=Display())
    outputs = pipeline.stage("images", {}).perform(work)
    assert pipeline.stage("count", {"images": outputs}).perform(work)["samples"] == 1797
    for stages, overrides, expected in (
        ({"count": count, "again": count}, (), "stages.count: counting once is enough"),
        ({"count": {**count, "dta": 1}}, (), "stages.count.dta: unknown key; did you mean 'data'"),
        ({"count": count}, ("count.dta=1",), "unknown key; a stage of kind own_parts.parts:Count has data"),
        ({"count": {"kind": "own_parts.parts:Plain"}}, (), "must subclass .*StageSettings"),
    ):
        with pytest.raises(ConfigError, match=expected):
            loaded(*overrides, **stages)


@pytest.mark.usefixtures("parts")
def test_what_is_no_component_is_one_line() -> None:
    diffusion = {"family": "diffusion"}
    for model, expected in (
        (
            {"network": {"kind": "own_parts.parts:Plane"}},
            "model.network: 'own_parts.parts:Plane' was imported",
        ),
        ({"network": {"kind": "own_parts.part:Plain"}}, "model.network: module 'own_parts.part'"),
        ({"network": {"kind": "own_parts.parts:Margin"}}, "it must subclass .*NetworkConfig"),
        (
            {"network": {"kind": "own_parts.parts:Plain", "wide": 1}},
            "network.wide: unknown key; did you mean 'width'",
        ),
        (
            {"objective": {"kind": "own_parts.parts:OneLevel"}, "sampling": {"eta": 1}},
            "known keys: adapter_scale, clip, steps",
        ),
    ):
        (line,) = mistakes({**diffusion, **model})
        assert re.search(expected, line), line


def mistakes(model: dict[str, Any]) -> list[str]:
    content = {"name": "x", "data": {"path": "d"}, "train": {"images": 8, "batch": 8}, "model": model}
    with pytest.raises(ConfigError) as caught:
        recipes.parse(content)
    return list(caught.value.problems)
