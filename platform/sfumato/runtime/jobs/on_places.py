"""Commands on what is on the cluster already: pack, precompute, and evaluate of a run or of images."""

from __future__ import annotations

import hashlib

from sfumato.data.packing.sources import SOURCES
from sfumato.errors import ConfigError
from sfumato.runtime.cluster.use import Actors, Use
from sfumato.runtime.jobs.command import Command, Words
from sfumato.runtime.jobs.on_recipe import is_relative
from sfumato.runtime.jobs.secrets import check_overrides

_LEAST = {"pack": (2, "SOURCE DEST"), "precompute": (2, "ENCODER DATA [DEST]"), "evaluate": (1, "TARGET")}
_PLACES = ("--against", "--held-out", "--out")


def read(given: Words) -> Command:
    """The command, whose places are looked for there. Raises ConfigError."""
    places = [word for word in given.plain if "=" not in word]
    least, shown = _LEAST[given.name]
    if len(places) < least:
        raise ConfigError(f"`{given.name}` needs {shown}: sfumato submit ... -- {given.name} {shown}")
    check_overrides([word for word in given.plain if "=" in word])
    named = [("place", place) for place in places if place not in SOURCES.names()]
    named += [(option, given.values[option]) for option in _PLACES if option in given.values]
    return Command(
        name=given.name,
        said=str(given),
        arguments=(*given.plain, *given.flags),
        title=given.name,
        digest=hashlib.sha256("\0".join([*given.plain, *given.flags]).encode()).hexdigest(),
        uses=(Use(actors=_actors(given)),),
        relative=tuple(f"{name}={place}" for name, place in named if is_relative(place)),
    )


def _actors(given: Words) -> Actors:
    try:
        return Actors(
            count=max(1, int(given.values.get("--actors", 1))),
            cpus=float(given.values.get("--cpus", 1)),
            gpus=float(given.values.get("--gpus", 0)),
            fields="--actors, --cpus, --gpus",
        )
    except ValueError as error:
        raise ConfigError(f"`{given.name}`: --actors and what each takes are numbers ({error})") from None
