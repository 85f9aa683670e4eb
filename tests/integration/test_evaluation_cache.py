"""The cache of reference features: one key, one content, wherever it lies and however many make it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_evaluation import reference_features

from sfumato.data.packing.pack import pack
from sfumato.errors import DataError
from sfumato.evaluation.features.extractor import Extracted
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.references.reference import PackedReference


class Corners:
    """An extractor small enough to see through: the four corner pixels."""

    name, dim, digest = "corners", 4, "1"
    facts: Mapping[str, object] = {}

    def __init__(self, gate: threading.Barrier | None = None) -> None:
        self.calls = 0
        self._gate = gate

    def extract(self, images_NHWC: np.ndarray) -> Extracted:
        if self._gate is not None and self.calls == 0:
            self._gate.wait(timeout=600)  # both have found the cache empty
        self.calls += 1
        corners = images_NHWC[:, [0, 0, -1, -1], [0, -1, 0, -1], 0]
        return Extracted(corners.astype(np.float32))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> PackedReference:
    folder = tmp_path_factory.mktemp("few")
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    np.savez(folder / "few.npz", images=images, labels=np.arange(40) % 4)
    pack(str(folder / "few.npz"), folder / "few")
    return PackedReference(folder / "few")


def test_two_that_make_an_entry_at_once_leave_one_whole_entry(
    reference: PackedReference, tmp_path: Path
) -> None:
    gate = threading.Barrier(2)
    extractors = [Corners(gate), Corners(gate)]
    found: list[Any] = [None, None]

    def make(number: int) -> None:
        found[number] = reference_features(reference, extractors[number], FeatureCache(tmp_path))

    threads = [threading.Thread(target=make, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [e.calls for e in extractors] == [1, 1], "neither waited for the other"
    assert len(list(tmp_path.iterdir())) == 1
    late = Corners()
    again = reference_features(reference, late, tmp_path)
    assert late.calls == 0
    for one in (*found, again):
        images, labels = reference.read(0, 40)
        np.testing.assert_array_equal(one.embedding_ND[:, 0], images[:, 0, 0, 0])
        np.testing.assert_array_equal(one.label_N, labels)


def test_an_entry_in_object_storage_serves_other_machines(
    reference: PackedReference, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    place = f"s3://{s3_server.bucket}/cache?endpoint_override={s3_server.endpoint.split('//')[1]}&scheme=http"
    first, second = Corners(), Corners()
    made = reference_features(reference, first, FeatureCache(place))
    read = reference_features(reference, second, FeatureCache(place))
    assert (first.calls, second.calls) == (1, 0)
    np.testing.assert_array_equal(made.embedding_ND, read.embedding_ND)
    assert FeatureCache(place).folder is None, "what must lie on a disk goes elsewhere"


def test_a_place_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nfs9://there/cache: this place cannot be read"):
        FeatureCache("nfs9://there/cache")
