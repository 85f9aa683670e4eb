"""A sanity table for every extractor: does each metric order good and bad sets of images rightly?

`make check-features` takes the digits, Fashion-MNIST (Debian's dataset-fashion-mnist) and colour photographs:
a folder of WebDataset shards (--photos) and any labelled .npz (--npz FILE, with images and labels). Sets that
are missing are skipped, and said so. Prints a table and what is out of order and, last, one JSON line; exit
status 1 if anything is out of order.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from feature_sanity import METRICS, U8, Labels, compared, faults, figures, halves
from PIL import Image

from sfumato.core.allocator import keep_freed_memory
from sfumato.errors import SfumatoError
from sfumato.evaluation.features import all_features
from sfumato.evaluation.features.extractor import built

FASHION = Path("/usr/share/datasets/fashion-mnist")
Named = tuple[str, U8, Labels]


def digits() -> Iterator[Named]:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = (found.images * 255 / 16).round().astype(np.uint8)[..., None]
    yield "digits", images, found.target.astype(np.int64)


def fashion(folder: Path, most: int) -> Iterator[Named]:
    files = sorted(folder.rglob("train-*-ubyte*")) if folder.is_dir() else []
    if len(files) < 2:
        print(f"fashion-mnist: skipped, no IDX files in {folder}")
        return
    images, labels = (
        _idx(next(file for file in files if part in file.name)) for part in ("images", "labels")
    )
    yield "fashion-mnist", images[:most, ..., None], labels[:most].astype(np.int64)


def photos(folder: Path | None) -> Iterator[Named]:
    shards = sorted(folder.glob("*.tar")) if folder else []
    if not shards:
        print(f"photos: skipped, no shards in {folder}")
        return
    images, sources = [], []
    for shard in shards:
        with tarfile.open(shard) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                if member.name.endswith(".jpg"):
                    image = Image.open(io.BytesIO(content.read())).convert("RGB")
                    images.append(np.asarray(image.resize((64, 64), Image.Resampling.LANCZOS)))
                elif member.name.endswith(".json"):
                    sources.append(json.load(content)["source"])
    names = sorted(set(sources))
    yield "photos", np.stack(images), np.array([names.index(source) for source in sources])


def arrays(file: Path, most: int) -> Iterator[Named]:
    with np.load(file, allow_pickle=False) as archive:
        names = list(archive)
        images = archive[next(name for name in names if name.startswith(("images", "x")))]
        labels = archive[next(name for name in names if name.startswith(("labels", "y")))]
    images = images[..., None] if images.ndim == 3 else images
    yield file.stem, images[:most], labels[:most].astype(np.int64)


def _idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    shape = [int.from_bytes(content[4 + 4 * axis : 8 + 4 * axis], "big") for axis in range(content[3])]
    return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def show(name: str, found: dict[str, dict[str, float]]) -> None:
    print(f"\n{name}")
    print(f"{'':14}" + "".join(f"{metric:>11}" for metric in METRICS))
    for row, values in found.items():
        print(f"{row:14}" + "".join(f"{values[metric]:11.4g}" for metric in METRICS))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", nargs="+", default=["classifier", "efficientnet_lite0"])
    parser.add_argument("--fashion", type=Path, default=FASHION)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--npz", type=Path, nargs="*", default=[])
    parser.add_argument("--most", type=int, default=20_000, help="images of a set, at most")
    parser.add_argument("--samples", type=int, default=1_000, help="images of a compared set, at most")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--only", nargs="*", help="these sets: digits, fashion-mnist, photos, names of .npz")
    arguments = parser.parse_args()
    keep_freed_memory(of_any_size=True)
    cache = arguments.cache or Path(tempfile.mkdtemp(prefix="sf-features-"))
    sets = [*digits(), *fashion(arguments.fashion, arguments.most), *photos(arguments.photos)]
    sets += [named for file in arguments.npz for named in arrays(file, arguments.most)]
    if arguments.only:
        sets = [named for named in sets if named[0] in arguments.only]
    results, wrong = {}, {}
    for data, images, labels in sets:
        real, rest = halves(images, labels, data)
        for features in arguments.features:
            start, kind = time.perf_counter(), all_features()[features]
            name = f"{data}, {features}"
            try:
                extractor = built(kind, real, kind.options(), cache)
            except SfumatoError as error:
                print(f"\n{name}: skipped, {error}")
                continue
            results[name] = figures(extractor, real, compared(rest, arguments.samples))
            wrong[name] = faults(results[name])
            accuracy = extractor.facts.get("held_out_accuracy")
            known = "" if accuracy is None else f", held-out accuracy {accuracy:.3f}"
            show(f"{name}{known}, {time.perf_counter() - start:.0f} s", results[name])
            print("\n".join(f"  out of order: {line}" for line in wrong[name]) or "  in order")
    print(json.dumps({"figures": results, "out_of_order": wrong}))
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main())
