"""Thumbnails are means of equal parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfumato.core.batch import DataSpec
from sfumato.evaluation.features.thumbnail import ThumbnailExtractor, ThumbnailKind, ThumbnailOptions
from sfumato.evaluation.references.reference import PackedReference


@pytest.mark.parametrize("channels", [1, 3])
def test_means_of_equal_parts(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 16, channels), dtype=np.uint8)
    found = ThumbnailExtractor(channels).extract(images).embedding_ND
    means = images.reshape(5, 8, 4, 8, 2, channels).mean((2, 4)) / 127.5 - 1
    np.testing.assert_allclose(found, means.transpose(0, 3, 1, 2).reshape(5, -1), atol=1e-6)
    assert found.dtype == np.float32


def test_the_kind(digits_data: Path, tmp_path: Path) -> None:
    kind = ThumbnailKind()
    extractor = kind.build(PackedReference(digits_data), ThumbnailOptions(), tmp_path)
    assert extractor.dim == kind.dimension(ThumbnailOptions(), DataSpec(1, 8, 8, ())) == 64
    assert kind.problems(DataSpec(1, 8, 8, ())) == []
    (problem,) = kind.problems(DataSpec(1, 4, 9, ()))
    assert "8x8 or more, this data is 9x4" in problem
