"""Registers a trained model: an MLflow model that loads and samples anywhere, without a pickle in it."""

from __future__ import annotations

import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sfumato
from sfumato.core.conditions import NEGATIVE, Condition
from sfumato.errors import CheckpointError, ConfigError
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_files import read_card
from sfumato.tracking.run import TrackerHandle

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec

# What the package's sampling side imports; the package itself travels with the model.
REQUIREMENTS = ("mlflow", "torch", "diffusers", "numpy", "pandas", "pillow", "pydantic", "safetensors")


def register_model(
    handle: TrackerHandle, folder: Path, name: str, *, base: Path | None = None, description: str = ""
) -> int:
    """Log the model folder to the run and register it; returns the new version.

    `description` is Markdown of at most 5,000 characters, which MLflow shows on the version's page.

    `base` is the place of an adapter's base, None for its place in training. The registered model looks for
    its base there, or where MLflow's `model_config={"base": PLACE}` says when it is loaded.

    Raises:
        ConfigError: a name that MLflow does not take.
        CheckpointError: no model in that folder.
        SfumatoError: a store that does not answer.
    """
    if not name.strip() or set(name) & set("/:%\"'"):
        raise ConfigError(f"registry.name '{name}' must not be empty or contain / : % or quotes")
    if not folder.is_dir():
        raise CheckpointError(f"{folder} has no model: train first, then register")
    generator = Generator.load(folder, trust=True, base=base)
    client = handle.store.client()
    handle.store.reach(client.search_experiments)
    model_id = _log(client, handle, folder, generator, _model_config(folder, base))
    _ensure_registered(client, name)
    version = client.create_model_version(
        name,
        source=f"models:/{model_id}",
        run_id=handle.run_id,
        tags={"sfumato.images": generator.images, "sfumato.digest": generator.digest},
        model_id=model_id,
        description=description,
    )
    return int(version.version)


def describe_version(handle: TrackerHandle, name: str, version: int, description: str) -> None:
    """Give a registered version another description; one that was deleted stays deleted.

    Raises SfumatoError for a store that does not answer.
    """
    from mlflow.exceptions import MlflowException

    client = handle.store.client()
    handle.store.reach(client.search_experiments)
    try:
        if client.get_model_version(name, str(version)).description != description:
            client.update_model_version(name, str(version), description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _model_config(folder: Path, base: Path | None) -> dict[str, str] | None:
    """What can be chosen when the model is loaded: for an adapter, the place of its base."""
    if not read_card(folder)[0].get("bases"):
        return None
    return {"base": str(base.resolve()) if base else ""}


def _log(
    client: MlflowClient,
    handle: TrackerHandle,
    folder: Path,
    generator: Generator,
    model_config: dict[str, str] | None,
) -> str:
    """Log the model as an output of the run; returns its id. A failed upload is marked as failed."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model

    logged = client.create_logged_model(
        handle.experiment_id,
        name=_name(generator),
        source_run_id=handle.run_id,
        tags={"sfumato.digest": generator.digest},
        params={"family": generator.config.family, "images": str(generator.images)},
        model_type="generator",
    )
    try:
        with tempfile.TemporaryDirectory(prefix="sfumato-") as scratch:
            packed = Path(scratch) / "model"
            mlflow_model = Model(
                artifact_path=logged.artifact_location, run_id=handle.run_id, model_id=logged.model_id
            )
            _pack(packed, folder, generator, mlflow_model, model_config)
            client.log_model_artifacts(logged.model_id, str(packed))
        client.log_outputs(handle.run_id, [LoggedModelOutput(logged.model_id, step=generator.images)])
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _name(generator: Generator) -> str:
    """The logged model's name, of the characters that MLflow allows."""
    return "".join("-" if letter in "/:.%\"'" else letter for letter in generator.name) or "model"


def _pack(
    target: Path,
    folder: Path,
    generator: Generator,
    mlflow_model: Model,
    model_config: dict[str, str] | None,
) -> None:
    """Write an MLflow model folder: our model folder, the code, the signature, the requirements."""
    import mlflow.pyfunc

    before = list(sys.path)
    needed = (*REQUIREMENTS, *generator.provenance.settings.packages)
    try:
        with warnings.catch_warnings():
            # It asks for an example of the input, and would then sample from it.
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                target,
                mlflow_model=mlflow_model,
                model_config=model_config,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                code_paths=[str(Path(sfumato.__file__).parent)],
                artifacts={"model": str(folder.resolve())},
                signature=signature(generator),
                pip_requirements=[f"{package}=={_version(package)}" for package in needed],
            )
    finally:
        # MLflow leaves the copied code, which is about to be deleted, on the path.
        sys.path[:] = before


def _version(package: str) -> str:
    """The installed version, without the local build tag (2.13.0+cpu)."""
    return metadata.version(package).split("+", 1)[0]


def signature(generator: Generator) -> ModelSignature:
    """seed and the model's conditions by name -> uint8 images; sampling options as parameters.

    Labels are numbers, texts and tags strings, images the bytes of PNG, JPEG or WebP files, all else nested
    lists of numbers.
    """
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    columns: list[ColSpec | TensorSpec] = [ColSpec("long", "seed")]
    columns += [spec for condition in generator.conditions for spec in _columns(condition)]
    data = generator.data
    image = TensorSpec(np.dtype("uint8"), (-1, data.height, data.width, data.channels), name="image")
    kinds: dict[type, str] = {bool: "boolean", int: "long", float: "double", str: "string"}
    options: dict[str, Any] = generator.options().model_dump()
    params = [
        ParamSpec(name, kinds[type(value)], value) for name, value in options.items() if type(value) in kinds
    ]
    return ModelSignature(Schema(columns), Schema([image]), ParamSchema(params))


def _columns(condition: Condition) -> list[ColSpec]:
    """The column of a condition, and that of its negative, if any."""
    from mlflow.types import ColSpec, DataType
    from mlflow.types.schema import Array

    scalars = {"label": "long", "text": "string", "tags": "string", "image": "binary"}
    kind: Any = scalars.get(condition.kind)
    if kind is None:
        kind = DataType.double
        for _ in condition.shape:
            kind = Array(kind)
    found = [ColSpec(kind, condition.name, required=condition.required)]
    if condition.negative:
        found.append(ColSpec(kind, NEGATIVE + condition.name, required=False))
    return found


def _ensure_registered(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
