"""How well detectors tell samples of small models of digits from real digits, within and across families.

A GAN, a diffusion model, a VAE and an autoregressive model are trained for a short time each; `sfumato
detector train` learns each one's samples against real digits and is judged on all. Beside the matrix:
`detectability` and the bias report of each model. The last line is JSON.

    make bench-detector ARGS="--share 2"
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from bare_runs import trained

from sfumato.data.packing.pack import pack
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation
from sfumato.evaluation.references.reference import PackedReference
from sfumato.evaluation.stage import evaluate
from sfumato.runtime.commands import detector
from sfumato.runtime.runs.display import Display

MODELS: dict[str, tuple[Any, ...]] = {
    "dcgan": (24_000,),
    "ddpm": (16_000, "model.network.channels=[16,32]", "train.batch=64"),
    "vae": (16_000, "train.batch=64"),
    "pixelcnn": (8_000, "model.network.width=32", "model.network.layers=4", "train.batch=64"),
}
"""Images that each one's recipe trains on here, and what is changed in it."""
FIGURES = ("fd", "precision", "recall", "class_accuracy", "detectability", "bias")


def figures(model: Path, data: Path, cache: Path, samples: int) -> dict[str, Any]:
    """Figures with intervals, and the bias report."""
    settings = EvaluateSettings(samples=samples, metrics=FIGURES, actors=0, preview=0)
    report = evaluate(
        Evaluation.of_model(
            settings,
            model_folder=model,
            reference=PackedReference(data),
            out=model.parent / "out",
            cache=cache,
        )
    )
    return {
        "figures": {n: [v, report.intervals.get(n)] for n, v in report.metrics.items()},
        "details": {n: d for n, d in report.details.items() if n.startswith("bias")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="Of each model's training.")
    parser.add_argument("--only", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--samples", type=int, default=1_000, help="Of each model; half of them judge.")
    parser.add_argument("--seen", type=int, default=8_000, help="Images that each detector learns from.")
    parser.add_argument("--evaluated", nargs="*", choices=MODELS, help="Of which figures are measured.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="sf-") as folder, Display() as display:
        root, found = Path(folder), {}
        data = root / "digits"
        pack("digits", data)
        for name in options.only:
            images, *changes = MODELS[name]
            images = int(images * options.share)
            changes = [f"train.images={images}", *changes]
            spent = trained(root / "runs" / name, f"digits/{name}.yaml", changes, data)
            print(f"{name}: {images:,} images in {spent:.0f} CPU s", flush=True)
        report = detector.train(
            [str(root / "runs" / name) for name in options.only],
            str(data),
            samples=options.samples,
            seen=options.seen,
            seed=0,
            out=root / "detector",
            overwrite=False,
            trust=False,
            root=root,
            display=display,
        )
        print(detector.text_of(report), flush=True)
        for name in options.only if options.evaluated is None else options.evaluated:
            found[name] = figures(root / "runs" / name / "model", data, root / "cache", options.samples)
            print(name, json.dumps(found[name]["figures"]), flush=True)
    print(json.dumps({**report, "models": found}))


if __name__ == "__main__":
    main()
