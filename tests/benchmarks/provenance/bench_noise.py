"""What marks in a sampler's noise survive, and what they cost: pictures of a trained diffusion run.

    make bench-noise ARGS="--run fashion-ddpm --real data/fashion-test"

As `bench-watermark`: the share of bits that agree and the share of pictures found (TPR) at a false-positive
rate of 1e-3, whose threshold is measured on real images under the same changes, compared with random
secrets. Pictures are found without their class, as a stranger's would be. What a mark costs is the Frechet
distance of as many samples to the real images, on thumbnails of 8x8, beside that of unmarked samples of two
other seeds. The last line is JSON with everything and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_watermark import CHANGES, RATE, Change

from sfumato.evaluation.features.thumbnail import ThumbnailExtractor
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.statistics import Moments
from sfumato.evaluation.subjects.images import open_images
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.noises import NOISES, NoiseConfig
from sfumato.provenance.stored import Provenance
from sfumato.provenance.watermarks import Images
from sfumato.runtime.runs.targets import model_of
from sfumato.sampling.generator import Generator
from sfumato.sampling.noise_reader import NoiseReader

SECRETS = 20
"""Compared with each real image under each change."""


def marked_by(model: Generator, noise: NoiseConfig | None) -> Generator:
    """The model with this mark."""
    return Generator(
        model.config,
        model.data,
        model.nets,
        name=model.name,
        progress=model.progress,
        provenance=Provenance(ProvenanceSettings(noise=noise)),
    )


def changed(images: Sequence[Images], change: Change) -> list[Images]:
    """As colours, which the changes expect."""
    return [change(np.repeat(image, 3, -1) if image.shape[-1] == 1 else image) for image in images]


def noises(reader: NoiseReader, images: Sequence[Images]) -> list[torch.Tensor]:
    """Found for any number of images."""
    blocks = [images[start : start + reader.block] for start in range(0, len(images), reader.block)]
    return [noise for block in blocks for noise in reader.noise(block)]


def measured(
    config: NoiseConfig, drawn: Sequence[Images], real: dict[str, list[torch.Tensor]], reader: NoiseReader
) -> dict[str, Any]:
    """One scheme: bits and TPR by change."""
    shape = tuple(next(iter(real.values()))[0].shape)
    others = [config.model_copy(update={"secret": f"other {n}"}).build(shape) for n in range(SECRETS)]
    scores = np.sort([o.detect(noise).p_value for each in real.values() for noise in each for o in others])
    threshold = float(scores[int(RATE * len(scores))])
    mark = config.build(shape)
    found = {
        name: [mark.detect(noise) for noise in noises(reader, changed(drawn, change))]
        for name, change in CHANGES.items()
    }
    bits = {
        name: None if each[0].matched is None else float(np.mean([d.matched or 0 for d in each]) / 32)
        for name, each in found.items()
    }
    return {
        "scheme": config.kind,
        "pictures": len(drawn),
        "unmarked": len(scores),
        "threshold": threshold,
        "fpr_at_p": float((scores <= RATE).mean()),
        "bits": bits,
        "tpr": {name: float(np.mean([d.p_value < threshold for d in each])) for name, each in found.items()},
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    head = ["scheme", "pictures", "fd", *CHANGES, "FPR at p"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        bits = {name: "" if value is None else f"{value:.3f}, " for name, value in row["bits"].items()}
        cells = [f"{bits[name]}{row['tpr'][name]:.2f}" for name in CHANGES]
        about = [row["scheme"], str(row["pictures"]), f"{row['fd']:.3f}"]
        lines.append([*about, *cells, f"{row['fpr_at_p']:.1e}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True, help="A diffusion run or model folder.")
    parser.add_argument("--real", required=True, help="Real images that it was not trained on.")
    parser.add_argument("--num", type=int, default=64, help="Pictures of each scheme, and real ones.")
    parser.add_argument("--fd", type=int, default=512, help="Samples for the Frechet distance; 0: none.")
    parser.add_argument(
        "--plain", type=int, default=2, help="Seeds of unmarked samples that it is measured of."
    )
    parser.add_argument("--schemes", nargs="+", default=NOISES.names())
    parser.add_argument("--steps", type=int, help="From picture to noise; default: as many as to draw.")
    parser.add_argument("--refine", type=int, default=2, help="Iterations of each of these steps.")
    parser.add_argument("--set", nargs="*", default=[], help="Sampling options, such as guidance=1.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with model_of(options.run, root=Path.cwd()) as found:
        model = Generator.load(found.model, trust=found.trusted)
    changes = {key: json.loads(value) for key, value in (item.split("=", 1) for item in options.set)}
    model = model.with_options(model.options(changes))
    real = np.concatenate([block for block, _ in open_images(options.real).blocks()])
    real = real[np.random.default_rng(0).permutation(len(real))]
    extract = ThumbnailExtractor(model.data.channels).extract
    reference = Moments.of(extract(real[: max(4 * options.fd, 1)]).embedding_ND)

    def distance(images: Images) -> float:
        if not options.fd:
            return float("nan")
        return frechet_distance(reference, Moments.of(extract(images).embedding_ND))

    seeds = range(1, options.plain + 1) if options.fd else ()
    plain = [distance(model.sample(options.fd, seed=seed)) for seed in seeds]
    print(f"fd of unmarked samples: {', '.join(f'{value:.3f}' for value in plain)}", flush=True)
    marked = marked_by(model, NOISES.make(options.schemes[0]))
    reader = NoiseReader(marked, steps=options.steps, refine=options.refine)
    reader.block = min(reader.block, options.num)
    few = list(real[-options.num :])
    unmarked = {name: noises(reader, changed(few, change)) for name, change in CHANGES.items()}
    rows = []
    for scheme in options.schemes:
        config = NOISES.make(scheme, secret="bench", message="5c3a9f06")
        drawn = marked_by(model, config).sample(max(options.num, options.fd), seed=1)
        row = measured(config, list(drawn[: options.num]), unmarked, reader)
        rows.append({**row, "fd": distance(drawn[: options.fd])})
        print(table(rows[-1:]), flush=True)
    print(f"\n{table(rows)}")
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({"rows": rows, "fd_unmarked": plain, "machine": machine, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
