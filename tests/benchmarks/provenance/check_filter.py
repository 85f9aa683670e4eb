"""How often a filter finds something in real images that have nothing to find: its false positives.

    make check-filter ARGS="--sets data/photos data/emoji data/mnist70k.npz --num 200"

A set is a folder of tars with images, or an .npz with an array of images [N, H, W] or [N, H, W, C]; the
digits of scikit-learn come by themselves. Images are taken evenly from the whole set. Prints the share at
each threshold with its exact (Clopper-Pearson) upper end at 95 %, and the largest scores.
"""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import beta
from sklearn.datasets import load_digits

from sfumato.provenance.filters import FILTERS, Images

THRESHOLDS = (0.2, 0.5, 0.8)


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
    classifier = FILTERS.make(options.kind).build()
    sets = {"digits (8x8)": of_array((load_digits().images * 15.9375).astype(np.uint8), options.num)}
    for place in options.sets:
        if place.suffix == ".npz":
            with np.load(place, allow_pickle=False) as arrays:
                images = max((arrays[name] for name in arrays.files), key=lambda array: array.size)
            sets[place.stem] = of_array(images, options.num)
        else:
            sets[place.name] = of_tars(place, options.num)
    print(f"| set | images | {' | '.join(f'>= {level}' for level in THRESHOLDS)} | largest |")
    print("|---|---|---|---|---|---|")
    for name, images in sets.items():
        scores = np.concatenate([classifier.scores(one[None]) for one in images])
        cells = []
        for level in THRESHOLDS:
            k, n = int((scores >= level).sum()), len(scores)
            upper = 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))
            cells.append(f"{k / n:.1%} (to {upper:.1%})")
        print(f"| {name} | {len(scores)} | {' | '.join(cells)} | {scores.max():.2f} |", flush=True)


if __name__ == "__main__":
    main()
