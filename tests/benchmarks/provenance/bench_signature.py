"""What the signature of a decoder survives, and what it costs: images that a signed first stage reconstructs.

    make bench-signature ARGS="--run my-signed --images data/shapes --photos data/photos"
    make bench-signature ARGS="--train runs --images data/shapes --photos data/photos"

As `bench-watermark`: the share of bits that agree and the share of pictures found (TPR) at a false-positive
rate of 1e-3, whose threshold is measured on photographs of the model's size and on what the unsigned stage
reconstructs, under the same changes, with random messages. PSNR is to that reconstruction. Frechet distances
to the real images, on thumbnails of 8x8, are of the signed and of the unsigned reconstructions. `--train DIR`
first trains an autoencoder with latents of half the size, an extractor and the signed decoder, all small and
in this process, and keeps them in DIR. The last line is JSON with everything and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bare_runs import trained
from bench_watermark import CHANGES, COMPARED, RATE, photos
from torch import Tensor, nn

from sfumato.core.messages import ReadsMessages
from sfumato.evaluation.features.thumbnail import ThumbnailExtractor
from sfumato.evaluation.metrics.frechet import frechet_distance
from sfumato.evaluation.statistics import Moments
from sfumato.evaluation.subjects.images import open_images
from sfumato.families.signature.objectives.stable_signature import STAGE
from sfumato.provenance.watermarks import Images, Message, p_value
from sfumato.runtime.runs.targets import model_of
from sfumato.sampling.generator import Generator
from sfumato.sampling.noise_reader import fitted
from sfumato.sampling.pixels import from_uint8, to_uint8
from sfumato.sampling.pretrained_files import load_stored

BF16 = "train.precision=bf16"
STEPS = {
    "vae": (
        "shapes/vae-kl.yaml",
        "model.network.channels=[16,32]",
        "model.latent.channels=4",
        "model.optimizer.lr={peak: 2.0e-3, warmup_images: 1_000, decay: cosine}",
        "train.batch=32",
        "train.images=8_000",
    ),
    "extractor": ("shapes/extractor.yaml", BF16, "train.images=32_000"),
    "signed": (
        "shapes/signed.yaml",
        BF16,
        "model.objective.message=5c3a9f06",
        "model.objective.first_stage.run=vae",
        "model.objective.extractor.run=extractor",
        "train.images=14_000",
    ),
}
"""Recipes of `pipelines/` with what makes them small, one after the other."""


def train(folder: Path, images: Path) -> Path:
    """The signed run; what `folder` has is not trained again."""
    for name, (recipe, *changes) in STEPS.items():
        run = folder.resolve() / "runs" / name
        if not (run / "model").is_dir():
            spent = trained(run, recipe, changes, images)
            print(f"{name}: {spent:.0f} CPU s", flush=True)
    return run


@torch.no_grad()
def bits_of(model: Generator, image_HWC: Images) -> np.ndarray:
    """What is read, as booleans [32]."""
    assert isinstance(model.family, ReadsMessages)
    image = fitted(image_HWC, *image_HWC.shape[:2], model.data.channels)
    found = model.family.read_message(model.nets, from_uint8(image[None]))[0]
    return np.asarray(found.numpy() > 0)


@torch.no_grad()
def remade(network: Any, images: Images) -> Images:
    """Reconstructions."""
    parts: list[Tensor] = []
    for start in range(0, len(images), 64):
        x_BCHW = from_uint8(images[start : start + 64])
        parts.append(network.decode(network.encode(x_BCHW).mean))
    return to_uint8(torch.cat(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--run", help="A run of family signature, objective stable_signature.")
    of.add_argument("--train", type=Path, metavar="DIR", help="Train one, and what it needs, into DIR.")
    parser.add_argument("--photos", type=Path, help="Folder of tars of photographs.")
    parser.add_argument("--images", required=True, help="Images of its kind.")
    parser.add_argument("--num", type=int, default=512, help="Images for the Frechet distances.")
    parser.add_argument("--changed", type=int, default=100, help="Of these, how many meet the changes.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = str(train(options.train, Path(options.images))) if options.train else options.run
    with model_of(run, root=Path.cwd()) as found:
        model = Generator.load(found.model, trust=found.trusted)
    family: Any = model.family
    spec = family.nets[STAGE]
    stage: nn.Module = spec.build()
    load_stored(stage, spec.weights)
    real = np.concatenate([block for block, _ in open_images(options.images).blocks()])
    real = real[np.random.default_rng(0).permutation(len(real))]
    images, reference = real[: options.num], real[options.num : 5 * options.num]
    signed, plain = remade(model.nets["ema"], images), remade(stage.eval(), images)
    error = np.square(signed.astype(float) - plain).mean((1, 2, 3))
    extract = ThumbnailExtractor(model.data.channels).extract
    moments = [Moments.of(extract(each).embedding_ND) for each in (reference, signed, plain)]
    own = Message(message=str(family.message)).bits > 0
    rng = np.random.default_rng(1)
    side = model.data.height
    unmarked = list(photos(options.photos, options.changed, side)) if options.photos else []
    messages = -(-COMPARED // (options.changed * len(CHANGES)))
    bits, scores, values = {}, [], {}
    for name, change in CHANGES.items():
        three = [np.repeat(each, 3, -1) if each.shape[-1] == 1 else each for each in (signed, plain)]
        matched = [int((bits_of(model, change(one)) == own).sum()) for one in three[0][: options.changed]]
        for one in [*unmarked, *three[1][: options.changed]]:
            read = bits_of(model, change(one))
            others = rng.integers(0, 2, (messages, 32)) > 0
            scores += [p_value(int((read == other).sum())) for other in others]
        bits[name], values[name] = float(np.mean(matched) / 32), [p_value(each) for each in matched]
    threshold = float(np.sort(scores)[int(RATE * len(scores))])
    tpr = {name: float(np.mean([value < threshold for value in each])) for name, each in values.items()}
    result = {
        "run": model.name,
        "pictures": options.changed,
        "unmarked": len(scores),
        "photos": len(unmarked),
        "psnr": float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-9)))),
        "fd_signed": frechet_distance(moments[0], moments[1]),
        "fd_unsigned": frechet_distance(moments[0], moments[2]),
        "threshold": threshold,
        "fpr_at_p": float(np.mean(np.array(scores) <= RATE)),
        "bits": bits,
        "tpr": tpr,
    }
    head = ["pictures", "PSNR", "fd signed, unsigned", *CHANGES]
    row = [str(options.changed), f"{result['psnr']:.1f} dB"]
    row += [f"{result['fd_signed']:.3f}, {result['fd_unsigned']:.3f}"]
    row += [f"{bits[name]:.3f}, {tpr[name]:.2f}" for name in CHANGES]
    print("\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), row)))
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    print(json.dumps({**result, "machine": machine, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
