"""Samples of a model for the rare classes of a data set: drawn on Ray actors, judged, and packed as a set of
their own, which a recipe mixes in by `data.mix`.

Sample i of a class depends on (seed, class, i) alone, and candidates are judged in their order, so the set is
the same for any number of actors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.core.conditions import LABEL, Listed
from sfumato.core.drafts import folder_beside, writing
from sfumato.core.seeds import derive
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.listing import ListingSource
from sfumato.errors import ConfigError
from sfumato.evaluation.audits.accepted import Limits, OfClass, judged
from sfumato.evaluation.blocks.ray_pool import workers_for
from sfumato.evaluation.features.classifier import ClassifierKind, ClassifierOptions
from sfumato.evaluation.features.extractor import Extracted, Extractor
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.statistics import Int64Array
from sfumato.provenance.door import refused
from sfumato.provenance.facts import Facts
from sfumato.runtime.commands.edit import Actors, actors_cluster
from sfumato.runtime.commands.sample import device_of
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.targets import model_of
from sfumato.sampling.generator import Generator
from sfumato.sampling.grid import to_pil
from sfumato.sampling.pixels import Images, to_uint8

TOLD = ("generated", "by", "model_digest", "seed", "sample", "agreement", "distance")
"""What the metadata of each image say of it."""
LEAST = 2
"""Real images that a class needs, so that distances among them are known."""
Task = tuple[int, int]
"""A class, and a block of its samples."""


@dataclass(frozen=True, slots=True)
class Drawer:
    """Builds, where it runs, the function that draws a block; it can be sent to other processes."""

    folder: Path
    device: str
    base: Path | None
    trust: bool
    seed: int

    def __call__(self) -> Callable[[Task], tuple[Task, Images]]:
        """From a task to it and its images."""
        device = self.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        model = Generator.load(self.folder, device, trust=self.trust, base=self.base)

        def drawn(task: Task) -> tuple[Task, Images]:
            label, block = task
            labels = {LABEL.name: Listed("label", torch.tensor([label]))}
            images = model.sample_block(
                block * model.block,
                seed=derive(self.seed, "augment", label),
                conditions=model.conditions_of(labels, range(model.block)),
                options=model.options({}),
            )
            return task, to_uint8(images)

        return drawn


def augment(
    data: str,
    dest: Path,
    *,
    by: str,
    to: int | None,
    tries: int,
    limits: Limits,
    seed: int,
    seen: int | None,
    actors: Actors,
    device: str,
    base: Path | None,
    trust: bool,
    root: Path,
    display: Display,
) -> dict[str, Any]:
    """Write samples of the run `by` to `dest` for every class of `data` that has fewer than `to` images; None
    means as many as the largest class has, marked as the model's recipe says. Returns the outcome as plain
    data.

    A class gets fewer where `tries` candidates for each missing image do not suffice. Raises ConfigError,
    before anything is drawn, for a model of other classes or images, or marks that cannot be set.
    """
    if dest.exists():
        raise ConfigError(f"DEST: {dest} exists; choose another place or remove it")
    reference = PackedReference(data)
    place = str(device_of(device)) if actors.actors == 0 else device
    with model_of(by, root=root, trust=trust) as found:
        display.line(found.about)
        model = Generator.load(found.model, "cpu", trust=found.trusted, base=base)
        _check(model, reference)
        model.door.check(model.data.height, model.data.width)
        label_N, extractor, features = _real(reference, root, seen, display)
        counts = np.bincount(label_N, minlength=reference.spec.num_classes)
        missing = {
            label: int((to or counts.max()) - count)
            for label, count in enumerate(counts.tolist())
            if count < (to or counts.max())
        }
        if few := [reference.spec.classes[label] for label in missing if counts[label] < LEAST]:
            raise ConfigError(f"DATA: class {few[0]!r} has fewer than {LEAST} images, too few to judge by")
        if not missing:
            raise ConfigError(f"DATA: every class has {to or counts.max():,} images; nothing is missing")
        real = {label: OfClass.of(features[label_N == label], limits) for label in missing}
        drawer = Drawer(found.model.resolve(), place, base, found.trusted, seed)
        draft = folder_beside(dest)
        try:
            judge = _Judge(model, extractor, real, limits, missing, draft, reference.spec.classes, seed)
            with actors_cluster(actors), workers_for(actors) as workers:
                display.stage("draw")
                for tasks in judge.rounds(tries):
                    results = dict(workers.run(drawer, tasks))
                    with writing(draft):
                        for task in tasks:
                            judge.take(task, results[task])
                    display.update(judge.kept, sum(missing.values()))
            report = judge.finish()
            if not judge.kept:
                raise ConfigError(
                    f"--by: none of {judge.seen:,} samples was accepted; the model draws these classes "
                    "badly, or loosen --agreement and --farthest"
                )
            source = ListingSource(
                path=str(draft / "listing.jsonl"),
                label="class",
                classes=reference.spec.classes,
                keep=TOLD,
                format="keep",  # another encoding would lose the marks of the file
                licence=f"generated by {model.name}",
            )
            pack(source, dest, note=display.note)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        display.done(f"{judge.kept:,} of {judge.seen:,} samples in {dest}")
    return {"folder": str(dest), "kept": judge.kept, "drawn": judge.seen, "classes": report}


class _Judge:
    """Keeps what is accepted, until no class lacks any."""

    def __init__(
        self,
        model: Generator,
        extractor: Extractor,
        real: Mapping[int, OfClass],
        limits: Limits,
        missing: Mapping[int, int],
        draft: Path,
        classes: tuple[str, ...],
        seed: int,
    ) -> None:
        self._model, self._extractor, self._real, self._limits = model, extractor, real, limits
        self._missing, self._draft, self._classes, self._seed = dict(missing), draft, classes, seed
        self._wanted = dict(missing)
        self._blocks = dict.fromkeys(missing, 0)
        self._lines: list[str] = []
        self.kept = self.seen = 0

    def rounds(self, tries: int) -> Iterator[list[Task]]:
        """Tasks for what is missing, anew after each round, up to `tries` candidates for an image."""
        block = self._model.block
        while True:
            tasks = []
            for label, left in self._missing.items():
                most = -(-self._wanted[label] * tries // block)
                count = min(-(-left // block), most - self._blocks[label])
                first = self._blocks[label]
                tasks += [(label, number) for number in range(first, first + count)]
                self._blocks[label] = first + max(0, count)
            if not tasks:
                return
            yield tasks

    def take(self, task: Task, images: Images) -> None:
        """Keep those of a block that are accepted and still missing."""
        label, block = task
        found: Extracted = self._extractor.extract(images)
        agreement_N, distance_N, chosen = judged(found, label, self._real[label], self._limits)
        self.seen += len(images)
        for row in chosen.tolist()[: self._missing[label]]:
            sample = block * self._model.block + row
            told = {
                "generated": True,
                "by": self._model.name,
                "model_digest": self._model.digest,
                "seed": derive(self._seed, "augment", label),
                "sample": sample,
                "agreement": round(float(agreement_N[row]), 4),
                "distance": round(float(distance_N[row]), 4),
            }
            self._keep(label, sample, images[row], told)

    def _keep(self, label: int, sample: int, image: Images, told: Mapping[str, Any]) -> None:
        door, facts = self._model.door, Facts(seed=int(told["seed"]))
        (marked,), (marks,) = door.pixels(image[None], [facts])
        if refused(marks):
            return
        name = f"{label:04d}-{sample:08d}.png"
        door.write(self._draft / name, to_pil(marked), facts)
        self._lines.append(json.dumps({"file": name, "class": self._classes[label], **told}))
        self._missing[label] -= 1
        self.kept += 1

    def finish(self) -> dict[str, dict[str, int]]:
        """Write the listing; how many each class lacked and got."""
        (self._draft / "listing.jsonl").write_text("".join(f"{line}\n" for line in self._lines), "utf-8")
        return {
            self._classes[label]: {"missing": wanted, "kept": wanted - self._missing[label]}
            for label, wanted in self._wanted.items()
        }


def _check(model: Generator, reference: PackedReference) -> None:
    if LABEL not in model.conditions:
        raise ConfigError("--by: the model takes no classes; train a class-conditional one on this data")
    if model.data.classes != reference.spec.classes or model.data.shape != reference.spec.shape:
        raise ConfigError(
            "--by: the model was trained on other classes or images than DATA has; name its own"
        )
    required = [each.name for each in model.conditions if each.required and each != LABEL]
    if required:
        raise ConfigError(f"--by: the model also needs {required[0]}; use one that classes alone steer")


def _real(
    reference: PackedReference, root: Path, seen: int | None, display: Display
) -> tuple[Int64Array, Extractor, Any]:
    """Labels, a classifier trained on the data, and its features of them."""
    kind = ClassifierKind()
    if problems := kind.problems(reference.spec):
        raise ConfigError(*problems)
    display.stage("classifier")
    options = ClassifierOptions() if seen is None else ClassifierOptions(seen=seen)
    extractor = kind.train(reference, options, root / "runs" / ".cache" / "features", display.update)
    display.done("trained, or found in the cache")
    labels, features = [], []
    for images_NHWC, label_N in reference.blocks():
        assert label_N is not None, "it has classes"
        labels.append(label_N)
        features.append(extractor.extract(images_NHWC).embedding_ND)
    return np.concatenate(labels), extractor, np.concatenate(features)
