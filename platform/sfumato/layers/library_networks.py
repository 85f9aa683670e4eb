"""Networks of diffusers and transformers, built from the config.json of a folder that their libraries wrote.

A class is looked up by name only in the library's own namespace: code in a folder, or code that a config.json
points to (`auto_map`, kernels on a hub), is never run, and nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor, nn

from sfumato.core.pretrained import LibraryModel, OpenNetwork, Pretrained
from sfumato.core.validation import first_problem
from sfumato.errors import CapabilityError, CheckpointError, ConfigError, with_extra

CONFIG = "config.json"
# Fields that make a library import or download code, or change the form that weights are stored in.
_CODE = ("auto_map", "attn_implementation", "experts_implementation", "kernel_config")
_BASES = {"diffusers": "ModelMixin", "transformers": "PreTrainedModel"}


def described(folder: Path) -> LibraryModel:
    """Describe the network in a folder. Raises ConfigError, in one line, for any other folder."""
    file = folder / CONFIG
    if not file.is_file():
        raise ConfigError(
            f"{folder} has no {CONFIG}; name the folder of one network of diffusers or transformers "
            "(of a pipeline, its subfolder: subfolder=unet)"
        )
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON ({error}); copy it again") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{file} is not the configuration of a network")
    if "quantization_config" in content:
        raise ConfigError(f"{folder} holds quantized weights; use a folder with weights in full")
    library: Literal["diffusers", "transformers"]
    if isinstance(content.get("_class_name"), str):
        library, name = "diffusers", content["_class_name"]
    elif isinstance(content.get("architectures"), list) and len(content["architectures"]) == 1:
        library, name = "transformers", content["architectures"][0]
    else:
        raise ConfigError(
            f"{file} names no class: a folder of diffusers has _class_name, one of transformers has one "
            "entry in architectures"
        )
    try:
        model = LibraryModel(library=library, name=name, config=_safe(content))
    except ValidationError as error:
        raise ConfigError(f"{file}: {first_problem(error, LibraryModel)}") from None
    _class_of(model)
    return model


def build(model: LibraryModel) -> nn.Module:
    """Build the network with initial weights, float32. Raises ConfigError if it rejects its configuration."""
    kind = _class_of(model)
    with _quiet(model.library):
        try:
            if model.library == "diffusers":
                network = kind.from_config(model.config)
            else:
                network = kind(kind.config_class.from_dict(_safe(model.config)))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"{model.library}.{model.name} rejects its configuration: {error}") from error
    assert isinstance(network, nn.Module)
    return network


def config_of(model: LibraryModel) -> Any:
    """The configuration of a network of transformers, as the library reads it."""
    assert model.library == "transformers"
    kind = _class_of(model)
    with _quiet(model.library):
        return kind.config_class.from_dict(_safe(model.config))


def opened(pretrained: Pretrained) -> OpenNetwork:
    """The network in `pretrained.folder`, by its recorded description.

    Raises ConfigError if it has not been looked up, or is not a library's folder.
    """
    if pretrained.library is None:
        kind, place = pretrained.source
        reason = "has not been looked up" if kind == "folder" else "is not a diffusers or transformers folder"
        raise ConfigError(f"{kind}: {place!r} {reason}")
    return OpenNetwork(partial(build, pretrained.library), pretrained.weights())


def read(folder: Path) -> dict[str, Tensor]:
    """The weights in a folder, under the names that their class uses in this version of the library.

    The library itself reads them, since it renames weights that its older versions wrote.
    Raises CheckpointError if they are missing, incomplete or of another network.
    """
    model = described(folder)
    kind = _class_of(model)
    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    if model.library == "transformers":
        options |= {"config": kind.config_class.from_dict(_safe(model.config)), "dtype": "auto"}
    else:
        options |= {"low_cpu_mem_usage": False}
    with _quiet(model.library):
        try:
            network, report = kind.from_pretrained(folder, **options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{folder} cannot be loaded: {reason[:300]}") from error
    for field, what in (("missing_keys", "lacks"), ("mismatched_keys", "has another shape for")):
        if report[field]:
            raise CheckpointError(
                f"{folder} {what} weights of {model.name}, for example {sorted(map(str, report[field]))[0]}"
            )
    state: dict[str, Tensor] = network.state_dict()
    return state


def _class_of(model: LibraryModel) -> Any:
    if importlib.util.find_spec(model.library) is None:
        mend = with_extra("features") if model.library == "transformers" else "pip install diffusers"
        raise CapabilityError(f"a folder of {model.library} needs {model.library}, not installed: {mend}")
    library = importlib.import_module(model.library)
    kind = getattr(library, model.name, None)
    if not (isinstance(kind, type) and issubclass(kind, getattr(library, _BASES[model.library]))):
        raise ConfigError(
            f"{model.library} {library.__version__} has no network {model.name!r}; code from elsewhere is "
            "never run"
        )
    return kind


def _safe(config: Any) -> Any:
    """The configuration without fields that make the library look for code, at any depth."""
    if isinstance(config, Mapping):
        return {
            key: _safe(value) for key, value in config.items() if not any(word in str(key) for word in _CODE)
        }
    return [_safe(value) for value in config] if isinstance(config, list) else config


@contextlib.contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Silence the library's warnings and progress bars inside the block."""
    logging = importlib.import_module(f"{library}.utils.logging")
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    bars = getattr(logging, "is_progress_bar_enabled", lambda: False)()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
