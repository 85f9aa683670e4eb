"""Reads the weights that a network starts from, and checks that they are the recorded ones.

A place is a network of a model folder, a folder of diffusers or transformers, or one safetensors file
(`core.pretrained`). Pickles are refused by name: reading one runs the code in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sfumato.core.stored import StoredFile, StoredFolder, StoredNet, Weights, matches
from sfumato.errors import CheckpointError
from sfumato.layers import library_networks
from sfumato.sampling.model_files import read_card, read_weights

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_STEMS = ("diffusion_pytorch_model", "model")
_KINDS: dict[str, type[Weights]] = {"run": StoredNet, "folder": StoredFolder, "file": StoredFile}


def load_stored(module: nn.Module, weights: Weights, adapter: Sequence[str] = ()) -> None:
    """Load stored weights into a network, in the network's dtypes.

    Every tensor of the network must be stored, except those that match `adapter` or `weights.fresh`.
    Raises CheckpointError, in one line, if the place is missing, damaged or not the expected one.
    """
    state = read(weights)
    if weights.inside:
        own = module.state_dict(keep_vars=True)
        state = {key if key in own else _wrapped(key, weights.inside): value for key, value in state.items()}
    fill(module, state, weights.place, may_lack=(*adapter, *weights.fresh))


def fill(module: nn.Module, state: Mapping[str, Tensor], place: str, may_lack: Sequence[str] = ()) -> None:
    """Copy tensors into a network. Raises CheckpointError for the first that is missing, left over or
    misshapen; only those of the network that match `may_lack` may be missing."""
    own = module.state_dict(keep_vars=True)
    tied = {id(own[key]) for key in state if key in own}
    for key, tensor in own.items():
        if key not in state and id(tensor) not in tied and not matches(key, may_lack):
            raise _misfit(place, f"{key} is missing")
    for key, value in state.items():
        if key not in own:
            raise _misfit(place, f"the network has no {key}")
        if value.shape != own[key].shape:
            raise _misfit(
                place, f"{key} has shape {list(value.shape)}, the network's has {list(own[key].shape)}"
            )
    module.load_state_dict(dict(state), strict=False)


def cast_parameters(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Convert a network's floating point parameters to another dtype, in place; None leaves them."""
    if dtype is not None:
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)


def read(weights: Weights) -> dict[str, Tensor]:
    """The tensors under the network's names, once their digest is checked."""
    if isinstance(weights, StoredNet):
        state = _of_model_folder(weights)
    elif isinstance(weights, StoredFolder):
        _check(weights, folder_digest(Path(weights.folder)))
        state = library_networks.read(Path(weights.folder))
    else:
        assert isinstance(weights, StoredFile)
        _check(weights, file_digest(Path(weights.file)))
        state = _of_file(Path(weights.file), weights.prefix)
    into = f"{weights.into}." if weights.into else ""
    found = {f"{into}{key}": value for key, value in state.items() if not matches(key, weights.unused)}
    for part in weights.also:
        found |= read(part)
    return found


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of a library folder's config.json and its weights' files."""
    digest = hashlib.sha256()
    for name in (library_networks.CONFIG, *weight_files(folder)):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} has no {name}; copy the folder again")
        digest.update(f"{name} {_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def file_digest(file: Path) -> str:
    """sha256 of a safetensors file. Raises CheckpointError for one that is missing or of another kind."""
    if not file.is_file():
        raise CheckpointError(f"{file} is not there; put the file back, or name another")
    if file.suffix != ".safetensors":
        raise CheckpointError(f"{file} is not a safetensors file; {_convert(file.suffix in _PICKLES)}")
    return _sha256(file)


def weight_files(folder: Path) -> list[str]:
    """The safetensors files that a library loads from its folder, and their index if there are several.

    Raises CheckpointError if there are none, or only pickles.
    """
    for stem in _STEMS:
        if (folder / f"{stem}.safetensors").is_file():
            return [f"{stem}.safetensors"]
        index = f"{stem}.safetensors.index.json"
        if (folder / index).is_file():
            return [index, *_shards(folder / index)]
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not there; put the folder back, or name another")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    found = f"only {pickles[0]}" if pickles else f"no {_STEMS[0]}.safetensors or {_STEMS[1]}.safetensors"
    raise CheckpointError(f"{folder} has {found}; {_convert(bool(pickles))}")


def base_record(weights: Weights) -> dict[str, Any]:
    """A model folder card's entry for the base of an adapter."""
    kind = next(name for name, cls in _KINDS.items() if isinstance(weights, cls))
    record = {"kind": kind, **asdict(weights)}
    del record["also"]
    return {**record, "also": [base_record(part) for part in weights.also]} if weights.also else record


def base_of(record: Any, card: Path) -> Weights:
    """The base that a card names. Raises CheckpointError for a damaged card."""
    try:
        fields: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in record.items() if key != "kind"
        }
        fields["also"] = tuple(base_of(part, card) for part in record.get("also", ()))
        return _KINDS[record["kind"]](**fields)
    except (KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{card} is damaged: field 'bases' cannot be read; copy the model again"
        ) from None


def moved(weights: Weights, place: str) -> Weights:
    """The same weights at another place."""
    if isinstance(weights, StoredFile):
        return replace(weights, file=place)
    assert isinstance(weights, (StoredNet, StoredFolder))
    return replace(weights, folder=place)


def _wrapped(key: str, inside: str) -> str:
    """The name of a module's tensor once another module holds it as `inside`."""
    module, _, tensor = key.rpartition(".")
    return f"{module}.{inside}.{tensor}"


def _of_model_folder(stored: StoredNet) -> dict[str, Tensor]:
    folder = Path(stored.folder)
    card, digest = read_card(folder)
    _check(stored, digest)
    expected = card["weights_sha256"].get(stored.network)
    if expected is None:
        known = ", ".join(card["weights_sha256"]) or "none"
        raise CheckpointError(f"{folder} has no weights for network {stored.network!r}; it has {known}")
    own = read_weights(folder / f"{stored.network}.safetensors", str(expected))
    record = card.get("bases", {}).get(stored.network)
    return own if record is None else {**read(base_of(record, folder)), **own}


def _of_file(file: Path, prefix: str) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as content:
            names = [name for name in content.keys() if name.startswith(prefix)]  # noqa: SIM118 (no mapping)
            state = {name.removeprefix(prefix): content.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors ({error})") from None
    if not state:
        raise CheckpointError(f"{file} has no tensor whose name starts with {prefix!r}; correct the prefix")
    return state


def _shards(index: Path) -> list[str]:
    try:
        names = sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} cannot be read ({error!r}); copy it again") from None
    if bad := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise CheckpointError(f"{index} names {bad[0]!r}, which is not a safetensors file of this folder")
    return names


def _check(weights: Weights, digest: str) -> None:
    if digest != weights.digest:
        what = "model" if isinstance(weights, StoredNet) else "content"
        raise CheckpointError(
            f"{weights.place} is not the {what} that this recipe was started with: its digest is "
            f"{digest[:12]}, the recipe's is {weights.digest[:12]}; start a new run or put the old {what} "
            "back"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _convert(pickled: bool) -> str:
    if not pickled:
        return "name one with weights in safetensors"
    return "a pickle is never read, since reading it runs code: convert it to safetensors"


def _misfit(place: str, what: str) -> CheckpointError:
    return CheckpointError(f"{place}: the weights belong to another network: {what}")
