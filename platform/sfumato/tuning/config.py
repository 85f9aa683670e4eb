"""The `tune:` part of a recipe: what is searched, by which metric, and when trials stop early."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from sfumato.core.config import Config, Neutral
from sfumato.core.identity import changed
from sfumato.tuning.parameter import Parameter


class NoScheduler(Config):
    """Every trial runs to completion."""

    kind: Literal["none"] = Field("none", description="Selects this scheduler.")


class AshaSettings(Config):
    """Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934); several brackets make it the
    asynchronous Hyperband."""

    kind: Literal["asha"] = Field("asha", description="Selects this scheduler.")
    grace: int = Field(..., gt=0, description="Images before a trial may be stopped: the first rung.")
    reduction: float = Field(
        4.0, gt=1, description="At each rung, one trial in this many continues; rungs are this factor apart."
    )
    brackets: int = Field(
        1, ge=1, description="Hyperband's brackets; each starts its rungs one factor later."
    )


class MedianSettings(Config):
    """Stops a trial whose best value is worse than the median of the others' means (Golovin et al. 2017)."""

    kind: Literal["median"] = Field("median", description="Selects this scheduler.")
    grace: int = Field(..., gt=0, description="Images before a trial may be stopped.")
    min_trials: int = Field(3, ge=1, description="Number of other trials that must have got as far.")


class PbtSettings(Config):
    """Population based training (Jaderberg et al. 2017, arXiv:1711.09846): the worst trials continue from the
    weights, optimizer state included, of the best ones, with values near theirs."""

    kind: Literal["pbt"] = Field("pbt", description="Selects this scheduler.")
    every: int = Field(..., gt=0, description="Images between two hand-overs, which take checkpoints.")
    quantile: float = Field(
        0.25,
        gt=0,
        le=0.5,
        description="Share of the population that passes on weights, and that receives them.",
    )
    resample: float = Field(
        0.25, ge=0, le=1, description="Probability that a value is resampled instead of moved to a neighbour."
    )


Scheduler = Annotated[NoScheduler | AshaSettings | MedianSettings | PbtSettings, Field(discriminator="kind")]


class SearchSettings(Config):
    """How a trial's values are chosen."""

    kind: Literal["random", "grid", "optuna", "hyperopt", "bayesopt", "hebo", "ax"] = Field(
        "random",
        description="random draws; grid takes every combination; the others learn from earlier trials, "
        "through Ray Tune, and each needs its own package (optuna: the extra `tune`).",
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of Ray Tune's class for that search.")

    @property
    def learns(self) -> bool:
        """Whether a trial's values depend on the results of earlier ones."""
        return self.kind not in ("random", "grid")


class BudgetSettings(Config):
    """Budget of the whole sweep; running trials are stopped when it is spent."""

    images: int | None = Field(None, gt=0, description="Images, over all trials.")
    seconds: float | None = Field(None, gt=0, description="Seconds of the sweep, earlier calls included.")


class TuneSettings(Config):
    """A search for better values of a recipe's fields."""

    space: dict[str, Parameter] = Field(
        ..., min_length=1, description="By dotted field of the recipe: the values that it may take."
    )
    metric: str = Field(
        ...,
        pattern=r"^(train|eval(_\d+)?)/.+$",
        description="The metric by which trials are compared, by its name in MLflow: train/denoise/loss, "
        "eval/fd_classifier ...",
    )
    mode: Literal["auto", "min", "max"] = Field(
        "auto", description="Which values are better; auto: by the metric, and low for train/ metrics."
    )
    trials: Neutral[int | None] = Field(
        None, ge=1, description="Trials, the recipe itself included; null: every point of a grid."
    )
    concurrency: Neutral[int] = Field(1, ge=1, description="Trials at a time.")
    seed: int = Field(0, ge=0, description="Seed of the values that are drawn.")
    baseline: bool = Field(True, description="Whether the first trial is the unchanged recipe.")
    retries: Neutral[int] = Field(
        1, ge=0, description="How often a trial that lost its workers or its process is retried."
    )
    budget: Neutral[BudgetSettings] = Field(BudgetSettings(), description="Limits of the whole sweep.")
    scheduler: Scheduler = Field(NoScheduler(), description="When trials stop early.")
    search: SearchSettings = Field(SearchSettings(), description="How values are found.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.trials is None and self.search.kind != "grid":
            raise ValueError("trials: give a number (only search.kind=grid can count them itself)")
        if isinstance(self.scheduler, PbtSettings):
            if self.search.kind != "random":
                raise ValueError(
                    f"search.kind: pbt changes values by itself, so {self.search.kind} does not go with it; "
                    "use random"
                )
            if self.trials is None or not 2 <= self.trials <= self.concurrency:
                raise ValueError(
                    f"concurrency: pbt trains its population side by side: trials={self.trials} must be at "
                    f"least 2, and concurrency={self.concurrency} no less than it"
                )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that identify the sweep: those that differ from their defaults. How many trials run, and
        how fast, does not count."""
        return changed(self)
