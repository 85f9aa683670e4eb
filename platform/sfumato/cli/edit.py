"""The command that edits images with a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.arguments import AsJson, Base, RunName, Trust, open_display, show, structured, values


def edit(
    run: RunName,
    out: Annotated[Path, typer.Option(help="Folder to write; it must be empty or new.", show_default=False)],
    images: Annotated[
        str | None,
        typer.Argument(
            metavar="[IMAGE|DATA]",
            help="An image, a folder of images, or a packed data set; none for interpolate and "
            "prompt_to_prompt.",
            show_default=False,
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="OPERATION",
            help="img2img, inpaint, outpaint, invert, ddpm_invert, translate, upscale, project, "
            "attribute, interpolate, prompt_to_prompt, style, style_mix. Default: what model and --mask call "
            "for.",
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="How far from the image: 0 keeps it, 1 forgets it (img2img, invert).",
            show_default=False,
        ),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Mask of the image's size, white where it is to change; a folder holds one for each image.",
            show_default=False,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any other setting of the operation, such as resample=10."
        ),
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Class that the images get, by name or number.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Text that the images follow.")] = None,
    negative: Annotated[
        list[str] | None, typer.Option(help="Text that the images are guided away from.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Any condition of the model by name, as for sample."),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale (option `guidance`).")] = None,
    sampler: Annotated[str | None, typer.Option(help="Sampler (option `sampler`).")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps (option `steps`).")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Any other sampling option of the family.")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="The result of image i depends on the seed, on i and on the image.")
    ] = 0,
    actors: Annotated[
        int,
        typer.Option(
            min=0, help="Ray actors that share the images; 0 works in this process. No pixel differs."
        ),
    ] = 0,
    gpus_per_actor: Annotated[float, typer.Option(min=0, help="GPUs of an actor.")] = 0.0,
    device: Annotated[
        str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1; auto: a GPU if available.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace edits in OUT.")] = False,
    base: Base = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Edit images with a trained run: PNGs, a grid of pairs, and a JSON line per image."""
    from sfumato.runtime.commands import edit as commands
    from sfumato.sampling.conditions import Asked
    from sfumato.sampling.options import together

    named = {"guidance": guidance, "sampler": sampler, "steps": steps}
    options = together(named, structured(option or []))
    settings = together({"strength": strength}, structured(setting or []))
    with open_display() as display:
        folder = commands.edit(
            run,
            images,
            out,
            by=by,
            settings=settings,
            mask=mask,
            asked=Asked(label or (), prompt or (), negative or (), None, values(condition or [])),
            options=options,
            seed=seed,
            actors=commands.Actors(actors, gpus_per_actor=gpus_per_actor),
            overwrite=overwrite,
            device=device,
            base=base,
            trust=trust,
            root=Path.cwd(),
            display=display,
        )
    edited = sum(1 for path in folder.glob("*.png") if path.stem.isdigit())
    grid = str(folder / "grid.png")
    show({"folder": str(folder), "grid": grid, "images": edited}, as_json, grid)
