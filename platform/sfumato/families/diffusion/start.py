"""What a diffusion model takes over from the model that it starts from.

Fields that the recipe leaves out are those of the pretrained model; its network has to be the pretrained one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sfumato.core.config import Config
from sfumato.core.pretrained import card_config
from sfumato.core.pretrained_model import PretrainedModel
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.families.diffusion.interchange.from_diffusers import settings

_OF_RUNS = ("condition", "text", "network", "objective", "first_stage", "latent_scale", "sampling")
_UNLIKE_DEFAULT = {"latent_norm": "whole"}
"""Fields that a run brings only where they differ from this: records leave them out otherwise."""
FIELD = "model.pretrained"


def taken_over(source: PretrainedModel, given: Mapping[str, Any], options: Config) -> dict[str, Any]:
    """All fields: `given` ones as they are, others as `source` brings them; of `options` those that are set.

    Raises ConfigError, in one line, for a model of another kind.
    """
    brought = _brought(source)
    fields = {**brought, **{name: value for name, value in given.items() if name != "sampling"}}
    chosen = options.model_dump(exclude_unset=True)
    if isinstance(given.get("objective"), Config) or not isinstance(brought.get("sampling"), Mapping):
        return {**fields, "sampling": options}
    return {**fields, "sampling": {**brought["sampling"], **chosen}}


def missing(source: PretrainedModel, given: Mapping[str, Any]) -> bool:
    """Whether `source`, once looked up, brings a field that is not given."""
    known = source.model is not None or source.pipeline is not None
    return known and any(name not in given for name in _brought(source) if name != "sampling")


def problems(source: PretrainedModel, network: Config) -> list[str]:
    """That the recipe describes another network than `source` is, one line."""
    if source.model is None and source.pipeline is None:
        if source.library is not None:
            return []
        return [f"{FIELD}: {source.source[1]!r} has not been looked up"] if source.digest is None else []
    theirs = _brought(source)["network"]
    dumped = {name: _plain(value) for name, value in theirs.items()}
    ours = network.model_dump(mode="json")
    if all(ours.get(name) == value for name, value in dumped.items()):
        return []
    return [f"model.network: {FIELD} brings its own network, which this one is not; leave it out"]


def _brought(source: PretrainedModel) -> dict[str, Any]:
    if source.model is not None:
        config = card_config(source.model, config_class, f"{FIELD}.model.config", trust=source.trust)
        if config.family != "diffusion":
            raise ConfigError(f"{FIELD}.run: is a {config.family} model; name a run of family diffusion")
        more = [name for name, usual in _UNLIKE_DEFAULT.items() if getattr(config, name) != usual]
        return {name: _plain(getattr(config, name)) for name in (*_OF_RUNS, *more)}
    return {} if source.pipeline is None else settings(source)


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    return list(value) if isinstance(value, tuple) else value
