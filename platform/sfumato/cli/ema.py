"""`sfumato ema`: averages of any length after training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.arguments import AsJson, RunName, show


def ema(
    run: RunName,
    out: Annotated[Path, typer.Option(help="Model folder to write.", show_default=False)],
    sigma_rel: Annotated[
        float,
        typer.Option(help="Relative width of the average, for example 0.1.", show_default=False),
    ],
    images: Annotated[
        int | None,
        typer.Option(min=1, help="The average as of this many images; default: as of the last snapshot."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the model with an EMA of another length, rebuilt from the snapshots that training kept."""
    from sfumato.runtime.commands.ema import rebuild

    found = rebuild(run, out, sigma_rel=sigma_rel, images=images, root=Path.cwd())
    show(
        {
            "folder": str(found.folder),
            "images": found.images,
            "snapshots": found.snapshots,
            "profile_error": found.error,
        },
        as_json,
        f"{found.folder}: at {found.images:,} images, from {found.snapshots} snapshots; its profile differs "
        f"by {found.error:.1%} from that of sigma_rel {sigma_rel:g}",
    )
