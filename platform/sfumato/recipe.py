"""The recipe: the whole typed configuration of a run, from one YAML file.

A file may build on another (`base: ../digits/ddpm.yaml`), interpolate (`${train.images}`), and be
overridden from the command line (`train.images=1000`). All errors are reported at once, one line each,
before anything starts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, SerializeAsAny, ValidationError

from sfumato import families, interpolation
from sfumato.core import identity
from sfumato.core.batch import DataSpec
from sfumato.core.config import Config, Neutral
from sfumato.core.earlier_defaults import FIRST, SCHEMA, as_of
from sfumato.core.family import FamilyConfig
from sfumato.core.validation import explain
from sfumato.data.config import DataSettings
from sfumato.data.order import micro_batches
from sfumato.errors import ConfigError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.parallel import ParallelSettings
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.stored import Provenance
from sfumato.sampling import marked_noise
from sfumato.sampling.conditions import condition_problems
from sfumato.tracking.config import TrackingSettings
from sfumato.training import capabilities, phases
from sfumato.training.config import TrainSettings
from sfumato.tuning.config import TuneSettings


class RegistrySettings(Config):
    """The MLflow model registry."""

    name: str | None = Field(None, description="Registered model's name; null uses the recipe's name.")
    enabled: bool = Field(True, description="Whether `sfumato run` registers the trained model.")
    description: str = Field("", description="What the model is for, for its card.")
    licence: str = Field("", description="Terms of use of the model, for its card, for example apache-2.0.")
    limits: tuple[str, ...] = Field(
        (), description="Known limits of the model, a sentence each, for its card beside those found."
    )


class Recipe(Config):
    """The complete description of a run."""

    name: Neutral[str] = Field(
        ..., pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run, shown everywhere."
    )
    seed: int = Field(0, ge=0, description="Fixes data order, initial weights and all noise.")
    storage: Neutral[str] = Field("runs", description="Folder that holds the runs' folders.")
    data: DataSettings = Field(..., description="Where the images are and in which order they are read.")
    model: SerializeAsAny[FamilyConfig] = Field(..., description="The family and its configuration.")
    train: TrainSettings = Field(..., description="Length, batches, precision, intervals.")
    parallel: Neutral[ParallelSettings] = Field(ParallelSettings(), description="Workers and strategy.")
    evaluate: Neutral[EvaluateSettings] = Field(EvaluateSettings(), description="Evaluation after training.")
    tracking: Neutral[TrackingSettings] = Field(TrackingSettings(), description="MLflow.")
    registry: Neutral[RegistrySettings] = Field(RegistrySettings(), description="The model registry.")
    provenance: Neutral[ProvenanceSettings] = Field(
        ProvenanceSettings(), description="What is done to every generated picture before it leaves."
    )
    tune: Neutral[TuneSettings | None] = Field(
        None, description="Search space of `sfumato tune`; null: none."
    )

    def identity(self) -> dict[str, Any]:
        """The fields that identify a run: those that can change a number and differ from their defaults."""
        return {"schema": SCHEMA, **identity.changed(self)}

    def digest(self) -> str:
        """A hash of `identity`, unaffected by added fields."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()

    def counted(self) -> dict[str, Any]:
        """All fields that can change a number, including defaults, as checkpoints record them."""
        return identity.counted(self)

    def marking(self) -> Provenance:
        """How the model's pictures are marked, for its folder."""
        return Provenance(self.provenance, self.digest())

    def to_yaml(self) -> str:
        """The resolved recipe; loading it gives an equal one, also in versions that have other defaults."""
        return yaml.safe_dump({"schema": SCHEMA, **self.model_dump(mode="json")}, sort_keys=False)

    def problems(self, spec: DataSpec | None = None, samples: int | None = None) -> list[str]:
        """Problems that make the run impossible although every field is valid, one line each.

        `spec` and `samples` come from the data's manifest; without them, checks that need them are skipped.
        """
        found = micro_batches.problems(
            self.train.batch,
            self.data.streams,
            self.parallel.workers,
            self.train.micro_batch,
            samples=samples,
        )
        found += capabilities.problems(self.train, self.parallel)
        found += self.provenance.problems()
        if self.model.couples_rows():
            found += micro_batches.coupling_problems(
                self.train.batch,
                self.data.streams,
                self.parallel.workers,
                self.train.micro_batch,
                least=self.parallel.least_workers,
            )
        rows = self.train.micro_batch or self.train.batch
        group = min(rows, self.model.compared_rows())
        if rows % group:
            found.append(
                f"train.{'micro_batch' if self.train.micro_batch else 'batch'}: the model compares groups of "
                f"{group} images, which do not divide {rows}; use {max(group, rows // group * group)}"
            )
        if "://" in self.storage:
            found.append(
                f"storage={self.storage!r}: a run's folder is on a disk that driver and workers share; only "
                "checkpoints (train.checkpoint.uri) and data (data.path) can be in object storage"
            )
        if spec is not None:
            family_problems = self.model.problems(spec)
            found += family_problems
            if not family_problems:
                found += self.model.amount_problems(spec, batch=self.train.batch, samples=samples)
            found += self.evaluate.problems(spec, samples)
            found += self.provenance.size_problems(spec.height, spec.width)
            found += condition_problems(self.model, spec, self.train.preview_conditions)
            if not family_problems:
                family = self.model.build(spec)
                found += marked_noise.problems(self.provenance, family, self.model.sampling)
                found += capabilities.phase_problems(family.phases, self.parallel)
                found += capabilities.adapter_problems(family.nets, self.parallel)
                found += capabilities.matrix_problems(family.nets, self.parallel)
                found += phases.problems(family.phases, self.train.images)
                found += capabilities.optimizer_problems(family.nets)
        return found

    def check(self, spec: DataSpec | None = None, samples: int | None = None) -> None:
        """Raises ConfigError with all `problems`."""
        if found := self.problems(spec, samples):
            raise ConfigError(*found)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` overrides, and check every field.

    Raises ConfigError with one line per problem.
    """
    return parse(read(path, overrides))


def read(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe as plain data: bases merged, overrides applied, interpolations resolved."""
    config = _with_bases(Path(path), ())
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(
                f"override {override!r} is not of the form key=value, for example train.images=1000"
            )
        try:
            config = _merge(config, OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, yaml.YAMLError, TypeError) as error:
            raise ConfigError(f"override {override!r} cannot be applied: {_first_line(error)}") from error
    try:
        content = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {interpolation.explained(error)}") from error
    assert isinstance(content, dict)
    of_a_run = (Path(path).parent / "run.json").is_file()  # the first schema did not write its number
    return {**({"schema": FIRST} if of_a_run else {}), **{str(key): value for key, value in content.items()}}


def parse(content: Mapping[str, Any]) -> Recipe:
    """Build a recipe from plain data. Raises ConfigError with one line per problem.

    `schema` in it selects the version whose defaults count for fields that are left out: today's if absent.
    """
    lines: list[str] = []
    version = content.get("schema", SCHEMA)
    if type(version) is not int or not FIRST <= version <= SCHEMA:
        lines.append(f"schema: got {version!r}; this version of Sfumato knows {FIRST} to {SCHEMA}")
    model = _parse_model(content.get("model"), lines) if "model" in content else None
    rest = {key: value for key, value in content.items() if key not in ("model", "schema")}
    try:
        # A stand-in replaces an invalid model, so that the rest is still checked.
        return_value = Recipe.model_validate(
            {**rest, **({"model": model or _STAND_IN} if "model" in content else {})}
        )
    except ValidationError as error:
        lines += explain(error, Recipe)
    if lines:
        raise ConfigError(*lines)
    return as_of(return_value, version)


def schema() -> dict[str, Any]:
    """JSON schema of a recipe file for editors: `model` is one of the built-in families' configurations."""
    result = Recipe.model_json_schema()
    options = []
    for name in families.names():
        part = families.config_class(name).model_json_schema()
        result.setdefault("$defs", {}).update(part.pop("$defs", {}))
        options.append(part)
    by_path = {"type": "object", "properties": {"family": {"type": "string", "pattern": ".+:.+"}}}
    result["properties"]["model"] = {"anyOf": [*options, by_path]}
    result["properties"]["base"] = {"type": "string", "description": "Recipe file that this one builds on."}
    result["properties"]["schema"] = {
        "type": "integer",
        "minimum": FIRST,
        "maximum": SCHEMA,
        "description": "Version whose defaults count for the fields that are left out; absent: today's.",
    }
    result["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return result


def _parse_model(content: Any, lines: list[str]) -> FamilyConfig | None:
    if not isinstance(content, Mapping) or not isinstance(content.get("family"), str):
        lines.append(f"model.family: required, one of {', '.join(families.names())} or package.module:Class")
        return None
    try:
        cls = families.config_class(content["family"])
    except ConfigError as error:
        lines += [f"model.family: {problem}" for problem in error.problems]
        return None
    try:
        return cls.model_validate(dict(content))
    except ValidationError as error:
        lines += explain(error, cls, ("model",))
        return None


def _with_bases(path: Path, seen: tuple[Path, ...]) -> Any:
    resolved = path.resolve()
    if resolved in seen:
        raise ConfigError(
            f"{path}: `base` refers back to itself: {' -> '.join(p.name for p in (*seen, resolved))}"
        )
    if not path.is_file():
        raise ConfigError(f"recipe {str(path)!r} does not exist{_near_files(path)}")
    try:
        config = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {interpolation.invalid(error)}") from error
    except OSError as error:  # OmegaConf raises it too, for a file with only a number or a word
        raise ConfigError(f"{path} cannot be read as a recipe: {error}") from error
    if not isinstance(config, DictConfig):
        raise ConfigError(f"{path} holds no recipe: expected keys such as name, data, model, train")
    base = config.pop("base", None)
    if base is None:
        return config
    return _merge(_with_bases(path.parent / str(base), (*seen, resolved)), config)


def _merge(below: DictConfig, above: DictConfig) -> Any:
    """Merge `above` over `below`, key by key; parts that change their kind start from scratch."""
    plain = [OmegaConf.to_container(config, resolve=False) for config in (below, above)]
    return OmegaConf.merge(OmegaConf.create(_of_same_kinds(*plain)), above)


def _of_same_kinds(below: Any, above: Any) -> Any:
    """`below` without the parts whose `kind` or `family` changes in `above`: their keys no longer apply.

    A family by import path keeps them: it may be a subclass of the one below.
    """
    if not isinstance(below, dict) or not isinstance(above, dict):
        return below
    if "kind" in below and "kind" in above and below["kind"] != above["kind"]:
        return {}
    family = above.get("family", below.get("family"))
    if family != below.get("family") and ":" not in f"{family}":
        return {}
    return {key: _of_same_kinds(value, above.get(key)) for key, value in below.items()}


def _near_files(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = [str(p) for p in sorted(folder.rglob("*.yaml"))[:500]]
    near = difflib.get_close_matches(str(path), names, 1, 0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


class _StandIn(FamilyConfig):
    """Replaces an invalid model while the rest of its recipe is checked."""

    sampling: Config = Config()

    def build(self, data: DataSpec) -> Any:
        raise AssertionError("never built")

    @classmethod
    def tiny(cls) -> Any:
        raise AssertionError("never built")


_STAND_IN = _StandIn(family="stand-in")
