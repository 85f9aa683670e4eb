"""The `evaluate:` part of a recipe; `selection` resolves it for the data and the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from sfumato.core import identity
from sfumato.core.batch import DataSpec
from sfumato.core.components import OneOf, read
from sfumato.core.config import Config, Neutral
from sfumato.errors import ConfigError
from sfumato.evaluation.decisions.collapse_limits import CollapseLimits
from sfumato.evaluation.decisions.early_stopping import BestSettings, EarlyStopSettings
from sfumato.evaluation.intervals.uncertainty import IntervalSettings
from sfumato.evaluation.metric_inputs import MetricInput
from sfumato.evaluation.metric_options import MetricSettings
from sfumato.evaluation.metrics.settings import own_names, settings_class
from sfumato.evaluation.selected import Selection
from sfumato.evaluation.subjects.source import Kind

AUTO: Literal["auto"] = "auto"


class EvaluateSettings(Config):
    """What to generate and what to measure on it. `Neutral` fields set how and when, not what."""

    samples: int = Field(2_000, ge=2, description="Images to generate. Compare runs only at equal numbers.")
    features: Literal["auto"] | str | tuple[str, ...] = Field(
        AUTO,
        description="Feature extractor or a list of them: classifier, contrastive, thumbnail, "
        "efficientnet_lite0, inception, dinov2, clip. auto: efficientnet_lite0 for colour images, and grey "
        "ones without classes or of more than 64 pixels; otherwise classifier.",
    )
    auto_features: Neutral[str | None] = Field(
        None,
        description="What `features: auto` stands for. A run's recipe.yaml records it, so that a later "
        "version measures the run alike; null: by the data.",
    )
    feature_options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options of extractors, by the extractor's name."
    )
    metrics: Literal["auto"] | str | tuple[str, ...] = Field(
        AUTO,
        description="Metric or a list of them, from the table in evaluation/README.md. auto: those of fd, "
        "precision, recall, class_accuracy, bits_per_dim (psnr, ssim for reconstructions) that the data, the "
        "features and the model permit.",
    )
    k: int = Field(3, ge=1, description="Nearest neighbour that sets a ball's radius.")
    metric_options: Annotated[MetricSettings, OneOf(MetricSettings, lambda: [settings_class()])] = Field(
        settings_class()(), description="Options of single metrics."
    )
    seed: int = Field(0, ge=0, description="Seed of the samples; sample i depends only on it and on i.")
    sampling: dict[str, Any] = Field(
        default_factory=dict, description="Overrides of the family's own sampling options."
    )
    actors: Neutral[Literal["auto"] | Annotated[int, Field(ge=0)]] = Field(
        AUTO,
        description="Ray actors that generate and extract; auto: as many as the cluster holds; 0 uses "
        "the calling process.",
    )
    batch_size: Neutral[int | None] = Field(
        None,
        ge=1,
        description="Images that an actor makes before it reports, rounded up to whole blocks; changes no "
        "number. null: one block.",
    )
    cpus_per_actor: Neutral[float] = Field(
        1.0, gt=0, description="Logical CPUs that Ray reserves for an actor."
    )
    gpus_per_actor: Neutral[float] = Field(
        0.0, ge=0, description="GPUs, or a fraction of one, that Ray reserves for an actor."
    )
    start_timeout: Neutral[float] = Field(
        300.0, gt=0, description="Seconds to wait for the first actor before giving up."
    )
    interval: IntervalSettings = Field(IntervalSettings(), description="Confidence intervals.")
    likelihood_images: int = Field(
        1_000, ge=2, description="bits_per_dim: how many images, the first ones, it is computed on."
    )
    likelihood_on: str | None = Field(
        None,
        description="bits_per_dim: real images that were not trained on (shards or a folder); null: those of "
        "the reference. On training images the figure is called train_bits_per_dim and chooses nothing.",
    )
    every: Neutral[int | None] = Field(
        None,
        gt=0,
        description="Training images between two evaluations during training; null evaluates only when "
        "training ends.",
    )
    samples_during: Neutral[int | None] = Field(
        None,
        ge=2,
        description="Images to generate in each of these; null: as many as `samples`. Figures at another "
        "number are not comparable, so they are recorded as eval_<number>/<metric>.",
    )
    actors_during: Neutral[int] = Field(
        1,
        ge=1,
        description="Actors of these evaluations, besides the training workers, each with cpus_per_actor.",
    )
    ahead: Neutral[int | None] = Field(
        None,
        ge=1,
        description="Snapshots that may wait to be evaluated before training waits for them; null: any "
        "number.",
    )
    best: Neutral[BestSettings | None] = Field(
        None, description="How to choose the best of these evaluations; its model is kept as <run>/best."
    )
    early_stop: Neutral[EarlyStopSettings | None] = Field(
        None, description="When to end training because the figure no longer improves."
    )
    collapse: Neutral[CollapseLimits | None] = Field(
        None, description="Limits beyond which these evaluations warn of mode collapse; null: no warning."
    )
    on_collapse: Neutral[Literal["warn", "restore_best", "stop"]] = Field(
        "warn",
        exclude_if=lambda value: value == "warn",
        description="What happens once collapse.patience evaluations in a row are beyond a limit: warn; stop "
        "ends training; restore_best ends it and makes the model of evaluate.best the run's.",
    )
    accept_weak_features: bool = Field(
        False,
        description="Whether best, early_stop and gates may go by weak figures: on features of a classifier "
        "that recognises under 0.9 of held-out images, or Fréchet distances of no more samples than "
        "dimensions.",
    )
    held_out: str | None = Field(
        None,
        description="memorisation: real images that were not trained on (shards or a folder), whose "
        "distances to the training images are the yardstick for a sample's; null: the training images, "
        "leaving each one out.",
    )
    preview: int = Field(64, ge=0, description="Generated images shown in the grid preview.png; 0: none.")
    cache: Neutral[str | None] = Field(
        None,
        description="Where to keep features of the reference: a folder, or a URI (s3://bucket/prefix) that "
        "several machines share; null: the project's own.",
    )

    @field_validator("metric_options", mode="before")
    @classmethod
    def _of_the_metrics(cls, content: Any, info: ValidationInfo) -> Any:
        """The user's own metrics bring their settings, too."""
        if not isinstance(content, Mapping):
            return content
        try:
            kind = settings_class(own_names(info.data.get("metrics", ())))
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from None
        return read(kind, content)

    def problems(self, data: DataSpec, images: int | None = None) -> list[str]:
        """The parts that cannot be measured on this data on this machine, one line each.

        `images`: how many the reference has, if that is known.
        """
        from sfumato.evaluation import selection  # which reads these settings

        return selection.problems(self, data, images)

    def select(
        self,
        data: DataSpec,
        *,
        conditional: bool,
        gives: Callable[[MetricInput], bool] = lambda wanted: not wanted.of_source,
        kind: Kind = "samples",
    ) -> Selection:
        """The features and metrics for this data and the source evaluated on it.

        `conditional`: the source's images have classes, requested or their own; `gives`: the inputs of
        metrics that it can provide. Raises ConfigError with all `problems`.
        """
        from sfumato.evaluation import named, selection  # which read these settings

        return selection.select(self, data, named.Offer(conditional, gives, kind))

    def during(self) -> EvaluateSettings:
        """The settings of the evaluations during training."""
        changes = {"samples": self.samples_during or self.samples, "actors": self.actors_during}
        return self.model_copy(update=changes)

    def identity(self) -> str:
        """JSON of the fields that can change a number or a picture and differ from their defaults."""
        return json.dumps(identity.changed(self), sort_keys=True)
