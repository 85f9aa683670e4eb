"""The command after `--` in `sfumato submit`, read and checked on this machine.

Nothing of a recipe runs here: a component that it names by import path is imported only with `--trust`, since
that runs the module, here and on the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sfumato.errors import ConfigError
from sfumato.runtime.jobs import on_pipeline, on_places, on_recipe
from sfumato.runtime.jobs.command import Command, Words
from sfumato.runtime.pipeline.settings import is_pipeline

EXAMPLE = "sfumato submit --address http://head:8265 -- run recipe.yaml train.images=10000"
COMMANDS = {
    "run": {"--fresh": False, "--take-over": False, "--from": True},
    "train": {"--fresh": False, "--take-over": False},
    "evaluate": {
        "--against": True,
        "--samples": True,
        "--metrics": True,
        "--features": True,
        "--seed": True,
        "--actors": True,
        "--batch-size": True,
        "--resize": True,
        "--held-out": True,
        "--out": True,
        "--trust": False,
    },
    "tune": {"--fresh": False, "--resume": False},
    "pack": {
        "--size": True,
        "--val": True,
        "--dedupe": True,
        "--filter": True,
        "--on-error": True,
        "--max-errors": True,
        "--shard-size": True,
        "--workers": True,
        "--overwrite": False,
    },
    "precompute": {
        "--arrays": True,
        "--tokens": True,
        "--dtype": True,
        "--name": True,
        "--caption": False,
        "--prompt": True,
        "--actors": True,
        "--cpus": True,
        "--gpus": True,
    },
    "edit": {
        "--out": True,
        "--by": True,
        "--strength": True,
        "--mask": True,
        "--set": True,
        "--label": True,
        "--prompt": True,
        "--negative": True,
        "--condition": True,
        "--guidance": True,
        "--sampler": True,
        "--steps": True,
        "--option": True,
        "--seed": True,
        "--actors": True,
        "--gpus-per-actor": True,
        "--device": True,
        "--overwrite": False,
        "--base": True,
        "--trust": False,
    },
    "augment": {
        "--by": True,
        "--class-balance": False,
        "--to": True,
        "--agreement": True,
        "--nearest": True,
        "--farthest": True,
        "--tries": True,
        "--seed": True,
        "--seen": True,
        "--actors": True,
        "--gpus-per-actor": True,
        "--device": True,
        "--base": True,
        "--trust": False,
    },
}
"""The commands that are sent, with their options, and whether each takes a value."""


def parse(words: Sequence[str], *, trust: bool) -> Command:
    """Parse the words after `--` into a command. Raises ConfigError with all problems."""

    given = _told_apart(words)
    if given.name in on_places.COMMANDS and not (given.name == "evaluate" and _is_recipe(given.plain)):
        return on_places.read(given)
    if not given.plain or "=" in given.plain[0]:
        raise ConfigError(
            f"`{given.name}` needs a recipe file: sfumato submit ... -- {given.name} recipe.yaml"
        )
    if given.name == "run" and is_pipeline(Path(given.plain[0])):
        return on_pipeline.read(given, trust=trust)
    return on_recipe.read(given, trust=trust)


def _told_apart(words: Sequence[str]) -> Words:
    if not words or words[0] not in COMMANDS:
        got = f"got {words[0]!r}" if words else "nothing was given"
        raise ConfigError(
            f"what to submit comes after `--` and begins with one of {', '.join(COMMANDS)} ({got}), for "
            f"example: {EXAMPLE}"
        )
    name, known = words[0], COMMANDS[words[0]]
    plain, flags, values = [], [], {}
    rest = iter(words[1:])
    for word in rest:
        if not word.startswith("-"):
            plain.append(word)
            continue
        option, equals, value = word.partition("=")
        if option not in known:
            raise ConfigError(f"{option}: no option of a submitted `{name}`; known: {', '.join(known)}")
        flags.append(option)
        if known[option]:
            values[option] = value if equals else next(rest, "")
            if not values[option]:
                raise ConfigError(f"{option}: needs a value")
            flags.append(values[option])
    return Words(name, tuple(plain), tuple(flags), values)


def _is_recipe(plain: Sequence[str]) -> bool:
    """Whether `evaluate` is asked of a recipe file of this machine, rather than of something there."""
    return bool(plain) and Path(plain[0]).suffix in (".yaml", ".yml")
