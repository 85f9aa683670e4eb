"""Images a second through the default feature network, and its features against those of the CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.core.batch import DataSpec
from sfumato.evaluation.features import all_features
from sfumato.evaluation.features.efficientnet_lite0 import transform

NAME = "efficientnet_lite0"
TOLERANCE = 1e-3


def run(check: Any) -> Iterator[tuple[str, bool | None, dict[str, Any]]]:
    """One line."""

    class Real:
        spec = DataSpec(3, 32, 32)

    kind = all_features()[NAME]
    extractor: Any = kind.build(Real(), kind.options(), Path())  # type: ignore[arg-type]  # it reads only `spec`
    rows = 4 if check.tiny else 2_048
    images = np.random.default_rng(0).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    here = extractor.extract(images[:4]).embedding_ND
    network = extractor._network.to(check.device)
    x_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2).to(check.device)

    def features(x: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return network.extract_features(transform(x)).mean(dim=(2, 3))  # type: ignore[no-any-return]

    there = features(x_BCHW[:4]).float().cpu().numpy()
    apart = float(np.abs(here - there).max() / np.abs(here).max())
    features(x_BCHW[:256])
    check.synchronise()
    start = time.perf_counter()
    for part in x_BCHW.split(256):
        features(part)
    check.synchronise()
    rate = rows / (time.perf_counter() - start)
    yield f"{NAME}, 32x32 images", apart < TOLERANCE, {"apart": f"{apart:.1e}", "images_per_s": round(rate)}
