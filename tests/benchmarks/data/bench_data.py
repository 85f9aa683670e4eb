"""Images a second that a training process is given: Sfumato's reading on Ray against other ways to read.

`make bench-data` makes shards of MNIST (28x28 PNG) and of photographs (128x128 JPEG, repeated) from the real
images in SFUMATO_SHARED_DATA, and lets every contender hand uint8 batches of 256 to one process, each in a
fresh process, one after the other, after a warm-up of a whole epoch in which the sum of all pixels is
compared. `bare` is a loop that reads and decodes and does nothing else, one a core at the same time, summed.
Then: peak memory for a small and a large data set, what a slow consumer leaves in the object store, and the
time to the first batch. Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"})

import numpy as np
from data_contenders import BATCH, CONTENDERS, ON_RAY, STREAMS, Place

CORES = len(os.sched_getaffinity(0))
SHARED = Path(os.environ.get("SFUMATO_SHARED_DATA", "../shared/data"))
SETS = {"mnist": "png", "photos": "jpg"}
TARGETS = {
    "mnist": {"webdataset": 2.0, "read_webdataset": 4.0, "bare": 0.5},
    "photos": {"webdataset": 1.2, "read_webdataset": 1.5},
}


def encoded_images(name: str) -> list[bytes]:
    """The encoded images of a set, once each."""
    import tarfile

    from sfumato.data.format.images import png

    if name == "mnist":
        with np.load(SHARED / "mnist70k.npz", allow_pickle=False) as arrays:
            return [png(image[:, :, None]) for image in arrays["x_train"][: 32 * 1024]]
    out = []
    for path in sorted((SHARED / "photos").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".jpg"):
                    file = tar.extractfile(member)
                    assert file is not None
                    out.append(file.read())
    return out


def make_shards(folder: Path, images: list[bytes], extension: str, total: int, shard: int = 4096) -> None:
    """`total` samples, the images again and again, as a data set of Sfumato."""
    from PIL import Image

    from sfumato.data.format import index
    from sfumato.data.format.manifest import ImageInfo, Manifest, ShardInfo
    from sfumato.data.format.tar import TarWriter

    folder.mkdir(parents=True)
    shards = []
    for first in range(0, total, shard):
        path = folder / f"bench-{first // shard:06d}.tar"
        count = min(shard, total - first)
        with path.open("wb") as file:
            tar = TarWriter(file)
            for number in range(first, first + count):
                tar.add(f"{number:08d}.{extension}", images[number % len(images)])
            digest = tar.finish()
        shards.append(ShardInfo(name=path.name, samples=count, bytes=path.stat().st_size, sha256=digest))
        index.build(folder, path.name).save(folder, shards[-1])
    look = Image.open(io.BytesIO(images[0]))
    info = ImageInfo(channels=1 if look.mode == "L" else 3, height=look.height, width=look.width)
    Manifest(name="bench", shards=tuple(shards), image=info).save(folder)


def many_times(source: Path, folder: Path, times: int) -> None:
    """The same shards under further names: a data set `times` as large that takes no more disk."""
    from sfumato.data.format.index import file_name
    from sfumato.data.format.manifest import Manifest

    folder.mkdir()
    manifest = Manifest.load(source)
    shards = []
    for number in range(times):
        for shard in manifest.shards:
            name = f"{number:04d}-{shard.name}"
            os.link(source / shard.name, folder / name)
            os.link(source / file_name(shard.name), folder / file_name(name))
            shards.append(shard.model_copy(update={"name": name}))
    manifest.model_copy(update={"shards": tuple(shards)}).save(folder)


@contextlib.contextmanager
def on_ray(processes: int) -> Iterator[None]:
    """A Ray of our own, with a logical CPU for each read task."""
    import ray

    with tempfile.TemporaryDirectory(prefix="sf-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=processes,
            include_dashboard=False,
            object_store_memory=512 << 20,
            log_to_driver=False,
            logging_level="error",
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
        )
        try:
            yield
        finally:
            _wait_for_ray_datas_threads()
            ray.shutdown()


def _wait_for_ray_datas_threads(seconds: float = 20) -> None:
    """They end soon after their iterators; one that found Ray gone would end the process."""
    end = time.monotonic() + seconds
    while any("iter_threaded" in t.name or "Prefetcher" in t.name for t in threading.enumerate()):
        if time.monotonic() > end:
            return
        time.sleep(0.1)


def measure(name: str, place: Place, epoch: int, seconds: float) -> dict[str, float]:
    """One contender in this process: a warm-up of an epoch, whose pixels are summed, then the clock."""
    with on_ray(place.processes) if name in ON_RAY else contextlib.nullcontext():
        batches = CONTENDERS[name](place)
        start = time.perf_counter()
        first = 0.0
        total = 0
        for _ in range(epoch // BATCH):
            total += int(next(batches).sum(dtype=np.int64))
            first = first or time.perf_counter() - start
        count, start = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            count += len(next(batches))
        batches.close()  # type: ignore[attr-defined]
    return {"images_per_second": count / elapsed, "first_batch_s": first, "pixels": float(total)}


def run_alone(arguments: list[str], copies: int = 1) -> list[dict[str, float]]:
    """This script with other arguments, in fresh processes at the same time; what they print last."""
    command = [sys.executable, __file__, *arguments]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(copies)
    ]
    results = []
    for process in running:
        out, err = process.communicate()
        if process.returncode:
            reason = (err.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(reason[:200])
        results.append(json.loads(out.strip().splitlines()[-1]))
    return results


def compare(name: str, root: Path, total: int, names: list[str], seconds: float) -> dict[str, Any]:
    """All contenders on one set; the table and the ratios."""
    extension = SETS[name]
    make_shards(root / name / "shards", encoded_images(name), extension, total)
    speeds: dict[str, float] = {}
    pixels: dict[str, float] = {}
    for contender in names:
        copies = CORES if contender.startswith("bare") else 1
        options = ["--one", contender, "--root", str(root / name), "--extension", extension]
        options += ["--epoch", str(total), "--seconds", str(seconds)]
        try:
            results = run_alone(options, copies)
        except RuntimeError as error:
            if contender == "sfumato":
                raise
            print(f"{name:8} {contender:16} skipped: {error}", flush=True)
            continue
        speeds[contender] = sum(result["images_per_second"] for result in results)
        pixels[contender] = results[0]["pixels"]
        print(f"{name:8} {contender:16} {speeds[contender]:>10,.0f} images/s", flush=True)
    different = [contender for contender, value in pixels.items() if value != pixels["sfumato"]]
    ratios = {other: round(speeds["sfumato"] / speed, 3) for other, speed in speeds.items() if speed}
    return {
        "images_per_second": {contender: round(speed) for contender, speed in speeds.items()},
        "sfumato_against": ratios,
        "other_pixels_than_sfumato": different,
        "reached": {
            other: ratios[other] >= target for other, target in TARGETS[name].items() if other in ratios
        },
    }


def growth(place: Place, seconds: float) -> dict[str, float]:
    """Peak memory of the consumer and of all read processes, a slow consumer's store, the first batches."""
    import psutil
    import ray

    from sfumato.data.config import DataSettings
    from sfumato.data.format.manifest import Manifest
    from sfumato.data.reading.local_reader import RankPlan
    from sfumato.data.reading.ray_reader import RankReader

    def reader(images: int) -> Any:
        settings = DataSettings(path=str(place.shards), streams=STREAMS, read_tasks=place.processes)
        plan = RankPlan(settings, Manifest.load(place.shards), 0, 0, 1)
        return RankReader(plan).batches(images=images, batch=BATCH, collate=lambda columns: columns)

    def first_batch(images: int) -> float:
        start = time.perf_counter()
        reading = reader(images)
        next(reading)
        spent = time.perf_counter() - start
        reading.close()
        return round(spent, 2)

    def store_used() -> float:
        total = ray.cluster_resources()["object_store_memory"]
        return float(total - ray.available_resources().get("object_store_memory", 0.0)) / 2**20

    with on_ray(place.processes):
        samples = Manifest.load(place.shards).samples
        out: dict[str, float] = {"samples": samples, "first_batch_cold_s": first_batch(0)}
        out["first_batch_warm_s"] = first_batch(0)
        out["first_batch_resumed_s"] = first_batch(int(2.37 * samples) // BATCH * BATCH)
        reading = reader(0)
        own, tasks, count = 0.0, 0.0, 0
        me, start = psutil.Process(), time.perf_counter()
        while time.perf_counter() - start < seconds:
            count += len(next(reading)[0].batch["image"])
            if count % (40 * BATCH) == 0:
                own = max(own, me.memory_info().rss)
                workers = [p for p in me.children(recursive=True) if "ray::" in " ".join(p.cmdline()[:1])]
                tasks = max(tasks, *(p.memory_info().rss - p.memory_info().shared for p in workers), 0.0)
        out |= {"images": count, "rank_rss_mib": round(own / 2**20), "read_task_mib": round(tasks / 2**20)}
        stores = []
        for _ in range(6):  # a consumer that takes a batch a second
            time.sleep(1)
            next(reading)
            stores.append(round(store_used(), 1))
        out["slow_consumer_store_mib"] = max(stores[2:])
        reading.close()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--seconds", type=float, default=10, help="timed seconds of each contender")
    parser.add_argument(
        "--large", type=int, default=500_000, help="samples of the large set; 0 leaves it out"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--extension", help=argparse.SUPPRESS)
    parser.add_argument("--epoch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        place = Place(options.root, options.extension or "png", CORES)
        if options.one == "growth":
            print(json.dumps(growth(place, options.seconds)))
        else:
            print(json.dumps(measure(options.one, place, options.epoch, options.seconds)))
        return
    if not (SHARED / "mnist70k.npz").is_file():
        sys.exit(f"no images: {SHARED}/mnist70k.npz is missing; name their folder in SFUMATO_SHARED_DATA")
    result: dict[str, Any] = {"machine": f"{CORES} cores, {platform.processor() or platform.machine()}"}
    names = ["sfumato", *(name for name in options.contenders if name != "sfumato")]
    with tempfile.TemporaryDirectory(prefix="sfumato-bench-") as folder:
        root = Path(folder)
        for name in options.sets:
            total = 32 * 1024 if name == "mnist" else 8 * 1024
            result[name] = compare(name, root, total, names, options.seconds)
        if options.large:
            small = root / "small" / "shards"
            make_shards(small, encoded_images("mnist"), "png", 10_240, 1024)
            large = root / "large" / "shards"
            large.parent.mkdir()
            many_times(small, large, max(1, options.large // 10_240))
            for name in ("small", "large"):
                arguments = ["--one", "growth", "--root", str(root / name), "--seconds", str(options.seconds)]
                (result[f"{name}_set"],) = run_alone(arguments)
                print(name, result[f"{name}_set"], flush=True)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
