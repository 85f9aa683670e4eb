"""`sfumato precompute`: run a frozen encoder over a data set once, instead of in every epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sfumato.cli.arguments import AsJson, open_display, show
from sfumato.errors import ConfigError


def precompute(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|RUN|FOLDER",
            help="A recipe whose model has a first stage, or a run that can be one (family vae, kl or vq); "
            "with --arrays text a recipe with frozen text encoders, or the folder of a CLIP, T5 or BERT "
            "model as transformers saves it.",
            show_default=False,
        ),
    ],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Packed data set: a folder or URI.", show_default=False)
    ],
    dest: Annotated[
        str | None,
        typer.Argument(
            metavar="[DEST]",
            help="Folder or URI of a new data set, with links to DATA's shards (copies in object storage). "
            "Without it, the columns are added to DATA itself.",
            show_default=False,
        ),
    ] = None,
    arrays: Annotated[
        Literal["auto", "latents", "codes", "text", "features"],
        typer.Option(
            help="What to keep: latents as mean and standard deviation, or codes (auto: if it has any); "
            "text: the hidden states of the captions; features: a vector for each image, by the extractor in "
            "evaluate.features of RECIPE."
        ),
    ] = "auto",
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens per caption. Default: the text encoder's own length; with --caption 40."
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], typer.Option(help="Type of the latents or hidden states.")
    ] = "float32",
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the encoder and prefix of its columns, to keep several of one kind; of a recipe's "
            "text encoders, the one to run. Default: latents, codes or text (of a recipe, all its text "
            "encoders; with --caption text); replaces the columns stored under that name."
        ),
    ] = None,
    caption: Annotated[
        bool,
        typer.Option(
            "--caption",
            help="TARGET is the folder of an image-to-text model of transformers (BLIP, GIT, LLaVA, ...), "
            "which writes a caption for every image, in a column of texts.",
        ),
    ] = False,
    prompt: Annotated[
        str | None, typer.Option(help="With --caption: what the model is asked, or begins with.")
    ] = None,
    actors: Annotated[int, typer.Option(min=1, help="How many shards are encoded in parallel.")] = 1,
    cpus: Annotated[float, typer.Option(min=0.1, help="CPUs of each actor.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each actor; a fraction shares one.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Add a frozen encoder's outputs to a data set, as columns; resumes after an interruption."""
    from sfumato.runtime.commands import precompute as runtime

    where: dict[str, Any] = {"actors": actors, "cpus": cpus, "gpus": gpus, "root": Path.cwd()}
    if caption:
        if arrays != "auto" or dtype != "float32":
            raise ConfigError("--caption writes texts: leave out --arrays and --dtype")
        with open_display() as display:
            report = runtime.caption(
                target, data, dest, tokens=tokens, name=name, prompt=prompt, display=display, **where
            )
        told = f"{report['samples'] - report['empty']:,} captions in the column {report['column']}"
        show(report, as_json, f"{told} of {report['folder']}")
        return
    if prompt is not None:
        raise ConfigError("--prompt is for --caption; leave it out")
    with open_display() as display:
        report = runtime.precompute(
            target,
            data,
            dest,
            kind=arrays,
            tokens=tokens,
            dtype=dtype,
            name=name,
            display=display,
            **where,
        )
    made = ", ".join(report["arrays"])
    show(report, as_json, f"{report['samples']:,} samples with {made} in {report['folder']}")
