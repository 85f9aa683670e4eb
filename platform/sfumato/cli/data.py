"""Commands on data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sfumato.cli.arguments import AsJson, open_display, pairs, show

app = typer.Typer(name="data", help="Index, inspect, verify and search data sets.", no_args_is_help=True)

Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Parallel tasks; 1 stays in this process. Default: all CPUs for large sets."),
]
OnFault = Annotated[
    Literal["fail", "skip"], typer.Option(help="What to do with an image that cannot be used.")
]
MaxErrors = Annotated[int, typer.Option(min=0, help="With skip: stop after more than this many.")]
OptOut = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="List of samples to leave out: lines `key K`, `sha256 HEX`, `phash HEX` or `url PATTERN`. "
        "May be repeated.",
        show_default=False,
    ),
]
Place = Annotated[str, typer.Argument(metavar="PATH", help="Folder or URI with manifest.json.")]


def pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="`digits`, `shapes`, a folder of images, or a file or folder of .npz, IDX, Parquet, "
            "save_to_disk, WebDataset, CSV or JSONL; a path or a URI.",
            show_default=False,
        ),
    ],
    dest: Annotated[
        str,
        typer.Argument(
            metavar="DEST",
            help="Folder for the shards, or a URI such as s3://bucket/mine.",
            show_default=False,
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Options of the source, for example channels=3 crop=random."
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Side of the square images; larger ones are resized and cropped."),
    ] = None,
    val: Annotated[
        float | None,
        typer.Option(min=0, max=0.99, help="Fraction that goes to DEST/val; the rest goes to DEST/train."),
    ] = None,
    dedupe: Annotated[
        int | None,
        typer.Option(
            "--dedupe",
            "--deduplicate",
            min=0,
            max=16,
            help="Drop near duplicates: perceptual hashes differing in at most this many bits.",
        ),
    ] = None,
    screen: Annotated[
        str | None,
        typer.Option(
            "--filter",
            metavar="KIND[=SCORE]",
            help="Leave out images that a classifier finds, for example open_nsfw=0.8, and list them.",
        ),
    ] = None,
    opt_out: OptOut = None,
    left_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a JSON line for each sample that was left out, and why."),
    ] = None,
    on_error: OnFault = "fail",
    max_errors: MaxErrors = 100,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Samples per shard. Default: up to 128 MiB of pixels.")
    ] = None,
    workers: Workers = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing data set in DEST.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pack images into WebDataset shards with a manifest and an index."""
    from sfumato.runtime.commands import pack

    short: dict[str, Any] = {"size": size, "val": val, "dedupe": dedupe, "filter": _filter(screen)}
    short["opt_out"] = tuple(opt_out or ()) or None
    short = {key: value for key, value in short.items() if value is not None}
    with open_display() as display:
        report = pack.pack(
            source,
            dest,
            options={**pairs(options or []), **short},
            on_error=on_error,
            max_errors=max_errors,
            overwrite=overwrite,
            shard_size=shard_size,
            workers=workers,
            left_out=left_out,
            display=display,
        )
    show(report, as_json, f"{report['samples']:,} images in {dest}")


def _filter(given: str | None) -> dict[str, str] | None:
    """`open_nsfw` or `open_nsfw=0.8` as a classifier's settings."""
    if given is None:
        return None
    kind, _, score = given.partition("=")
    return {"kind": kind} | ({"threshold": score} if score else {})


@app.command()
def index(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="Folder or URI of the tars.", show_default=False)
    ],
    dest: Annotated[
        str | None,
        typer.Option(help="Write manifest, indexes and links to the tars here, not next to the tars."),
    ] = None,
    shards: Annotated[str, typer.Option(help="Which tars, for example 'train-*.tar'.")] = "*.tar",
    image: Annotated[
        str | None, typer.Option(help="Extension of the images, if samples have several.")
    ] = None,
    label: Annotated[str, typer.Option(help="Where classes are: an extension, or json.NAME.")] = "cls",
    caption: Annotated[str, typer.Option(help="Where captions are: an extension, or json.NAME.")] = "txt",
    columns: Annotated[
        str,
        typer.Option(
            help="Further columns: {control: {kind: image, member: line.png}, "
            "words: {kind: tags, field: keywords}}."
        ),
    ] = "{}",
    classes: Annotated[str | None, typer.Option(help="Names of the classes in order: a,b,c.")] = None,
    channels: Annotated[Literal["auto", "1", "3"], typer.Option(help="1 grey, 3 RGB.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Name of the data set. Default: the folder's.")] = None,
    licence: Annotated[str, typer.Option(help="Terms of use of the images.")] = "",
    opt_out: OptOut = None,
    on_error: OnFault = "fail",
    max_errors: MaxErrors = 100,
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace manifest and indexes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write manifest and indexes for an existing WebDataset without touching its tars."""
    from sfumato.runtime.commands import data_sets

    options: dict[str, Any] = {
        "classes": tuple(part.strip() for part in (classes or "").split(",") if part.strip()),
        "channels": channels if channels == "auto" else int(channels),
        "name": name,
        "licence": licence,
        "opt_out": tuple(opt_out or ()),
    }
    with open_display() as display:
        report = data_sets.index(
            path,
            dest=dest,
            shards=shards,
            fields={"image": image, "label": label, "caption": caption, "columns": columns},
            options=options,
            on_error=on_error,
            max_errors=max_errors,
            overwrite=overwrite,
            workers=workers,
            display=display,
        )
    show(report, as_json, f"{report['samples']:,} images in {report['folder']}")


@app.command()
def inspect(
    path: Place,
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet of 100 images (PNG).")] = None,
    measure: Annotated[
        int, typer.Option(min=0, help="Compute statistics on this many evenly spaced images; 0: all.")
    ] = 10_000,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Describe a data set: counts, sizes, classes, mean and standard deviation of the channels."""
    from sfumato.runtime.commands import data_sets

    with open_display() as display:
        found = data_sets.describe(path, measure=measure, sheet=sheet, workers=workers, display=display)
    show(found, as_json, data_sets.text_of(found))


@app.command()
def verify(
    path: Place,
    decode: Annotated[bool, typer.Option(help="Also decode every image.")] = True,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Check checksums, indexes, keys, labels and every image. Exits with 1 if anything is wrong."""
    from sfumato.runtime.commands import data_sets

    with open_display() as display:
        report = data_sets.verify(path, decode=decode, workers=workers, display=display)
    bad = len(report["bad"])
    show(report, as_json, f"{bad:,} problems found" if bad else f"all {report['samples']:,} images are good")
    if bad:
        raise typer.Exit(1)


@app.command()
def trace(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.", show_default=False)],
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...",
            help="Data sets to search: folders or URIs with manifest.json.",
            show_default=False,
        ),
    ] = None,
    bits: Annotated[
        int, typer.Option(min=0, max=16, help="Bits in which perceptual hashes of near copies may differ.")
    ] = 6,
    workers: Workers = None,
    as_json: AsJson = False,
) -> None:
    """Find an image and near copies of it in data sets, and print its entries for opt-out lists.

    Exits with 0 if it was found and 1 if it was not, as grep does. Without DATA it prints the entries alone.
    """
    from sfumato.runtime.commands import data_sets

    with open_display() as display:
        report = data_sets.trace(image, places or (), bits=bits, workers=workers, display=display)
    show(report, as_json, data_sets.trace_text(report))
    if places and not report["found"]:
        raise typer.Exit(1)


@app.command()
def subset(
    path: Place,
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="New folder.", show_default=False)],
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the samples to keep.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another part.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a random part of a data set a set of its own, by links, for the shadow runs of `membership`."""
    from sfumato.data.packing.subset import subset as make

    manifest = make(path, dest, share=share, seed=seed)
    report = {"folder": str(dest), "samples": manifest.samples, "digest": manifest.digest}
    show(report, as_json, f"{manifest.samples:,} images in {dest}")
