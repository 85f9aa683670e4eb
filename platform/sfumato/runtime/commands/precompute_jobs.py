"""What `sfumato precompute` is to do: which encoder adds which columns to which data set, checked first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato import recipe as recipes
from sfumato.core.batch import to_device
from sfumato.core.columns import NAME, RESERVED
from sfumato.core.first_stage import (
    CODES,
    LATENT_MEAN,
    LATENT_STD,
    FirstStage,
    FirstStageConfig,
    Tokenizer,
)
from sfumato.data.format.columns import TEXT, ColumnInfo, EncoderInfo
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.packing.captioning import Captions, caption_shard
from sfumato.data.packing.placing import check_destination, check_place
from sfumato.data.packing.precompute import Addition, Files, ShardEncoder, TextsEncoder, encode_shard
from sfumato.data.reading.batches import to_batch
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.runtime.commands import captioner, features_of_recipe, text_encoder
from sfumato.runtime.commands.captioner import CaptionModel, FolderCaptioner
from sfumato.runtime.commands.features_of_recipe import COLUMN, FeatureEncoder, Features
from sfumato.runtime.commands.text_encoder import TextEncoder, TextModel
from sfumato.runtime.commands.text_of_recipe import RecipeText, RecipeTextEncoder, of_recipe
from sfumato.runtime.runs import first_stage, pretrained
from sfumato.sampling.pretrained_files import load_stored

_RECIPE = (".yaml", ".yml")
Kind = Literal["auto", "latents", "codes", "text", "features"]
CAPTION_TOKENS = 40
"""The most tokens of a written caption."""
FloatType = Literal["float32", "float16", "bfloat16"]


class AutoencoderEncoder:
    """A `ShardEncoder`: latents as mean and standard deviation, or codes, of a first stage."""

    def __init__(
        self, stage: FirstStageConfig, columns: Mapping[str, ColumnInfo], device: str = "cpu"
    ) -> None:
        opened = stage.open(config_class)
        assert opened.stored is not None, "a resolved first stage has a place"
        self.columns = columns
        self._device = torch.device(device)
        self._network = opened.spec.build()
        load_stored(self._network, opened.stored)
        self._network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays of `columns`; captions are ignored."""
        image_NCHW = to_device(to_batch({"image": image_NHWC}), self._device)["image"]
        network, names = self._network, tuple(self.columns)
        if len(names) == 1:
            assert isinstance(network, Tokenizer)
            return {names[0]: network.codes(image_NCHW).cpu().numpy()}
        assert isinstance(network, FirstStage)
        latent = network.encode(image_NCHW)
        return dict(zip(names, (part.float().cpu().numpy() for part in latent), strict=True))


Model = FirstStageConfig | TextModel | RecipeText | Features


@dataclass(frozen=True, slots=True)
class Job:
    """An actor's instructions: plain data that travels to any node."""

    model: Model
    folder: str
    addition: Addition

    def perform(self, number: int, manifest: Manifest, encoder: Any) -> Files:
        """Encode a shard."""
        return encode_shard(self.folder, manifest, number, encoder, self.addition)

    def encoder(self, device: str) -> ShardEncoder | TextsEncoder:
        if isinstance(self.model, TextModel):
            return TextEncoder(self.model, self.addition.columns, device)
        if isinstance(self.model, Features):
            return FeatureEncoder(self.model, self.addition.columns)
        if isinstance(self.model, RecipeText):
            return RecipeTextEncoder(self.model, self.addition.columns, device)
        return AutoencoderEncoder(self.model, self.addition.columns, device)


def jobs_of(
    target: str,
    folder: str,
    dest: str,
    kind: Kind,
    root: Path,
    *,
    tokens: int | None = None,
    dtype: FloatType = "float32",
    name: str | None = None,
) -> list[Job]:
    """The plan of the work, one job an encoder, if it is possible. Raises SfumatoError in one line."""
    if tokens is not None and kind != "text":
        raise ConfigError(f"--tokens={tokens} counts the tokens of texts: add --arrays text, or leave it out")
    if name is not None and not re.match(NAME, name):
        raise ConfigError(f"--name: lower-case letters, digits and _; got {name!r}")
    manifest = verify(folder)
    planned: list[tuple[Model, Addition]] = []
    if kind == "text" and target.endswith(_RECIPE):
        if tokens is not None:
            raise ConfigError("--tokens: the recipe says how many; leave it out")
        for each in of_recipe(pretrained.resolved(recipes.load(target), root), name, target):
            columns = each.columns(dtype, manifest)
            planned.append((each, Addition(dest, each.name, each.info(target, manifest), columns)))
    elif kind == "features":
        features = features_of_recipe.look_up(target, folder, root)
        (info,) = features.columns().values()
        planned.append(
            (
                features,
                Addition(dest, name or COLUMN, features.info(target, manifest), {name or COLUMN: info}),
            )
        )
    else:
        planned.append(_named_job(target, dest, kind, manifest, root, tokens, dtype, name))
    for _, addition in planned:
        check_destination(folder, manifest, addition)
    return [Job(model, folder, addition) for model, addition in planned]


def _named_job(
    target: str,
    dest: str,
    kind: Kind,
    manifest: Manifest,
    root: Path,
    tokens: int | None,
    dtype: FloatType,
    name: str | None,
) -> tuple[FirstStageConfig | TextModel, Addition]:
    """The job of an encoder that `name` names, whose columns begin with it."""
    model: FirstStageConfig | TextModel
    if kind == "text":
        model = text_encoder.look_up((root / target).resolve(), tokens)
        info, columns, usual = model.info(target, manifest), model.columns(dtype), "text"
    else:
        model = _stage(target, root)
        info, columns = _stage_info(model, manifest, target), _stage_columns(model, kind, dtype, target)
        usual = CODES if CODES in columns else "latents"
    if name is not None:
        columns = {f"{name}_{column}": column_info for column, column_info in columns.items()}
    return model, Addition(dest, name or usual, info, columns)


def _stage(target: str, root: Path) -> FirstStageConfig:
    """The first stage of a recipe, or a run as a first stage."""
    if not target.endswith(_RECIPE):
        return first_stage.named(target, root)
    recipe = pretrained.resolved(recipes.load(target), root)
    found = first_stage.stages_of(recipe)
    if len(found) != 1:
        has = (
            f"several first stages ({', '.join(field for field, _ in found)})" if found else "no first stage"
        )
        raise ConfigError(f"{target}: its model has {has}; name a recipe with one, or the run itself")
    return found[0][1]


def _stage_info(stage: FirstStageConfig, manifest: Manifest, target: str) -> EncoderInfo:
    if problems := stage.problems(manifest.spec, config_class, field=""):
        raise ConfigError(*problems)
    if manifest.of_its_size() is not manifest:
        raise ConfigError(
            f"{manifest.name} has images of several sizes, and the arrays of an encoder have one shape: pack "
            "with a size instead of buckets"
        )
    assert stage.model is not None
    assert stage.digest is not None
    return EncoderInfo(
        run=target,
        digest=stage.digest,
        family=stage.model.family,
        images=manifest.digest,
        transform="pixels / 127.5 - 1",
    )


def _stage_columns(
    stage: FirstStageConfig, kind: Kind, dtype: FloatType, target: str
) -> dict[str, ColumnInfo]:
    spec = stage.open(config_class).spec
    if kind == "codes" and not spec.num_codes:
        raise ConfigError(f"--arrays codes: {target} has no codes; use --arrays latents")
    if spec.num_codes and kind != "latents":
        return {CODES: ColumnInfo(kind="array", dtype="int64", shape=spec.latent[1:], stored="side")}
    info = ColumnInfo(kind="array", dtype=dtype, shape=spec.latent, stored="side")
    return {LATENT_MEAN: info, LATENT_STD: info}


@dataclass(frozen=True, slots=True)
class CaptionJob:
    """The same for a model that writes captions."""

    model: CaptionModel
    folder: str
    work: Captions

    def encoder(self, device: str) -> FolderCaptioner:
        return FolderCaptioner(self.model, device)

    def perform(self, number: int, manifest: Manifest, encoder: Any) -> None:
        """Caption a shard."""
        caption_shard(self.folder, manifest, number, encoder, self.work)


def caption_job(
    target: Path, folder: str, dest: str, *, tokens: int | None, name: str | None, prompt: str | None
) -> CaptionJob:
    """The plan of captioning, if it is possible. Raises SfumatoError in one line."""
    if name is not None and (not re.match(NAME, name) or name in RESERVED):
        raise ConfigError(f"--name: lower-case letters, digits and _, and none of {RESERVED}; got {name!r}")
    manifest = verify(folder)
    model = captioner.look_up(target, tokens or CAPTION_TOKENS, prompt)
    work = Captions(dest, name or TEXT, model.info(str(target), manifest))
    check_place(folder, manifest, dest, work.records)
    work.check(Manifest.load(dest) if Manifest.exists(dest) else manifest)
    return CaptionJob(model, folder, work)
