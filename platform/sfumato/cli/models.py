"""Commands on a trained model: draw images, export, describe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli.arguments import AsJson, Base, RunName, Trust, open_display, show, structured, values


def sample(
    run: RunName,
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or new.", show_default=False)],
    num: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many images. Default: one for each line of --prompts, 64 without.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Image i depends only on the seed, on i and on its conditions.")
    ] = 0,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="Class of the images, by name or number. They cycle through several; without it, "
            "through all classes."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="Text that the images follow, if the model takes one. They cycle through several."),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(help="Text that the images are guided away from. They cycle through several."),
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
            "text, or a class. Images cycle through several of one name.",
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
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="Draw every image with each value of a sampling option, for example guidance=1,2,4,8: the "
            "grid has a row for each prompt and a column for each value.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in memory at once; does not change the images.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1; auto: a GPU if available.")
    ] = "auto",
    kind: Annotated[
        Literal["png", "jpeg", "webp"], typer.Option("--format", help="Of the images; the grid is a PNG.")
    ] = "png",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace samples in OUT.")] = False,
    base: Base = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Draw images from a trained run: PNGs, a grid, and a JSON line per image that records its origin."""
    from sfumato.runtime.commands import sample
    from sfumato.sampling.conditions import Asked
    from sfumato.sampling.options import together
    from sfumato.sampling.sweep import Sweep

    named = {"guidance": guidance, "sampler": sampler, "steps": steps}
    options = together(named, structured(option or []))
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
            sweep=None if sweep is None else Sweep.of(sweep),
            batch_size=batch_size,
            overwrite=overwrite,
            kind=kind,
            device=device,
            base=base,
            trust=trust,
            root=Path.cwd(),
            display=display,
        )
    drawn = sum(1 for path in folder.iterdir() if path.stem.isdigit())
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
            help="Write an adapter together with its base, as a self-contained folder.",
        ),
    ] = False,
    base: Base = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Write a trained model for use elsewhere."""
    from sfumato.runtime.commands import sample

    with open_display() as display:
        sample.export(
            run,
            dest,
            kind=kind,
            with_base=with_base,
            base=base,
            trust=trust,
            root=Path.cwd(),
            display=display,
        )
    show({"folder": str(dest), "format": kind}, as_json, str(dest))


def card(
    run: RunName,
    out: Annotated[
        Path | None, typer.Option(help="Also write README.md and card.json here.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the model card: data, recipe, compute, figures with intervals, and known limits."""
    from sfumato.runtime.commands import card

    text, facts = card.card(run, out=out, root=Path.cwd())
    show(facts, as_json, text)


def membership(
    run: RunName,
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA...",
            help="Images of which some were trained on and some were not, such as its train and val parts.",
            show_default=False,
        ),
    ],
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="Run of the same recipe on another part of the same images (`sfumato data subset`); may be "
            "repeated: four or more.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws of a likelihood bound.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for membership.json and roc.png.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try to tell which images a run was trained on: AUROC, and true positives at few false ones."""
    from sfumato.runtime.commands import membership as commands

    with open_display() as display:
        report = commands.infer(
            run, data, shadows=shadow or (), seed=seed, out=out, root=Path.cwd(), display=display
        )
    show(report, as_json, commands.text_of(report))
