"""What edits keep and change, measured with a trained diffusion model on real images.

    PYTHONPATH=platform python tests/benchmarks/adapt/edits.py RUN_MODEL DATA [--images 64]

RUN_MODEL is a model folder, DATA a packed data set of its images. SDEdit: strength 0 and 1 exactly, distance
at every strength between. Inversion: PSNR there and back at 50 steps, plain and refined. Inpainting: pixels
outside of the mask, and, on digits, whether the painted lower half shows the digit asked for, by a
nearest-neighbour classifier on the real images; on shapes, whether the exact checker finds the caption's
content. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from sfumato.core.conditions import Condition, Listed, Source
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.editing.edit import Edit, options_for
from sfumato.editing.operations import Operation
from sfumato.editing.operations.img2img import Img2Img
from sfumato.editing.operations.inpaint import Inpaint
from sfumato.editing.operations.invert import Invert
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images, from_uint8, to_uint8

STRENGTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def edited(
    model: Generator,
    operation: Operation,
    images: Images,
    source: Source,
    mask: Images | None = None,
    **options: Any,
) -> Images:
    request = Edit(
        images=Listed("image", from_uint8(images)),
        masks=None if mask is None else Listed("image", from_uint8(mask)),
        source=source,
        operation=operation,
        options=options_for(operation, model, options),
        seed=1,
    )
    request.check(model)
    opened = model.with_options(request.options)
    return np.concatenate([request.made(opened, block) for block in range(request.blocks(opened))])


def psnr(one: Images, two: Images) -> float:
    """In decibels; the mean over images of those of each."""
    errors = np.square(one.astype(float) - two).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-10))))


def measure(model: Generator, data: str, number: int) -> dict[str, Any]:
    column = Condition("image", "image", "image", shape=model.data.shape)
    rows = dict(rows_of_data(data, [column, *model.conditions]))
    images = to_uint8(rows.pop("image").read(list(range(number))))
    source = {name: Listed(each.kind, each.read(list(range(number)))) for name, each in rows.items()}
    found: dict[str, Any] = {"images": number}
    distances = {}
    for strength in STRENGTHS:
        made = edited(model, Img2Img(strength=strength), images, source)
        distances[strength] = float(np.abs(made.astype(float) - images).mean())
        if strength == 1:
            drawn = model.sample(number, seed=1, conditions=source)
            found["strength 1 is a sample"] = bool(np.array_equal(made, drawn))
    found["strength 0 is the image"] = distances[0.0] == 0
    found["distance by strength, levels of 255"] = distances
    for refine in (1, 3):
        back = edited(model, Invert(refine=refine), images, source, steps=50, guidance=1.0)
        found[f"inversion and back, 50 steps, refine={refine}, dB"] = psnr(back, images)
    mask = np.zeros((1, *images.shape[1:3], 1), np.uint8)
    mask[:, images.shape[1] // 2 :] = 255
    mask = mask.repeat(images.shape[-1], axis=-1)
    for resample in (1, 5):
        painted = edited(model, Inpaint(resample=resample), images, source, mask)
        outside = mask[0] == 0
        found[f"inpainting, resample={resample}"] = {
            "pixels outside identical": bool(np.array_equal(painted[:, outside], images[:, outside])),
            **content(images, painted, rows, data, number),
        }
    return found


def content(images: Images, painted: Images, rows: Any, data: str, number: int) -> dict[str, float]:
    """Whether the whole picture shows what was asked for."""
    if "text" in rows:
        from sfumato.evaluation.metrics.alignment import verdicts

        captions = list(rows["text"].read(list(range(number))))
        return {
            name: float(verdicts(shown, captions)[:, 2].mean())
            for name, shown in (("alignment", painted), ("alignment of the originals", images))
        }
    if "label" not in rows:
        return {}
    labels = rows["label"].read(list(range(number))).numpy()
    column = Condition("image", "image", "image", shape=tuple(images.shape[i] for i in (3, 1, 2)))
    everything = rows_of_data(data, [column])["image"]
    others = list(range(number, len(everything)))
    bank = everything.read(others).numpy().reshape(len(others), -1)
    bank_labels = rows["label"].read(others).numpy()

    def right(shown: Images) -> float:
        flat = from_uint8(shown).numpy().reshape(len(shown), -1)
        nearest = ((flat[:, None] - bank[None]) ** 2).sum(axis=2).argmin(axis=1)
        return float((bank_labels[nearest] == labels).mean())

    return {"right class": right(painted), "right class of the originals": right(images)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=64)
    given = parser.parse_args()
    print(json.dumps(measure(Generator.load(given.model), given.data, given.images), indent=2))


if __name__ == "__main__":
    main()
