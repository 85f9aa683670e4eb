"""The `data:` part of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sfumato.core.config import Config, Neutral
from sfumato.data.format.faults import OnError
from sfumato.data.format.images import MAX_PIXELS
from sfumato.data.format.manifest import Verify
from sfumato.data.packing.source import SourceConfig
from sfumato.data.packing.sources import SOURCES
from sfumato.data.reading.captions import CaptionSettings
from sfumato.data.reading.transforms import AnyTransform


class MixSettings(Config):
    """A further data set to train on."""

    path: Neutral[str] = Field(description="Folder or URI with manifest.json.", min_length=1)
    weight: float = Field(
        1.0, gt=0, description="How many of its samples are drawn for each sample of the set at `data.path`."
    )


class CurriculumStage(Config):
    """Some classes, for a while."""

    classes: tuple[int, ...] = Field(description="Numbers of the classes that are read.", min_length=1)
    images: int = Field(
        gt=0,
        description="Training images of this stage, rounded up to whole batches; the last stage lasts until "
        "training ends.",
    )


class DataSettings(Config):
    """Which data set, in which order, and what happens to samples that cannot be used."""

    path: Neutral[str] = Field(
        description="Folder with manifest.json: local, or a URI such as s3://bucket/folder.", min_length=1
    )
    source: Neutral[Annotated[SourceConfig, SOURCES] | None] = Field(
        None, description="What `sfumato run` packs into `path` if there is no manifest yet."
    )
    streams: int = Field(
        8,
        ge=1,
        description="Number of streams into which an epoch is dealt. At least the largest number of workers "
        "that may ever run this recipe, and a divisor of the batch: the content of a batch depends on it.",
    )
    shuffle_window: int = Field(
        2048,
        ge=1,
        description="Consecutive samples of a stream that are permuted together. A worker holds one window "
        "of decoded pixels for each of its streams.",
    )
    shuffle_chunk: int | None = Field(
        None,
        ge=1,
        description="Permute runs of so many consecutive samples over an epoch, not whole shards: for shards "
        "sorted by class, which windows do not mix. 1 mixes completely; 8 nearly so, with an eighth of the "
        "separate reads. null: whole shards.",
    )
    mix: tuple[MixSettings, ...] = Field(
        (),
        description="Data sets to mix into the one at `path`, which has weight 1. Proportions are "
        "exact over every 1,000 rows of a stream, to one row.",
    )
    balance: Literal["none", "class"] = Field(
        "none",
        description="class: every class comes equally often, however rare it is; the samples of each class "
        "have their own epochs. Reads all indexes at the start.",
    )
    curriculum: tuple[CurriculumStage, ...] = Field(
        (),
        exclude_if=lambda value: not value,
        description="Classes that are trained on one after another, such as [{classes: [0, 1], images: "
        "10_000}, {classes: [2], images: 10_000}]; needs balance=class, and every class in some stage. "
        "Empty: all classes throughout.",
    )
    text: bool = Field(
        False,
        description="Whether batches have a column `text` of captions; a missing caption is empty.",
    )
    columns: tuple[str, ...] | None = Field(
        None,
        description="Which further columns batches have, for example [control, mask]; "
        "`sfumato data inspect` lists those of a set. null: those that encoders added beforehand.",
    )
    transforms: tuple[AnyTransform, ...] = Field(
        (),
        description="Transforms applied to the images as they are read, one after another: flip, crop, "
        "colour. Drawn from (seed, epoch, key), so they do not depend on the workers.",
    )
    captions: CaptionSettings | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Changes to captions that are lists of tags, drawn from (seed, epoch, key): "
        "{shuffle_tags: true, keep_tags: 1}.",
    )
    on_error: OnError = Field(
        "fail",
        description="What happens when a sample cannot be used: fail stops, skip reports it and puts another "
        "sample of its window in its place.",
    )
    max_errors: Neutral[int] = Field(
        100, ge=0, description="With skip: stop when more distinct samples than this cannot be used."
    )
    max_pixels: Neutral[int] = Field(
        MAX_PIXELS,
        ge=1,
        le=89_000_000,
        description="When packing: refuse images of more pixels than this before decoding them "
        "(decompression bombs). Pillow's own limit is just above the largest value.",
    )
    verify: Neutral[Verify] = Field(
        "auto",
        description="What to check of the shards before training: their checksums, only their sizes, or "
        "(auto) checksums when the set is smaller than 1 GiB.",
    )
    read_tasks: Neutral[int] = Field(
        2,
        ge=0,
        description="How many Ray Data read tasks, of one logical CPU each, a worker keeps running. "
        "0: the worker reads in its own process, which starts sooner and suits small images.",
    )
