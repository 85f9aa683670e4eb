"""Commands about where pictures come from: keys, and what a file says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.cli.arguments import AsJson, Base, Trust, open_display, pairs, show
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.provenance.manifests.reading import Shown

app = typer.Typer(
    name="provenance",
    help="What pictures say of themselves: keys, manifests, metadata.",
    no_args_is_help=True,
)

Picture = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A PNG, JPEG or WebP file, or a model's folder.", show_default=False),
]


@app.command()
def keys(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder for the three files.", show_default=False)
    ],
    name: Annotated[str, typer.Option(help="Who signs, as readers see it.")] = "Sfumato development",
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificate is valid.")] = 365,
    as_json: AsJson = False,
) -> None:
    """Make a chain of certificates for development; only those who are told to trust it do."""
    from sfumato.provenance.manifests.keys import write_keys

    found = write_keys(folder, name=name, days=days)
    lines = [
        "provenance:",
        f"  c2pa: {{certificate: {found['certificate']}, key: {found['key']}}}",
        f"# readers: sfumato provenance show FILE --trust {found['trust']}",
    ]
    show(found, as_json, "\n".join(lines))


@app.command()
def sign(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", help="Model folder, for example of an export.", show_default=False),
    ],
    certificate: Annotated[
        Path | None,
        typer.Option(metavar="PEM", help="Instead of the recipe's provenance.c2pa.", show_default=False),
    ] = None,
    key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Its private key.", show_default=False)
    ] = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Sign a model: write a C2PA manifest beside each file of its folder."""
    from sfumato.provenance.manifests.config import C2paSettings
    from sfumato.sampling.model_signing import sign_folder

    if (certificate is None) != (key is None):
        raise ConfigError("--certificate and --key: give both, or neither")
    settings = None if certificate is None else C2paSettings(certificate=str(certificate), key=str(key))
    written = [str(file) for file in sign_folder(model, settings, trust=trust)]
    show({"manifests": written}, as_json, "\n".join(written))


@app.command(name="show")
def show_file(
    file: Picture,
    trust: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Certificates that are trusted.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify the manifest of a picture, or those of a model, and show what they say.

    Exits with 0 if it is signed and unchanged, with --trust also by somebody trusted, else with 1.
    """
    from sfumato.provenance.manifests.reading import read_manifest
    from sfumato.provenance.metadata import read_xmp

    if file.is_dir() or file.suffix == ".safetensors":
        outcome = _show_model(file, trust, as_json)
    else:
        found = read_manifest(file, trust)
        metadata = read_xmp(file)
        show(_content(found, metadata), as_json, _text(found, metadata))
        outcome = found.outcome
    if outcome != "trusted" and (trust is not None or outcome != "untrusted"):
        raise typer.Exit(1)


def _show_model(place: Path, trust: Path | None, as_json: bool) -> str:
    """Print what a model's manifests say; returns the outcome of the worst."""
    from sfumato.provenance.manifests.models import read_model, worst

    found = read_model(place, trust)
    outcome = worst(found)
    text = [f"{name}\n{_text(one, {})}" for name, one in found]
    files = {name: _content(one, {}) for name, one in found}
    show({"outcome": outcome, "files": files}, as_json, "\n\n".join(text))
    return outcome


def _content(found: Shown, metadata: dict[str, str]) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(found), "metadata": metadata}


def _text(found: Shown, metadata: dict[str, str]) -> str:
    from sfumato.provenance.manifests.reading import MEANING

    lines = [f"{found.outcome}: {MEANING[found.outcome]}"]
    lines += [f"  {code}" for code in found.codes if found.outcome not in ("trusted", "untrusted")]
    rows = {
        "signer": found.signer,
        "made by": found.generator,
        "source type": found.source_type.rpartition("/")[2],
        "actions": ", ".join(found.actions),
        **{key.replace("_", " "): value for key, value in (found.generation or {}).items()},
    }
    lines += [f"{key:<18} {value}" for key, value in rows.items() if value not in ("", None)]
    lines += [
        f"{'made from':<18} {part.title} ({part.relation}, {part.outcome})" for part in found.ingredients
    ]
    lines += [f"{'metadata':<18} {key}: {value}" for key, value in metadata.items()]
    return "\n".join(_printable(line) for line in lines)


def _printable(text: str) -> str:
    """Without letters that a terminal would obey: the file may be from anybody."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


@app.command()
def detect(
    place: Annotated[
        str,
        typer.Argument(
            metavar="FILE|DATA", help="A picture, a folder of them, or a packed data set.", show_default=False
        ),
    ],
    kind: Annotated[
        str, typer.Option("--scheme", help="spread, rivagan, trustmark, seal, or your own.")
    ] = "spread",
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Setting of the scheme, such as encoder=encoder_Q.onnx. May be repeated.",
            show_default=False,
        ),
    ] = None,
    message: Annotated[
        str | None, typer.Option(help="The message, as eight hexadecimal digits. Default: Sfumato's.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Model folder that says scheme and message.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Look instead for the mark that pictures have from this run: in the noise that they begin "
            "with, or by a decoder that signs.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            help="With --by: the class that pictures were drawn for, or several in turn.", show_default=False
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="With --by: their text, likewise.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="With --by: steps from picture to noise. Default: as many as to draw."),
    ] = None,
    refine: Annotated[int, typer.Option(min=1, help="With --by: iterations of each step.")] = 2,
    device: Annotated[
        str, typer.Option(help="With --by: PyTorch device; auto uses a GPU if available.")
    ] = "auto",
    base: Base = None,
    level: Annotated[
        float, typer.Option(min=1e-12, max=0.5, help="p-value up to which a mark counts.")
    ] = 1e-3,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Look for a mark: how many bits agree, and how probable that is without it.

    Exits with 0 if every picture has it, else with 1.
    """
    from sfumato.provenance import detection
    from sfumato.runtime.commands import provenance

    scheme: Any
    if by is None:
        _only_with_by({"--label": label, "--prompt": prompt, "--steps": steps, "--base": base})
        scheme = detection.scheme(kind, message, model, pairs(given or []), trust=trust)
        with open_display() as display:
            found = provenance.detect(place, scheme, display)
    else:
        if model is not None or given:
            raise ConfigError("--by: the run says what is looked for; leave out --model and --set")
        with open_display() as display:
            found, scheme = provenance.detect_by(
                place,
                by,
                message=message,
                labels=label,
                prompts=prompt,
                steps=steps,
                refine=refine,
                device=device,
                base=base,
                trust=trust,
                root=Path.cwd(),
                display=display,
            )
    show(detection.content(found, scheme, level), as_json, detection.text(found, level))
    if not found or not all(one.marked(level) for one in found):
        raise typer.Exit(1)


def _only_with_by(given: dict[str, Any]) -> None:
    if without := [name for name, value in given.items() if value]:
        raise ConfigError(f"{without[0]}: has an effect only with --by")
