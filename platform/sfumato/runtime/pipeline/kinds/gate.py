"""Stage `gate`: whether a model is good enough to continue, and whether it beats the champion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from sfumato.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.evaluation.decisions import weakness
from sfumato.evaluation.metrics.likelihood import TRAINING
from sfumato.evaluation.report import EvaluationReport, read_report
from sfumato.runtime.commands.evaluate import comparable
from sfumato.runtime.pipeline.conditions import Condition
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.stage import Outputs, StageSettings, Work, digest
from sfumato.runtime.pipeline.trained_run import model_digest
from sfumato.tracking.champion import CHALLENGER, CHAMPION, Champion, champion_of
from sfumato.tracking.config import TrackingSettings


class GateClosed(SfumatoError):
    """A model that does not meet what a gate requires."""


class GateStage(StageSettings):
    """Pass a model that meets all of `require`; otherwise fail, so that stages that need it do not run.

    Gives `name` (the registered model) and `alias`: the first model to pass is champion. A later one becomes
    champion if it is better than the present one in every metric of `better`, by more than the two confidence
    intervals; otherwise it is challenger.
    """

    GIVES: ClassVar[tuple[str, ...]] = ("name", "alias")

    kind: Literal["gate"]
    report: str = Field(min_length=1, description="What was measured: ${stage.report}.")
    model: str = Field(min_length=1, description="The model folder that was measured: ${stage.model}.")
    name: str = Field(min_length=1, description="The registered model whose champion it is compared with.")
    require: tuple[str, ...] = Field(
        (),
        description="Conditions such as `fd_classifier < 1.0`, with < <= > >=; all must hold. "
        "`extraction.high < 0.01` is on the upper end of the figure's interval, `.low` on the lower.",
    )
    better: tuple[str, ...] = Field(
        (), description="Metrics in which a new champion has to be better; without any, none is replaced."
    )

    @field_validator("require")
    @classmethod
    def _parsed(cls, require: tuple[str, ...]) -> tuple[str, ...]:
        for text in require:
            Condition.parse(text)
        return require

    def identity(self, place: PipelinePlace) -> dict[str, Any]:
        report = read_report(Path(self.report))
        champion = self._champion(place)
        weak = sorted(report.metrics.keys() - report.fit.keys())
        return {
            "model": self._digest(),
            "metrics": dict(report.metrics),
            "comparable": comparable(report),
            "settings": [self.name, self.require, self.better],
            "champion": None if champion is None else champion.version,
            **({"weak": weak} if weak else {}),
        }

    def in_place(self, outputs: Outputs, place: PipelinePlace) -> bool:
        return True

    def perform(self, work: Work) -> Outputs:
        report = read_report(Path(self.report))
        self._known(report)
        conditions = [Condition.parse(text) for text in self.require]
        failed = [line for each in conditions if (line := each.failure(report.metrics, report.intervals))]
        if failed:
            raise GateClosed(f"not good enough: {'; '.join(failed)}")
        champion = self._champion(work.place)
        alias, reason = self._alias(report, champion)
        work.display.skipped("gate", f"passed as {alias}: {reason}")
        return {
            "name": self.name,
            "alias": alias,
            "reason": reason,
            "digest": digest([self.name, alias, self._digest()]),
            "against": None if champion is None else champion.version,
            "metrics": {name: report.metrics[name] for name in self._metrics()},
        }

    def _digest(self) -> str:
        found = model_digest(self.model)
        if found is None:
            raise CheckpointError(f"model: {self.model} is no model folder")
        return found

    def _metrics(self) -> list[str]:
        return list(dict.fromkeys([*(Condition.parse(text).metric for text in self.require), *self.better]))

    def _known(self, report: EvaluationReport) -> None:
        for name in self._metrics():
            if name not in report.metrics:
                known = ", ".join(report.metrics)
                raise ConfigError(f"gate on {name!r}, which was not measured; the report has {known}")
            if report.details.get(name, {}).get("on") == TRAINING:
                raise ConfigError(
                    f"gate on {name!r}, which is of {TRAINING} and favours a model that has learned them by "
                    f"heart: evaluate with evaluate.likelihood_on, and require bits_per_dim"
                )
            if name not in report.fit:
                fix = "evaluate with other evaluate.features or more samples"
                raise ConfigError(weakness.refusal("gate", name, report.marks[name], fix=fix))
        ends = [each.metric for each in map(Condition.parse, self.require) if each.end]
        if missing := [name for name in (*self.better, *ends) if name not in report.intervals]:
            field = "better" if missing[0] in self.better else "require"
            raise ConfigError(
                f"{field}: {missing[0]} has no confidence interval in the report, so a difference could be "
                "chance; evaluate with evaluate.interval.enabled, or leave it out"
            )

    def _champion(self, place: PipelinePlace) -> Champion | None:
        """The present champion; None if there is none, or the model is the champion itself."""
        found = champion_of(place.tracking or TrackingSettings(), self.name, root=place.root)
        return None if found is None or found.digest == self._digest() else found

    def _alias(self, report: EvaluationReport, champion: Champion | None) -> tuple[str, str]:
        if champion is None:
            return CHAMPION, "no other model is champion"
        if not self.better:
            return CHALLENGER, f"version {champion.version} stays champion, since `better` names no metric"
        if champion.comparable != comparable(report):
            raise SfumatoError(
                f"version {champion.version} of {self.name}, the champion, was not evaluated on the same "
                f"reference, samples and features as this model: evaluate its run {champion.run_id} alike"
            )
        for metric in self.better:
            ours, theirs = _interval(report, metric), champion.interval(metric)
            if theirs is None:
                raise SfumatoError(
                    f"version {champion.version} of {self.name}, the champion, has no {metric} with an "
                    f"interval: evaluate its run {champion.run_id} alike"
                )
            if not better(ours, theirs, higher=report.higher_is_better[metric]):
                return CHALLENGER, (
                    f"{metric} {_text(ours)} is not beyond {_text(theirs)} of version {champion.version}"
                )
        return CHAMPION, f"better than version {champion.version} in {', '.join(self.better)}"


def better(ours: tuple[float, float], theirs: tuple[float, float], *, higher: bool) -> bool:
    """Whether an interval (low, high) lies wholly on the better side of another."""
    return ours[0] > theirs[1] if higher else ours[1] < theirs[0]


def _interval(report: EvaluationReport, metric: str) -> tuple[float, float]:
    found: Mapping[str, object] = report.intervals[metric]
    return float(str(found["low"])), float(str(found["high"]))


def _text(interval: tuple[float, float]) -> str:
    return f"({interval[0]:.4g} to {interval[1]:.4g})"


COMPONENT = GateStage
