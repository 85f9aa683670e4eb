"""Commands on a trained model: draw images from it, write it for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli.arguments import AsJson, RunName, open_display, pairs, show


def sample(
    run: RunName,
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist yet.", show_default=False)],
    num: Annotated[int, typer.Option(min=1, help="How many images.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Image i depends on the seed and on i alone.")] = 0,
    label: Annotated[
        str | None, typer.Option(help="Class of all images, by name or number; without it all in turn.")
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
    as_json: AsJson = False,
) -> None:
    """Draw images from a trained run: PNGs, a grid, and a JSON line an image with what made it."""
    from sfumato.runtime.commands import sample

    named = {"guidance": guidance, "sampler": sampler, "steps": steps}
    options = {key: value for key, value in named.items() if value is not None} | pairs(option or [])
    with open_display() as display:
        folder = sample.draw(
            run,
            out,
            num=num,
            seed=seed,
            label=label,
            options=options,
            batch_size=batch_size,
            overwrite=overwrite,
            device=device,
            root=Path.cwd(),
            display=display,
        )
    show(
        {"folder": str(folder), "grid": str(folder / "grid.png"), "images": num},
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
    as_json: AsJson = False,
) -> None:
    """Write a trained model for use elsewhere."""
    from sfumato.runtime.commands import sample

    with open_display() as display:
        sample.export(run, dest, kind=kind, root=Path.cwd(), display=display)
    show({"folder": str(dest), "format": kind}, as_json, str(dest))
