"""Commands on a trained model: draw images from it, write it for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli.arguments import AsJson, RunName, open_display, pairs, show, values

Base = Annotated[
    Path | None,
    typer.Option(
        metavar="PLACE",
        help="Where the base of an adapter is, if it is no longer where it was in training.",
        show_default=False,
    ),
]


def sample(
    run: RunName,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.", show_default=False)],
    num: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many images. Default: one for each line of --prompts, 64 without.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Image i depends on the seed, on i and on its conditions alone.")
    ] = 0,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Class of the images, by name or number. Several are drawn in turn; without it, all classes."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text that the images follow, for a model that takes one. Several take turns."),
    ] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="Text that the images are guided away from. Several take turns.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File of prompts: a text file with one on each line, or a .jsonl file with `prompt` and, if "
            "wanted, `negative` and `label` on each line.",
        ),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Any condition of the model by name: an image file or a folder of them, a .npy file, a "
            "text, or a class. Several of one name take turns.",
        ),
    ] = None,
    conditions_from: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Packed data set whose rows give the conditions: image i follows row i. Options above "
            "replace single conditions.",
        ),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (option `guidance`).")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler (option `sampler`).")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps (option `steps`).")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other sampling option of the family.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in memory at once; changes no byte.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1; auto: a GPU where there is one.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace samples that lie in OUT.")] = False,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Draw images from a trained run: PNGs, a grid, and a JSON line an image with what made it."""
    from sfumato.runtime.commands import sample
    from sfumato.sampling.conditions import Asked

    named = {"guidance": guidance, "sampler": sampler, "steps": steps}
    options = {key: value for key, value in named.items() if value is not None} | pairs(option or [])
    asked = Asked(
        label or (), prompt or (), negative or (), prompts, values(condition or []), conditions_from
    )
    with open_display() as display:
        folder = sample.draw(
            run,
            out,
            num=num,
            seed=seed,
            asked=asked,
            options=options,
            batch_size=batch_size,
            overwrite=overwrite,
            device=device,
            base=base,
            root=Path.cwd(),
            display=display,
        )
    drawn = sum(1 for path in folder.glob("*.png") if path.stem.isdigit())
    show(
        {"folder": str(folder), "grid": str(folder / "grid.png"), "images": drawn},
        as_json,
        str(folder / "grid.png"),
    )


def export(
    run: RunName,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder to write.", show_default=False)],
    kind: Annotated[
        Literal["safetensors", "diffusers"],
        typer.Option("--format", help="A model folder for sfumato.load, or a diffusers pipeline."),
    ] = "safetensors",
    with_base: Annotated[
        bool,
        typer.Option(
            "--with-base",
            help="Write an adapter with its base: a folder that needs no other.",
        ),
    ] = False,
    base: Base = None,
    as_json: AsJson = False,
) -> None:
    """Write a trained model for use elsewhere."""
    from sfumato.runtime.commands import sample

    with open_display() as display:
        sample.export(run, dest, kind=kind, with_base=with_base, base=base, root=Path.cwd(), display=display)
    show({"folder": str(dest), "format": kind}, as_json, str(dest))
