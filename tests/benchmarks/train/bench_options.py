"""What an option of training or sampling changes on the digits: one short training for each, judged alike.

    make bench-options ARGS="--only min-snr p2 --images 24000 --seeds 0 1"

Trains in a bare loop in this process (`train_loops.Plain`), with the product's families, averages and
evaluation. Averages of several lengths follow one training, and ways to sample draw from one model, so that
those rows differ in nothing else. Every row is written to the record (`--record`) as it ends; what it has is
not repeated. The last line is JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from train_loops import Noise, Plain

from sfumato import recipe as recipes
from sfumato.core.schedules import EmaSchedule

PIPELINES = Path(__file__).parents[3] / "pipelines" / "digits"
FIGURES = ("fd", "precision", "recall", "class_accuracy")
SLOW = "{peak: 1.0e-4, warmup_images: 5_000, decay: constant}"


@dataclass(frozen=True)
class Variant:
    """A training: a recipe with changes. `averages` and `samplings` are measured beside the recipe's own."""

    recipe: str
    changes: tuple[str, ...] = ()
    averages: dict[str, EmaSchedule] = field(default_factory=dict)
    samplings: dict[str, dict[str, Any]] = field(default_factory=dict)


WIDTHS = {f"sigma_rel {width}": EmaSchedule(sigma_rel=width) for width in (0.05, 0.1, 0.15)}
WAYS = {
    "ddim": {"sampler": "ddim"},
    "order 3": {"sampler": {"kind": "dpmsolver++", "order": 3}},
    "sde-dpmsolver++": {"sampler": "sde-dpmsolver++"},
    "unipc": {"sampler": "unipc"},
    "guidance 1": {"guidance": 1.0},
    "guidance 2.5": {"guidance": 2.5},
    "guidance 2.5 in an interval": {"guidance": 2.5, "guidance_interval": [0.3, 3.0]},
    "guidance 2.5, rescale 0.7": {"guidance": 2.5, "guidance_rescale": 0.7},
}
VARIANTS = {
    "ddpm": Variant("ddpm", averages=WIDTHS, samplings=WAYS),
    "min-snr": Variant("ddpm", ("model.objective.weighting=min_snr",)),
    "p2": Variant("ddpm", ("model.objective.weighting=p2",)),
    "zero terminal snr": Variant("ddpm", ("model.objective.zero_terminal_snr=true",)),
    "learned variances": Variant("ddpm", ("model.objective.variance=learned",)),
    "stratified": Variant("ddpm", ("model.objective.stratified=true",)),
    "edm": Variant("edm", averages=WIDTHS),
    "consistency": Variant(
        "consistency",
        averages=WIDTHS,
        samplings={"two steps, 0.821": {"steps": 2}, "two steps, spaced": {"steps": 2, "sigmas": None}},
    ),
    "dit 2e-3": Variant("dit", averages=WIDTHS),
    "dit 1e-3": Variant("dit", ("model.optimizer.lr.peak=1e-3",)),
    "dit 1e-4": Variant("dit", (f"model.optimizer.lr={SLOW}",)),
}


class Draws(Noise):
    """Also noise levels that are spread over the batch (Kingma et al. 2021, app. I.1)."""

    def stratified(self) -> torch.Tensor:
        return (torch.rand(()) + torch.arange(self.rows) / self.rows) % 1


class Training(Plain):
    """A whole training, followed by several averages."""

    noise = Draws

    def follow(self, averages: dict[str, EmaSchedule]) -> dict[str, Any]:
        """Train to the end; the networks that sample, by the average's name."""
        found = {"": self.nets["ema"], **{name: copy.deepcopy(self.nets["ema"]) for name in averages}}
        pairs = {
            name: (list(found[name].parameters()), list(self.nets["network"].parameters()))
            for name in averages
        }
        while self.progress.images < self.settings.images:
            self._step()
            with torch.no_grad():
                for name, pair in pairs.items():
                    torch._foreach_lerp_(*pair, 1 - averages[name].decay(self.progress))
        return found


def rows(
    name: str, seed: int, arguments: argparse.Namespace, data: Path, cache: Path
) -> Iterator[dict[str, Any]]:
    """Train the variant and measure it; a row for each average and each way to sample."""
    variant = VARIANTS[name]
    recipe = recipes.load(
        PIPELINES / f"{variant.recipe}.yaml",
        [*variant.changes, f"train.images={arguments.images}"],
    )
    start = time.process_time()
    training = Training(recipe, data, seed=seed)
    nets = training.follow(variant.averages)
    seconds = time.process_time() - start
    ways = [(average, "", {}) for average in nets] + [
        ("", way, how) for way, how in variant.samplings.items()
    ]
    for average, way, how in ways:
        found = measured(recipe, training, nets[average], how, arguments, data, cache, seed)
        label = ", ".join(part for part in (name, average, way) if part)
        yield {"row": label, "seed": seed, "images": arguments.images, "cpu_seconds": seconds, **found}


def measured(
    recipe: Any,
    training: Plain,
    net: Any,
    sampling: dict[str, Any],
    arguments: argparse.Namespace,
    data: Path,
    cache: Path,
    seed: int,
) -> dict[str, Any]:
    """Figures with their intervals, as an evaluation of the model computes them."""
    from sfumato.evaluation.config import EvaluateSettings
    from sfumato.evaluation.evaluation import Evaluation
    from sfumato.evaluation.references.reference import PackedReference
    from sfumato.evaluation.stage import evaluate
    from sfumato.sampling.model_folder import save_model_folder

    settings = EvaluateSettings(
        samples=arguments.samples, metrics=FIGURES, sampling=sampling, actors=0, seed=seed, preview=0
    )
    with tempfile.TemporaryDirectory(prefix="sf-") as folder:
        root = Path(folder)
        reference = PackedReference(data)
        save_model_folder(
            root / "model",
            recipe.model,
            reference.spec,
            {"ema": net.state_dict()},
            name="options",
            progress=training.progress,
        )
        report = evaluate(
            Evaluation.of_model(
                settings, model_folder=root / "model", reference=reference, out=root / "out", cache=cache
            )
        )
    none = {"low": None, "high": None}  # of a figure without variation
    found = {figure: report.intervals.get(figure, none) for figure in report.metrics}
    return {
        figure: [value, found[figure]["low"], found[figure]["high"]]
        for figure, value in report.metrics.items()
    }


def show(found: dict[str, Any]) -> None:
    cells = []
    for name, part in found.items():
        if isinstance(part, list):
            value, low, high = part
            reach = "" if low is None else f" ({low:.4g} to {high:.4g})"
            cells.append(f"{name} {value:.4g}{reach}")
    print(f"{found['row']}, seed {found['seed']}: {'  '.join(cells)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--images", type=int, default=48_000)
    parser.add_argument("--samples", type=int, default=1_797)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--record", type=Path, default=Path(".bench-options.jsonl"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from sfumato.data.packing.pack import pack

    lines = arguments.record.read_text().splitlines() if arguments.record.is_file() else []
    record = [json.loads(line) for line in lines]
    had = {(found["row"], found["seed"], found["images"]) for found in record}
    with tempfile.TemporaryDirectory(prefix="sf-") as folder, arguments.record.open("a") as file:
        data = Path(folder) / "digits"
        pack("digits", data)
        for seed in arguments.seeds:
            for name in arguments.only:
                if (name, seed, arguments.images) in had:
                    continue
                for found in rows(name, seed, arguments, data, Path(folder) / "cache"):
                    show(found)
                    record.append(found)
                    file.write(json.dumps(found) + "\n")
                    file.flush()
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
