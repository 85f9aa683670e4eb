"""Commands that tell generated images from real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.arguments import AsJson, Trust, open_display, show

app = typer.Typer(name="detector", help="Tell generated images from real ones.", no_args_is_help=True)


@app.command()
def train(
    by: Annotated[
        list[str],
        typer.Option(
            metavar="RUN",
            help="Run, checkpoint, model or folder of images whose images to detect; may be repeated.",
            show_default=False,
        ),
    ],
    real: Annotated[
        str, typer.Option(metavar="DATA", help="Real images: a packed set or a folder.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the detector.", show_default=False)],
    samples: Annotated[int, typer.Option(min=40, help="Images of each source; half of them judge.")] = 2_000,
    seen: Annotated[int, typer.Option(min=1, help="Images that each detector sees in training.")] = 40_000,
    seed: Annotated[int, typer.Option(min=0, help="Of samples, halves and training.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a detector in OUT.")] = False,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Train detectors on samples of runs, and print how well each works on every run (AUROC).

    The rows of the matrix are what a detector learnt from, its columns what it was judged on.
    """
    from sfumato.runtime.commands import detector

    with open_display() as display:
        report = detector.train(
            by,
            real,
            samples=samples,
            seen=seen,
            seed=seed,
            out=out,
            overwrite=overwrite,
            trust=trust,
            root=Path.cwd(),
            display=display,
        )
    show(report, as_json, detector.text_of(report))


@app.command()
def score(
    detector: Annotated[
        Path, typer.Argument(metavar="DETECTOR", help="Folder of a detector.", show_default=False)
    ],
    images: Annotated[
        str, typer.Argument(metavar="IMAGES", help="A folder of images, or a packed set.", show_default=False)
    ],
    as_json: AsJson = False,
) -> None:
    """Score images by a detector: log odds of being generated (--json lists them)."""
    from sfumato.runtime.commands import detector as commands

    with open_display() as display:
        report = commands.score(detector, images, display=display)
    show(report, as_json, f"{report['generated']:.1%} of {report['images']:,} images look generated")
