"""What watermarks survive on real photographs, and what they cost; beside DWT-DCT of invisible-watermark.

    make bench-watermark ARGS="--photos data/photos"

A table for each size: the share of bits that agree, and the share of pictures found (TPR) at a false-
positive rate of 1e-3. The threshold is measured: the p-value that 1 in 1,000 of unmarked photographs, each
under every change and compared with many random messages, falls below. `FPR at p` says how many of them are
below p = 1e-3, which is 1e-3 or less if the p-values are right. The peer gives bits but no p-value; it gets
the binomial one. `fd` is the Frechet distance (ImageNet features of EfficientNet-Lite0) of the marked
photographs to the same ones unmarked, beside that of JPEG 90 to them. Photographs are tars of 128x128; for a
larger size they are enlarged (bicubic). The last line is JSON with everything and the machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from sfumato.core.batch import DataSpec
from sfumato.evaluation.features.efficientnet_lite0 import EfficientNetKind, EfficientNetOptions
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.statistics import Moments
from sfumato.provenance.watermarks import WATERMARKS, Bits, Detection, Images, Watermark, p_value

RATE = 1e-3
COMPARED = 2_000
"""Unmarked pictures and random messages for each scheme and size, about."""
Change = Callable[[Images], Images]


def jpeg(quality: int) -> Change:
    """Compressed and decoded."""

    def change(image: Images) -> Images:
        out = io.BytesIO()
        Image.fromarray(image).save(out, "JPEG", quality=quality)
        return np.asarray(Image.open(out))

    return change


def resized(image: Images) -> Images:
    """To half the size and back."""
    picture = Image.fromarray(image)
    half = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BICUBIC)
    return np.asarray(half.resize(picture.size, Image.Resampling.BICUBIC))


def cropped(image: Images) -> Images:
    """The middle 0.8 of each side."""
    height, width = image.shape[:2]
    top, left = height // 10, width // 10
    return image[top : top + height * 4 // 5, left : left + width * 4 // 5]


def blurred(image: Images) -> Images:
    """Gaussian, a deviation of one pixel."""
    return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1)))


def noisy(image: Images) -> Images:
    """Gaussian noise of deviation 10."""
    noise = np.random.default_rng(int(image.sum())).normal(0, 10, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def brighter(image: Images) -> Images:
    """1.3 times as bright."""
    return (image * 1.3).round().clip(0, 255).astype(np.uint8)


CHANGES: dict[str, Change] = {
    "none": lambda image: image,
    "JPEG 90": jpeg(90),
    "JPEG 75": jpeg(75),
    "JPEG 50": jpeg(50),
    "resize 0.5": resized,
    "crop 0.8": cropped,
    "blur": blurred,
    "noise": noisy,
    "brightness": brighter,
}


class Remembering:
    """A network that keeps its last answer: many messages are compared with one picture."""

    def __init__(self, network: Any) -> None:
        self._network, self._frame, self._answer = network, np.zeros(0), None

    def run(self, names: Any, inputs: dict[str, Any]) -> Any:
        """As onnxruntime's."""
        if not np.array_equal(inputs["frame"], self._frame):
            self._frame, self._answer = inputs["frame"], self._network.run(names, inputs)
        return self._answer


class Peer(Watermark):
    """DWT-DCT of the package invisible-watermark, which wants 256x256 and OpenCV."""

    def embed(self, images_NHWC: Images, bits: Bits) -> Images:
        from imwatermark import WatermarkEncoder

        encoder = WatermarkEncoder()
        encoder.set_watermark("bits", bits.tolist())
        return np.stack([encoder.encode(image[..., ::-1], "dwtDct")[..., ::-1] for image in images_NHWC])

    def detect(self, image_HWC: Images, bits: Bits) -> Detection:
        from imwatermark import WatermarkDecoder

        if image_HWC.shape[0] * image_HWC.shape[1] < 256**2:  # it refuses crops of 256x256
            image_HWC = np.asarray(Image.fromarray(image_HWC).resize((256, 256), Image.Resampling.BICUBIC))
        found = WatermarkDecoder("bits", 32).decode(np.ascontiguousarray(image_HWC[..., ::-1]), "dwtDct")
        matched = int((np.asarray(found, bool) == (bits > 0)).sum())
        return Detection(matched, p_value(matched))


class Distances:
    """Frechet distances of changed pictures to these."""

    def __init__(self, pictures: Sequence[Images]) -> None:
        size = DataSpec(3, *pictures[0].shape[:2])
        self._extract = EfficientNetKind().build(_Of(size), EfficientNetOptions(), Path()).extract
        self._moments = self._of(pictures)

    def to(self, changed: Sequence[Images]) -> float:
        """Of as many pictures."""
        return frechet_distance(self._moments, self._of(changed))

    def _of(self, pictures: Sequence[Images]) -> Moments:
        return Moments.of(self._extract(np.stack(pictures)).embedding_ND)


class _Of:
    """What an extractor with fixed weights asks of a reference."""

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec


def photos(folder: Path, num: int, size: int) -> list[Images]:
    """The first photographs in the tars, evaluation before training."""
    found: list[Images] = []
    for path in sorted(folder.glob("*.tar"), reverse=True):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".png", ".webp")) and len(found) < num:
                    with Image.open(io.BytesIO(tar.extractfile(member).read())) as picture:  # type: ignore[union-attr]
                        side = (size, size)
                        found.append(
                            np.asarray(picture.convert("RGB").resize(side, Image.Resampling.BICUBIC))
                        )
    return found


def measured(name: str, watermark: Watermark, size: int, pictures: Sequence[Images]) -> dict[str, Any]:
    """One scheme at one size; every picture has its own random message."""
    rng = np.random.default_rng(size)
    bits = [rng.integers(0, 2, 32).astype(np.uint8) for _ in pictures]
    distances = Distances(pictures)
    start = time.process_time()
    marked = [watermark.embed(image[None], own)[0] for image, own in zip(pictures, bits, strict=True)]
    embedding = (time.process_time() - start) / len(pictures)
    errors = [np.mean((a.astype(float) - b) ** 2) for a, b in zip(pictures, marked, strict=True)]
    messages = -(-COMPARED // (len(pictures) * len(CHANGES)))
    false: dict[str, list[float]] = {}
    true: dict[str, list[Detection]] = {}
    start = time.process_time()
    for change, apply in CHANGES.items():
        true[change] = [watermark.detect(apply(image), own) for image, own in zip(marked, bits, strict=True)]
    detecting = (time.process_time() - start) / len(pictures) / len(CHANGES)
    for change, apply in CHANGES.items():
        others = rng.integers(0, 2, (messages, 32)).astype(np.uint8)
        changed = [apply(image) for image in pictures]
        false[change] = [watermark.detect(image, own).p_value for image in changed for own in others]
    scores = np.sort(np.concatenate([np.array(each) for each in false.values()]))
    threshold = float(scores[int(RATE * len(scores))])
    return {
        "scheme": name,
        "size": size,
        "pictures": len(pictures),
        "unmarked": len(scores),
        "psnr": float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-9)))),
        "threshold": threshold,
        "fd": distances.to(marked),
        "fd_jpeg": distances.to([CHANGES["JPEG 90"](image) for image in pictures]),
        "fpr_at_p": float((scores <= RATE).mean()),
        "embed_s": embedding,
        "detect_s": detecting,
        "bits": {key: float(np.mean([d.matched for d in each]) / 32) for key, each in true.items()},
        "tpr": {key: float(np.mean([d.p_value < threshold for d in each])) for key, each in true.items()},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: bits and TPR by change."""
    head = ["scheme", "photos", "PSNR", "fd, of JPEG 90", *CHANGES, "FPR at p", "CPU s to mark, find"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [f"{row['bits'][change]:.3f}, {row['tpr'][change]:.2f}" for change in CHANGES]
        about = [row["scheme"], str(row["pictures"]), f"{row['psnr']:.1f} dB"]
        about += [f"{row['fd']:.2f}, {row['fd_jpeg']:.2f}"]
        cost = f"{row['embed_s']:.3f}, {row['detect_s']:.3f}"
        lines.append([*about, *cells, f"{row['fpr_at_p']:.1e}", cost])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="Folder of tars of photographs.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--num", type=int, default=100, help="Photographs for each cheap scheme and size.")
    parser.add_argument("--slow", type=int, default=12, help="For rivagan.")
    parser.add_argument("--only", nargs="+", help="Schemes.")
    options = parser.parse_args()
    if not list(options.photos.glob("*.tar")):
        parser.exit(2, f"{options.photos}: no tars of photographs there\n")
    of_files = {"trustmark", "seal"}
    schemes: dict[str, Watermark] = {
        name: WATERMARKS.make(name).build() for name in WATERMARKS.names() if name not in of_files
    }
    riva: Any = schemes["rivagan"]
    riva._decoder = Remembering(riva._decoder)
    if find_spec("cv2") is not None:
        schemes["DWT-DCT (peer)"] = Peer()
    found = []
    for size in options.sizes:
        rows = []
        for name, watermark in schemes.items():
            if (options.only and name not in options.only) or (isinstance(watermark, Peer) and size < 256):
                continue
            num = options.slow if name == "rivagan" else options.num
            rows.append(measured(name, watermark, size, photos(options.photos, num, size)))
        print(
            f"\n{size}x{size}: bits that agree, TPR at a measured FPR of {RATE:g}\n\n{table(rows)}",
            flush=True,
        )
        found += rows
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"rows": found, "machine": machine, "numpy": np.__version__}))


if __name__ == "__main__":
    main()
