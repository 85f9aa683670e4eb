"""Commands on what is on the cluster: pack, precompute, edit, augment, and evaluate of a run or of images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sfumato.data.packing.sources import SOURCES
from sfumato.errors import ConfigError
from sfumato.runtime.cluster.use import Actors, Use
from sfumato.runtime.jobs.command import Command, Words
from sfumato.runtime.jobs.on_recipe import is_relative
from sfumato.runtime.jobs.secrets import check_overrides


@dataclass(frozen=True)
class _Places:
    """What a command on places needs: so many words, the option that `shown` names, options with places."""

    least: int
    shown: str
    option: str | None = None
    options: tuple[str, ...] = ()
    alone: bool = False
    """Without --actors it computes in its own process: the driver's, on a head that may do no work."""


COMMANDS: Mapping[str, _Places] = {
    "pack": _Places(2, "SOURCE DEST"),
    "precompute": _Places(2, "ENCODER DATA [DEST]"),
    "evaluate": _Places(1, "TARGET", options=("--against", "--held-out", "--out")),
    "edit": _Places(1, "RUN [IMAGES] --out FOLDER", "--out", ("--out", "--mask", "--base"), alone=True),
    "augment": _Places(2, "DATA DEST --by RUN", "--by", ("--by", "--base"), alone=True),
}
_SETTINGS = ("--set", "--option", "--condition")
_ACTORS = "--actors"


def read(given: Words) -> Command:
    """The command, whose places are looked for there. Raises ConfigError."""
    asks = COMMANDS[given.name]
    places = [word for word in given.plain if "=" not in word]
    if len(places) < asks.least or (asks.option is not None and asks.option not in given.values):
        raise ConfigError(
            f"`{given.name}` needs {asks.shown}: sfumato submit ... -- {given.name} {asks.shown}"
        )
    check_overrides([word for word in given.plain if "=" in word])
    check_overrides(list(_settings(given)))
    known = SOURCES.names() if given.name == "pack" else ()
    named = [("place", place) for place in places if place not in known]
    named += [(option, given.values[option]) for option in asks.options if option in given.values]
    flags = given.flags
    if asks.alone and _ACTORS not in given.values:
        flags += (_ACTORS, "1")
    return Command(
        name=given.name,
        said=str(given),
        arguments=(*given.plain, *flags),
        title=given.name,
        digest=hashlib.sha256("\0".join([*given.plain, *flags]).encode()).hexdigest(),
        uses=(Use(actors=_actors(given)),),
        relative=tuple(f"{name}={place}" for name, place in named if is_relative(place)),
    )


def _settings(given: Words) -> Iterator[str]:
    """The values of options that take key=value, each of which may be given several times."""
    for option, value in zip(given.flags, given.flags[1:], strict=False):
        if option in _SETTINGS:
            yield value


def _actors(given: Words) -> Actors:
    """What its actors take, which `edit` and `augment` state by another option than `precompute`."""
    gpus = "--gpus-per-actor" if COMMANDS[given.name].alone else "--gpus"
    try:
        return Actors(
            count=max(1, int(given.values.get(_ACTORS, 1))),
            cpus=float(given.values.get("--cpus", 1)),
            gpus=float(given.values.get(gpus, 0)),
            fields=f"{_ACTORS}, {gpus}" if COMMANDS[given.name].alone else f"{_ACTORS}, --cpus, {gpus}",
        )
    except ValueError as error:
        raise ConfigError(f"`{given.name}`: {_ACTORS} and what each takes are numbers ({error})") from None
