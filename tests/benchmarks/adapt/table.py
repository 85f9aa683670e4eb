"""What adapted models of shapes do, read from their pictures by the exact checker of shapes.

    PYTHONPATH=platform python tests/benchmarks/adapt/table.py --instruct MODEL ... [--images 140]

Each option names the model folder of a run of pipelines/shapes/adapt/ and gives one row of the table;
`--base` is the model that they were adapted from, beside which prompt alignment is judged. Pictures asked for
are drawn with a seed that no recipe trains on. Prints JSON: figures with 95 % intervals (Wilson's, of shares)
and aims.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from judging import SEED, Row, drawn, mean, overlaps, share, silhouettes
from layouts import prompt_to_prompt
from new_shape import dreambooth

from sfumato.core.conditions import Condition, Listed
from sfumato.data.packing.sources.shape_edits import ShapeEditsSource, records
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.data.shapes.checker import Checker
from sfumato.data.shapes.contents import Contents
from sfumato.data.shapes.phrases import captions
from sfumato.data.shapes.rendering import render
from sfumato.data.shapes.scenes import scenes
from sfumato.evaluation.metrics.alignment import verdicts
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import from_uint8, to_uint8

SAME = 0.15
"""How far an object may be from where it was, as a share of the side, to count as kept."""


def controlnet(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """IoU of the asked silhouette and of what differs from the drawn background; prompt alignment."""
    asked = scenes(SEED, np.arange(number), "seen", 32, ("single_object", "colours"))
    pictures, texts = render(asked), [found[0] for found in captions(asked, SEED)]
    shown = drawn(model, number, texts, control=pictures.edge)
    iou = overlaps(pictures.mask[..., 0] > 0, silhouettes(shown))
    found = {"IoU": mean(iou, 0.8), "alignment": share(verdicts(shown, texts)[:, 2], 0.0)}
    if base is not None:
        own = verdicts(drawn(base, number, texts), texts)[:, 2]
        found["alignment of the base"] = share(own, 0.0)
    return found


def instruct(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """Whether what was asked was done, and whether all else was kept."""
    asked = records(ShapeEditsSource(seed=SEED), np.arange(number))
    texts = [str(record.caption) for record in asked]
    before = np.stack([np.asarray(record.extra["before"]) for record in asked])
    read = Checker(32).read
    shown = read(drawn(model, number, texts, before=before))
    wanted = read(np.stack([np.asarray(record.image) for record in asked]))
    changed = [int(record.meta["changed"]) if record.meta else -1 for record in asked]
    done, kept = zip(
        *(
            judged(*both, at, record.meta)
            for *both, at, record in zip(shown, wanted, changed, asked, strict=True)
        ),
        strict=True,
    )
    return {"done": share(done, 0.8), "all else kept": share(kept, 0.8)}


def judged(found: Contents | None, wanted: Contents | None, changed: int, meta: Any) -> tuple[bool, bool]:
    if found is None or wanted is None:
        return False, False
    if changed < 0:
        done = found.background == wanted.background
        return done, _same_things(found, wanted, None)
    target = meta["objects"][changed]
    look = (target["shape"], target["colour"])
    done = look in {(thing.shape, thing.colour) for thing in found.things}
    return done, found.background == wanted.background and _same_things(found, wanted, look)


def _same_things(found: Contents, wanted: Contents, without: tuple[str, str] | None) -> bool:
    """Whether both have as many objects, and all that are wanted but those of one look are there."""
    others = [thing for thing in wanted.things if (thing.shape, thing.colour) != without]
    return len(found.things) == len(wanted.things) and all(
        any(
            (a.shape, a.colour) == (b.shape, b.colour) and max(abs(a.x - b.x), abs(a.y - b.y)) <= SAME
            for b in found.things
        )
        for a in others
    )


def reference(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """Whether colour and shape of the reference are in the picture."""
    asked = records(ShapeEditsSource(seed=SEED, captions="plain"), np.arange(number))
    pictures = np.stack([np.asarray(record.extra["reference"]) for record in asked])
    shown = Checker(32).read(drawn(model, number, ["a shape"] * number, reference=pictures))
    hits = []
    for record, found in zip(asked, shown, strict=True):
        assert record.meta is not None
        target = record.meta["objects"][max(0, int(record.meta["changed"]))]
        looks = set() if found is None else {(thing.shape, thing.colour) for thing in found.things}
        hits.append((target["shape"], target["colour"]) in looks)
    return {"colour and shape taken over": share(hits, 0.7)}


def segmentation(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """Prompt alignment, and IoU as of ControlNet."""
    asked = scenes(SEED, np.arange(number), "seen", 32, ("single_object", "colours"))
    pictures, texts = render(asked), [found[0] for found in captions(asked, SEED)]
    shown = drawn(model, number, texts, map=pictures.mask)
    iou = overlaps(pictures.mask[..., 0] > 0, silhouettes(shown))
    return {"IoU": mean(iou, 0.8), "alignment": share(verdicts(shown, texts)[:, 2], 0.0)}


def inpainting(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """The object is masked and painted again by its caption; what is outside is the picture's."""
    asked = scenes(SEED, np.arange(number), "seen", 32, ("single_object", "colours"))
    pictures, texts = render(asked), [found[0] for found in captions(asked, SEED)]
    mask = np.where(
        F.max_pool2d(torch.from_numpy(pictures.mask[..., 0]).float(), 7, 1, 3).numpy() > 0, 255, 0
    )
    mask = mask.astype(np.uint8)[..., None]
    shown = drawn(model, number, texts, known=pictures.image, mask=mask)
    painted = np.where(mask > 0, shown, pictures.image)
    return {
        "alignment inside": share(verdicts(painted, texts)[:, 2], 0.8),
        "difference outside, levels": float(
            np.abs(painted.astype(int) - pictures.image)[(mask == 0)[..., 0]].max()
        ),
    }


def upscale(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """PSNR against the true pictures, beside bicubic's."""
    asked = scenes(
        SEED, np.arange(number), "seen", model.data.height, ("single_object", "colours", "two_objects")
    )
    true = render(asked).image
    factor = int(getattr(getattr(model.config, "adapter", None), "factor", 4))
    shown = model.sample(number, seed=SEED, conditions={"small": Listed("image", from_uint8(true))})
    small = F.avg_pool2d(from_uint8(true), factor)
    bicubic = F.interpolate(small, scale_factor=factor, mode="bicubic").clamp(-1, 1)
    ours, theirs = (_psnr(from_uint8(true), made) for made in (from_uint8(shown), bicubic))
    return {"PSNR, dB": mean(ours, float(np.mean(theirs))), "PSNR of bicubic, dB": float(np.mean(theirs))}


def _psnr(true: torch.Tensor, made: torch.Tensor) -> list[float]:
    errors = (true - made).square().mean(dim=(1, 2, 3)) / 4
    return (-10 * torch.log10(errors.clamp(min=1e-10))).tolist()


def dpo(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """The share of one colour where none is asked for, beside that of the base; prompt alignment."""
    plain = [f"a {shape}" for shape in ("circle", "square", "triangle", "star", "cross", "heart")]
    asked = scenes(SEED, np.arange(number), "seen", 32, ("single_object", "colours"))
    texts = [found[0] for found in captions(asked, SEED)]
    found: dict[str, Any] = {}
    for name, each in (("tuned", model), ("base", base)):
        if each is None:
            continue
        prompts = [plain[n % len(plain)] for n in range(number)]
        read = Checker(32).read(drawn(each, number, prompts))
        red = [any(thing.colour == "red" for thing in one.things) if one else False for one in read]
        found[f"share of red, {name}"] = share(red, 0.0)
        found[f"alignment, {name}"] = share(verdicts(drawn(each, number, texts), texts)[:, 2], 0.0)
    return found


def ip_adapter(data: str) -> Row:
    """Of a set with embeddings of its pictures: a model of `pipelines/shapes/adapt/ip-adapter.yaml`."""

    def row(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
        """Whether colour and shape of a picture of one object are taken over, when the text says neither."""
        pictures = Condition("image", "image", "image", shape=model.data.shape)
        prompt = [condition for condition in model.conditions if condition.name == "image_prompt"]
        rows = dict(rows_of_data(data, [pictures, *prompt]))
        images = rows.pop("image")
        read = Checker(32).read(to_uint8(images.read(list(range(min(len(images), 20 * number))))))
        chosen = [n for n, found in enumerate(read) if found is not None and len(found.things) == 1][:number]
        source = {name: Listed(each.kind, each.read(chosen)) for name, each in rows.items()}
        shown = model.sample(len(chosen), seed=SEED, prompts="a shape", conditions=source)
        hits = []
        for n, found in zip(chosen, Checker(32).read(shown), strict=True):
            target = read[n]
            assert target is not None, "chosen so"
            looks = set() if found is None else {(thing.shape, thing.colour) for thing in found.things}
            hits.append((target.things[0].shape, target.things[0].colour) in looks)
        return {"colour and shape taken over": share(hits, 0.7)}

    return row


ROWS: dict[str, Row] = {
    "controlnet": controlnet,
    "segmentation": segmentation,
    "inpainting": inpainting,
    "instruct": instruct,
    "reference": reference,
    "upscale": upscale,
    "dpo": dpo,
    "dreambooth": dreambooth,
    "prompt_to_prompt": prompt_to_prompt,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", help="model folder of the base")
    parser.add_argument("--images", type=int, default=140)
    parser.add_argument("--embedded", default="data/shapes-embedded", help="data set of the row ip_adapter")
    for name in (*ROWS, "ip_adapter"):
        what = "of the base" if name == "prompt_to_prompt" else f"of shapes-{name.replace('_', '-')}"
        parser.add_argument(f"--{name}", help=f"model folder {what}")
    given = parser.parse_args()
    rows = {**ROWS, "ip_adapter": ip_adapter(given.embedded)}
    base = None if given.base is None else Generator.load(given.base)
    found = {
        name: row(Generator.load(getattr(given, name)), base, given.images)
        for name, row in rows.items()
        if getattr(given, name) is not None
    }
    if not found:
        parser.error("name the model of at least one row")
    print(json.dumps({"images": given.images, **found}, indent=2, default=bool))


if __name__ == "__main__":
    main()
