"""The command line: parses, calls one function a command, and turns errors into one line and a status.

Standard output carries what a command returns (a table, JSON, a path), standard error its progress.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from sfumato import __version__
from sfumato.errors import ConfigError, Interrupted, SfumatoError

if TYPE_CHECKING:
    from sfumato.runtime.display import Display
    from sfumato.runtime.stages import Session

app = typer.Typer(
    name="sfumato",
    help="Train, evaluate, sample and compare generative image models on Ray, from one recipe file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipe_app = typer.Typer(name="recipe", help="Look at recipes without running them.", no_args_is_help=True)
app.add_typer(recipe_app)

# Click's UsageError, whichever copy of click this typer brings.
_UsageError: type[Any] = typer.BadParameter.__bases__[0]

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, for example train.images=10000.", show_default=False
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's name (the newest of that name), its MLflow id, its folder, or a checkpoint.",
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start a new run, even if this recipe has one.")]


@app.command()
def run(
    recipe: RecipeFile, overrides: Overrides = None, fresh: Fresh = False, as_json: AsJson = False
) -> None:
    """Pack, train, evaluate and register; stages that are done are skipped, unfinished ones go on."""
    from sfumato.runtime import report, stages

    with _session(recipe, overrides, fresh) as session:
        results = stages.run(session)
    report.show(session, results, as_json=as_json)


@app.command()
def train(
    recipe: RecipeFile, overrides: Overrides = None, fresh: Fresh = False, as_json: AsJson = False
) -> None:
    """Train a recipe's model; goes on from its newest checkpoint."""
    from sfumato.runtime import report, stages

    with _session(recipe, overrides, fresh) as session, stages.cluster_to_train(session):
        results = {"train": stages.train(session)}
    report.show(session, results, as_json=as_json)


@app.command()
def evaluate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe file or a run.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained run against its data; done before with the same settings, it is only shown."""
    from sfumato.runtime import report, resolve, stages

    path = Path(target)
    if path.suffix not in (".yaml", ".yml"):
        folder, about = resolve.run_folder_of(target, root=Path.cwd())
        Console(stderr=True).print(about, highlight=False)
        path = folder.path / "recipe.yaml"
    with _session(path, overrides, fresh=False) as session, stages.cluster_to_evaluate(session):
        results = {"evaluate": stages.evaluate(session)}
    report.show(session, results, as_json=as_json)


@app.command()
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace samples that lie in OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw images from a trained run: PNGs, a grid, and a JSON line an image with what made it."""
    from sfumato.runtime import samples

    named = {"guidance": guidance, "sampler": sampler, "steps": steps}
    options = {key: value for key, value in named.items() if value is not None} | _pairs(option or [])
    with _display() as display:
        folder = samples.draw(
            run,
            out,
            num=num,
            seed=seed,
            label=label,
            options=options,
            batch_size=batch_size,
            overwrite=overwrite,
            root=Path.cwd(),
            display=display,
        )
    _print(
        {"folder": str(folder), "grid": str(folder / "grid.png"), "images": num},
        as_json,
        str(folder / "grid.png"),
    )


@app.command()
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
    from sfumato.runtime import samples

    with _display() as display:
        samples.export(run, dest, kind=kind, root=Path.cwd(), display=display)
    _print({"folder": str(dest), "format": kind}, as_json, str(dest))


@app.command()
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

    given = _pairs(options or []) | ({} if size is None else {"size": size})
    with _display() as display:
        report = packing.pack(
            source,
            dest,
            options=given,
            on_error=on_error,
            max_errors=max_errors,
            overwrite=overwrite,
            display=display,
        )
    _print(report, as_json, f"{report['samples']:,} images in {dest}")


@recipe_app.command("show")
def recipe_show(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print the resolved recipe: bases merged, overrides applied, all defaults written out."""
    from sfumato import recipe as recipes

    sys.stdout.write(recipes.load(recipe, overrides or []).to_yaml())


@recipe_app.command("check")
def recipe_check(recipe: RecipeFile, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Say everything that is wrong with a recipe, without starting anything."""
    from sfumato import recipe as recipes
    from sfumato.data.manifest import Manifest

    loaded = recipes.load(recipe, overrides or [])
    packed = Manifest.exists(loaded.data.path)
    manifest = Manifest.load(loaded.data.path) if packed else None
    loaded.check(manifest.spec if manifest else None, manifest.samples if manifest else None)
    text = f"{recipe}: fine" + (
        "" if packed else f"; {loaded.data.path} is not packed yet, so not checked against it"
    )
    _print({"recipe": str(recipe), "ok": True, "data_checked": packed}, as_json, text)


@recipe_app.command("schema")
def recipe_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from sfumato import recipe as recipes

    print(json.dumps(recipes.schema(), indent=1))


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    recipe: Annotated[Path | None, typer.Option(help="Recipe whose tracking.uri to open.")] = None,
) -> None:
    """Open the MLflow UI of this folder's runs, on this machine only."""
    from sfumato import recipe as recipes
    from sfumato.tracking.config import TrackingSettings
    from sfumato.tracking.ui import serve

    settings = recipes.load(recipe).tracking if recipe else TrackingSettings()
    serve(settings, root=Path.cwd(), port=port)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine: packages, memory, disk, GPU, Ray."""
    from sfumato.runtime import doctor as examination

    findings = examination.examine(Path.cwd())
    if as_json:
        print(json.dumps([{"name": f.name, "ok": f.ok, "detail": f.detail} for f in findings]))
    else:
        marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[dim]-[/]"}
        for finding in findings:
            Console(highlight=False).print(
                f"{marks[finding.ok]} {finding.name:<14} {finding.detail}", soft_wrap=True
            )
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"sfumato {__version__}")
        raise typer.Exit


def main() -> NoReturn:
    """Run a command; errors that are meant for the user become lines on standard error, without traceback."""
    # A recipe may name a family of the user's own, which lies beside it; Ray gives the path to its workers.
    sys.path.append(os.getcwd())
    try:
        status = app(standalone_mode=False)  # an exit status where typer ended the command itself
    except SfumatoError as error:
        _complain(str(error))
        sys.exit(error.exit_status)
    except Exception as error:
        if isinstance(error, _UsageError):
            _complain(error.format_message())
            sys.exit(2)
        if os.environ.get("SFUMATO_DEBUG"):
            raise
        reason = str(error).strip().splitlines()[:1]
        _complain(
            ": ".join([type(error).__name__, *reason])
            + " (a defect of Sfumato, not of your input; SFUMATO_DEBUG=1 shows where)"
        )
        sys.exit(1)
    if status == Interrupted.exit_status:
        _complain("interrupted; nothing half-written is kept, and the same command goes on from here")
    sys.exit(status or 0)


@contextlib.contextmanager
def _session(recipe: Path, overrides: list[str] | None, fresh: bool) -> Iterator[Session]:
    from sfumato import recipe as recipes
    from sfumato.runtime import stages

    loaded = recipes.load(recipe, overrides or [])
    with _display() as display, stages.session(loaded, display, root=Path.cwd(), fresh=fresh) as session:
        yield session


def _display() -> Display:
    from sfumato.runtime.display import Display

    return Display()


def _pairs(items: list[str]) -> dict[str, str]:
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} is not of the form key=value")
        pairs[key] = value
    return pairs


def _print(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result) if as_json else text)


def _complain(text: str) -> None:
    console = Console(stderr=True, highlight=False)
    for line in text.splitlines():
        console.print(f"[red]error:[/] {escape(line)}", soft_wrap=True)
