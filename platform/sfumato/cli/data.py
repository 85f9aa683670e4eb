"""Commands on data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from sfumato.cli.arguments import AsJson, open_display, pairs, show


def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="`digits`, a folder of images, or an .npz file.", show_default=False
        ),
    ],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder for the shards.", show_default=False)],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Options of the source, for example channels=3."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the square images; larger ones are resized and cropped."),
    ] = None,
    on_error: Annotated[
        Literal["fail", "skip"], typer.Option(help="What an image that cannot be used does.")
    ] = "fail",
    max_errors: Annotated[int, typer.Option(min=0, help="With skip: stop after more than this many.")] = 100,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a data set that lies in DEST.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pack images into WebDataset shards with a manifest and an index."""
    from sfumato.runtime import packing

    given = pairs(options or []) | ({} if size is None else {"size": size})
    with open_display() as display:
        report = packing.pack(
            source,
            dest,
            options=given,
            on_error=on_error,
            max_errors=max_errors,
            overwrite=overwrite,
            display=display,
        )
    show(report, as_json, f"{report['samples']:,} images in {dest}")
