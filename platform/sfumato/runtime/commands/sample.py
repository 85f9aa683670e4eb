"""Drawing samples from a run, and exporting its model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato.core.allocator import keep_freed_memory
from sfumato.core.drafts import beside, writing
from sfumato.core.family import ExportsDiffusers
from sfumato.errors import ConfigError
from sfumato.provenance.formats import Format
from sfumato.runtime.card.write import export_card
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.pretrained import resolved_options
from sfumato.runtime.runs.targets import Found, model_of
from sfumato.sampling.conditions import Asked
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import read_model_folder, save_model_folder
from sfumato.sampling.model_signing import signed
from sfumato.sampling.output import write_samples
from sfumato.sampling.sweep import Sweep

DEFAULT_IMAGES = 64
DEFAULT_ROWS = 8
"""Samples of a sweep, each drawn with all values."""


def draw(
    run: str,
    out: Path,
    *,
    num: int | None,
    seed: int,
    asked: Asked,
    options: Mapping[str, Any],
    sweep: Sweep | None = None,
    batch_size: int | None,
    overwrite: bool,
    kind: Format = "png",
    device: str,
    base: Path | None = None,
    trust: bool = False,
    root: Path,
    display: Display,
) -> Path:
    """Write `num` samples of a run into `out`; returns the folder.

    Without `num`, one image per prompt of a file of prompts, or 64; with a `sweep`, one row of images per
    prompt, or 8 rows. `asked` are the conditions. The same
    request on the same device gives the same bytes. `device` is a PyTorch device name, or "auto". `base`
    is the place of an adapter's base, None for its place in training; `trust` allows a model folder to name
    classes by import path.
    """
    place, num = device_of(device), asked.images(num)
    keep_freed_memory(of_any_size=True)
    with model_of(run, root=root, trust=trust) as found:
        display.line(found.about)
        generator = Generator.load(found.model, place, trust=found.trusted, base=base)
        if options:
            options = resolved_options(found.model, options, root, trust=found.trusted)
            generator = generator.with_options(generator.options(options))
        conditions = asked.source(generator.takes)
        few = len(asked.prompts) or DEFAULT_ROWS
        num = num or (few if sweep else DEFAULT_IMAGES)
        display.stage("sample")
        folder = write_samples(
            out,
            generator,
            num,
            seed=seed,
            conditions=conditions,
            options=options,
            sweep=sweep,
            batch_size=batch_size,
            overwrite=overwrite,
            kind=kind,
            progress=display.update,
        )
        display.done(f"{num * (len(sweep.values) if sweep else 1):,} images")
        if counts := generator.door.counts:
            display.note(f"filter: {counts.get('found', 0):,} of {counts.get('images', 0):,} images found")
    return folder


def export(
    run: str,
    dest: Path,
    *,
    kind: str,
    with_base: bool = False,
    base: Path | None = None,
    trust: bool = False,
    root: Path,
    display: Display,
) -> None:
    """Write a run's model to `dest` as a model folder or as a diffusers pipeline.

    A model folder holds only an adapter and the place of its base, unless `with_base` asks for both.
    `base` is that place, None for the place in training. An interrupted call leaves nothing.

    Raises ConfigError when `dest` exists or the family has no such export.
    """
    if dest.exists():
        raise ConfigError(f"{dest} exists; choose another place or remove it")
    with model_of(run, root=root, trust=trust) as found:
        display.line(found.about)
        dest.parent.mkdir(parents=True, exist_ok=True)
        draft = beside(dest)
        try:
            with writing(draft):
                _write(draft, found, kind, with_base=with_base, base=base)
            draft.rename(dest)
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def _write(dest: Path, found: Found, kind: str, *, with_base: bool, base: Path | None) -> None:
    if kind == "safetensors" and not with_base:
        shutil.copytree(found.model, dest)
    else:
        generator = Generator.load(found.model, trust=found.trusted, base=base)
        if kind == "safetensors":
            _write_whole(dest, found, generator)
            signed(dest)
        elif isinstance(generator.family, ExportsDiffusers):
            generator.family.export_diffusers(generator.nets, str(dest), generator.config.sampling)
        else:
            raise ConfigError(
                f"family {generator.config.family!r} has no diffusers export; use --format safetensors"
            )
    export_card(found, dest)


def _write_whole(dest: Path, found: Found, generator: Generator) -> None:
    """A model folder with all weights of all networks."""
    stored = read_model_folder(found.model, trust=found.trusted)
    if not stored.bases:
        raise ConfigError("--with-base: this model has no adapter, so it is complete without; leave it out")
    save_model_folder(
        dest,
        stored.config,
        stored.data,
        {name: net.state_dict() for name, net in generator.nets.items()},
        name=stored.name,
        progress=stored.progress,
        notes=stored.notes,
        trained_on=stored.trained_on,
        provenance=stored.provenance,
        whole=True,
    )


def device_of(name: str) -> torch.device:
    """The device of that name; "auto" is a GPU if available. Raises ConfigError if the device is missing."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # an assertion if torch has no CUDA at all
        raise ConfigError(
            f"--device {name}: not on this machine ({str(error).splitlines()[0]}); leave it out, or use cpu"
        ) from error
    return device
