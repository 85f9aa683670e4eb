"""Features of a reference: the same bits whoever extracts them, each image read once, nothing made twice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_evaluation
from tiny_evaluation import untrained

from sfumato.core.config import Config
from sfumato.core.rng import seeded
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import DataError
from sfumato.evaluation.blocks.ray_pool import RayPool
from sfumato.evaluation.blocks.workers import InProcess, Workers
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.features.classifier import ClassifierExtractor
from sfumato.evaluation.features.classifier_network import Classifier
from sfumato.evaluation.features.extractor import Extracted, Extractor
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.references.features import ReferenceFeatures
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.stage import evaluate
from sfumato.evaluation.store import digest
from sfumato.evaluation.subjects.image_set import ImageBlock
from sfumato.families.flow.config import FlowConfig

settings = partial(tiny_evaluation.settings, cpus_per_actor=0.5)


class Recorded(PackedReference):
    """Notes what is decoded, in whichever process, in a file."""

    def __init__(self, folder: Path, log: Path, on_error: Any = "fail") -> None:
        super().__init__(folder, on_error)
        self._log = log

    def _read(self, first: int, stop: int) -> ImageBlock:
        with self._log.open("a") as log:
            log.write(f"{first} {stop}\n")
        return super()._read(first, stop)

    def decoded(self) -> list[int]:
        """Positions, sorted; several times where one was decoded more than once."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return sorted(row for line in lines for row in range(*map(int, line.split())))


class Means:
    """Kind and extractor in one: the mean of every row. With `mark`, the first call ends its process."""

    name = digest = "means"
    dim = 8
    classifies = gives_logits = False
    options = Config
    facts: Mapping[str, object] = {}

    def __init__(self, mark: Path | None = None) -> None:
        self.mark = mark

    def problems(self, data: Any) -> list[str]:
        return []

    def build(self, reference: Any, options: Any, cache: Path) -> Means:
        return self

    def extract(self, images_NHWC: np.ndarray) -> Extracted:
        if self.mark is not None and not self.mark.exists():
            self.mark.touch()
            os._exit(1)
        return Extracted(images_NHWC.mean(axis=(2, 3)).astype(np.float32))


@pytest.fixture(scope="module")
def network() -> Extractor:
    """A real network, whose last bits would tell if batches were cut otherwise."""
    with seeded(0, "network"):
        return ClassifierExtractor(Classifier(1, 8, 8, 10, base=8, dim=16), {})


@pytest.fixture(scope="module")
def by_value() -> Iterator[None]:
    """Ray's workers cannot import this file; its classes travel with the task."""
    import ray.cloudpickle

    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


@pytest.fixture(scope="module")
def pool(ray_local: None, by_value: None) -> Iterator[RayPool]:
    with RayPool(settings(actors=2)) as found:
        yield found


def in_one_go(data: Path, extractor: Extractor, on_error: Any = "fail") -> dict[str, np.ndarray]:
    """What a cache of version 0.1 holds: a loop over the set's own blocks."""
    blocks = list(read_all(data, 512, on_error=on_error))
    found = [extractor.extract(columns["image"]) for columns in blocks]
    arrays = {
        "embedding": np.concatenate([part.embedding_ND for part in found]),
        "label": np.concatenate([columns["label"] for columns in blocks]),
    }
    logits = [part.logits_NK for part in found if part.logits_NK is not None]
    return arrays | ({"logits": np.concatenate(logits)} if logits else {})


def stored(cache: Path, data: Path, extractor: Extractor) -> dict[str, np.ndarray]:
    """The cache's entry, under the name that version 0.1 looks for."""
    key = digest("reference", Manifest.load(data).digest, extractor.digest)
    arrays = FeatureCache(cache).read(f"reference-{extractor.name}-{key}.safetensors")
    assert arrays is not None
    return arrays


def assert_same_bits(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name


@dataclass
class Heard:
    """What an evaluation says."""

    lines: list[tuple[str, int, int]]

    def begin(self, part: str) -> Callable[[int, int], None]:
        return lambda done, total: self.lines.append((part, done, total))


@pytest.mark.parametrize(("actors", "batch_size"), [(0, None), (2, None), (2, 150)])
def test_the_bits_are_those_of_one_loop_for_any_number_of_actors_and_every_image_is_read_once(
    three_shards: Path,
    network: Extractor,
    pool: RayPool,
    tmp_path: Path,
    actors: int,
    batch_size: int | None,
) -> None:
    reference = Recorded(three_shards, tmp_path / "log")
    heard = Heard([])
    workers: Workers = pool if actors else InProcess()
    features = ReferenceFeatures(
        FeatureCache(tmp_path / "cache"), tmp_path / "blocks", workers, heard.begin, batch_size
    )
    found = features.of(reference, [network, Means()])
    assert features.of(reference, [Means(), network]).keys() == found.keys()
    for extractor in (network, Means()):
        assert_same_bits(
            stored(tmp_path / "cache", three_shards, extractor), in_one_go(three_shards, extractor)
        )
    assert reference.decoded() == list(range(1_797)), "once, for both extractors"
    assert heard.lines[0] == ("reference", 0, 1_797) and heard.lines[-1] == ("reference", 1_797, 1_797)
    assert len(heard.lines) == 1 + 3 * 10, "600 images are nine blocks and a part of one"
    assert list((tmp_path / "blocks").iterdir()) == [], "the blocks have served"


def faults_of() -> Callable[[int], tuple[int, float]]:
    """Built in a worker: its process, and the page faults of a step that allocates as much as the last."""
    import resource

    import torch

    def step(task: int) -> tuple[int, float]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(10):
            torch.ones(50 << 18)  # 50 MiB
        return os.getpid(), (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10

    step(0)
    return step


def test_the_same_actors_serve_every_part_and_keep_freed_memory(pool: RayPool) -> None:
    first, again = ([*pool.run(faults_of, range(6))] for _ in range(2))
    assert 1 <= len({process for process, _ in first} | {process for process, _ in again}) <= 2
    assert os.getpid() not in {process for process, _ in first}
    # glibc places a block anew where a small one has taken the edge of its place: seldom, but now and then.
    assert np.mean([faults for _, faults in again]) < 4_000, "50 MiB are 12,800 pages"


def test_an_actor_that_dies_is_replaced_and_changes_nothing(
    three_shards: Path, pool: RayPool, tmp_path: Path
) -> None:
    extractor = Means(tmp_path / "died")
    features = ReferenceFeatures(FeatureCache(tmp_path / "cache"), tmp_path / "blocks", pool)
    features.of(PackedReference(three_shards), [extractor])
    assert (tmp_path / "died").exists()
    assert_same_bits(stored(tmp_path / "cache", three_shards, extractor), in_one_go(three_shards, Means()))


def test_what_was_extracted_before_a_kill_is_not_read_again(three_shards: Path, tmp_path: Path) -> None:
    reference = Recorded(three_shards, tmp_path / "log")

    def killed(part: str) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            if done >= 640:
                raise KeyboardInterrupt

        return tell

    make = partial(ReferenceFeatures, FeatureCache(tmp_path / "cache"), tmp_path / "blocks", InProcess())
    with pytest.raises(KeyboardInterrupt):
        make(killed).of(reference, [Means()])
    assert not (tmp_path / "cache").exists()
    first = reference.decoded()
    heard = Heard([])
    make(heard.begin).of(reference, [Means()])
    assert heard.lines[0] == ("reference", len(first), 1_797)
    assert reference.decoded() == list(range(1_797)), "nothing twice"
    assert_same_bits(stored(tmp_path / "cache", three_shards, Means()), in_one_go(three_shards, Means()))


def test_images_that_are_left_out_change_no_bit_of_the_others_and_too_many_are_refused(
    network: Extractor, tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (700, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "some.npz", images=images, labels=np.arange(700) % 10)
    pack(str(tmp_path / "some.npz"), tmp_path / "some")
    (shard,) = (tmp_path / "some").glob("*.tar")
    content = shard.read_bytes().split(b"\x89PNG")
    spoilt = {n: part.replace(b"IDAT", b"TADI") for n, part in enumerate(content) if n % 13 == 5}
    shard.write_bytes(b"\x89PNG".join(spoilt.get(n, part) for n, part in enumerate(content)))
    features = ReferenceFeatures(FeatureCache(tmp_path / "cache"), tmp_path / "blocks", InProcess())
    found = features.of(PackedReference(tmp_path / "some", "skip"), [network])
    assert len(found["classifier"]) == 700 - len(spoilt)
    assert_same_bits(
        stored(tmp_path / "cache", tmp_path / "some", network),
        in_one_go(tmp_path / "some", network, "skip"),
    )
    shard.write_bytes(
        b"\x89PNG".join(part.replace(b"IDAT", b"TADI") if n % 5 else part for n, part in enumerate(content))
    )
    with pytest.raises(DataError, match="more than max_errors=100"):
        features.of(PackedReference(tmp_path / "some", "skip"), [Means()])


def test_all_metrics_of_an_evaluation_decode_the_reference_once(digits_data: Path, tmp_path: Path) -> None:
    reference = Recorded(digits_data, tmp_path / "log")
    model = untrained(tmp_path / "model", FlowConfig.tiny(), Manifest.load(digits_data).spec)
    phases: list[str] = []
    chosen = settings(
        samples=120,
        features=("classifier", f"{__name__}:MEANS"),
        metrics=("fd", "precision", "class_accuracy", "memorisation", "classification_score", "bits_per_dim"),
        metric_options={"cas_seen": 500},
        likelihood_images=100,
        feature_options={"classifier": {"seen": 500, "base": 8, "dim": 16}},
    )
    report = evaluate(
        Evaluation.of_model(
            chosen,
            model_folder=model,
            reference=reference,
            out=tmp_path / "out",
            cache=tmp_path / "cache",
            progress=lambda *told: None,
            phase=phases.append,
        )
    )
    assert {"fd_classifier", "fd_means", "classification_score_classifier", "bits_per_dim"} <= set(
        report.metrics
    )
    assert reference.decoded() == list(range(1_797)), "classifier, both features, likelihood and metrics"
    assert phases[:3] == ["training classifier", "reference", "samples"]
    assert set(report.metrics) <= set(phases)


MEANS = Means()
