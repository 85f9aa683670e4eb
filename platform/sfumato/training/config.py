"""The `train:` part of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from sfumato.core.config import Config, Neutral
from sfumato.core.schedules import power_exponent


class CheckpointSettings(Config):
    """When checkpoints are written and how many stay."""

    every: int = Field(20_000, gt=0, description="Images between two checkpoints.")
    keep: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    keep_every: int | None = Field(
        None, gt=0, description="Keep, besides, the first checkpoint after every so many images; null: none."
    )
    uri: str | None = Field(
        None,
        description="Folder or object storage URI (s3://bucket/prefix) for checkpoints; null keeps them in "
        "the run's folder.",
    )


class SnapshotSettings(Config):
    """Averages that are kept so that one of any length can be put together afterwards (`sfumato ema`)."""

    every: int | None = Field(
        None, gt=0, description="Images between two snapshots of the averages; null keeps none."
    )
    sigma_rel: tuple[float, ...] = Field(
        (0.05, 0.1),
        min_length=1,
        description="Relative widths of the averages (Karras et al. 2023). Two give any other between and "
        "well beyond them.",
    )

    @field_validator("sigma_rel")
    @classmethod
    def _possible(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for width in value:
            power_exponent(width)
        if len(set(value)) < len(value):
            raise ValueError(f"widths must differ, got {value}")
        return value


class PreviewConditions(Config):
    """What the preview grids are drawn for, the same every time; image i takes row i, in turn."""

    prompts: tuple[str, ...] = Field((), description="Texts, for a model that takes one.")
    negative: tuple[str, ...] = Field((), description="Texts that the images are guided away from.")
    labels: tuple[int | str, ...] = Field(
        (), description="Classes, by name or number; empty draws all classes in turn."
    )
    data: str | None = Field(
        None,
        description="Packed data set whose first rows give the conditions that nothing above gives. Null: "
        "the data that the model trains on, for conditions that it needs.",
    )


class TrainSettings(Config):
    """How long to train, on which batches, at which precision. All intervals are in images seen."""

    images: int = Field(..., gt=0, description="Images to train on in all; rounded up to whole steps.")
    batch: int = Field(128, gt=0, description="Global batch: what one optimizer step sees over all ranks.")
    micro_batch: int | None = Field(
        None,
        gt=0,
        description="Rows of one forward and backward pass. Set, it fixes how the global batch is cut for "
        "any number of workers, so that 1 and 2 workers add the same numbers; null gives every worker its "
        "whole share at once.",
    )
    clip_grad_norm: float | None = Field(1.0, gt=0, description="Largest gradient norm; null does not clip.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 runs the forward pass in autocast.")
    compile: Neutral[bool] = Field(False, description="Compile the trained networks (torch.compile).")
    activation_checkpointing: Neutral[bool] = Field(
        False,
        description="Compute the activations of each block again in the backward pass instead of keeping "
        "them: less memory, about a third more time, the same numbers.",
    )
    max_skipped_steps: Neutral[int] = Field(
        10,
        ge=0,
        description="Updates with a gradient that is not finite that are left out in a row of log intervals. "
        "More roll training back to its last checkpoint, once; where it then fails again, it stops.",
    )
    log_every: Neutral[int] = Field(
        2_000, gt=0, description="Images between two points of the training curves."
    )
    preview_every: Neutral[int] = Field(
        20_000, gt=0, description="Images between two grids of preview samples."
    )
    preview_samples: Neutral[int] = Field(
        40, ge=0, description="Images in a preview grid; 0 turns previews off."
    )
    preview_conditions: Neutral[PreviewConditions] = Field(
        PreviewConditions(), description="What the images in a preview grid are drawn for."
    )
    checkpoint: Neutral[CheckpointSettings] = Field(CheckpointSettings(), description="Checkpoints.")
    snapshots: SnapshotSettings = Field(SnapshotSettings(), description="Averages for `sfumato ema`.")
