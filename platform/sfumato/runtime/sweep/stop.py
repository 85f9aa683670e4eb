"""Ends a sweep before its trials end: if its budget is spent, or its metric does not exist."""

from __future__ import annotations

from typing import Any

from ray.tune import Stopper

from sfumato.runtime.sweep.progress import Progress
from sfumato.runtime.sweep.sweep_plan import SweepPlan
from sfumato.tuning.config import BudgetSettings


class SweepStopper(Stopper):
    """Tune asks it after every result. `reason` is why the sweep was stopped; `missing` lists the existing
    metrics if the sweep's is not among them."""

    def __init__(self, plan: SweepPlan, budget: BudgetSettings, progress: Progress) -> None:
        self._plan = plan
        self._budget = budget
        self._progress = progress
        self.reason = ""
        self.missing: list[str] | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if "missing" in result:
            self.missing = list(result["missing"])
            self.reason = f"{self._plan.metric} is not among the metrics"
        return "missing" in result

    def stop_all(self) -> bool:
        self.reason = self.reason or self._spent()
        if self.reason and not self._plan.stop_file.exists():
            self._plan.stop_file.write_text(self.reason + "\n")
        return bool(self.reason)

    def _spent(self) -> str:
        images, seconds = self._budget.images, self._budget.seconds
        if images is not None and self._progress.images() >= images:
            return f"the budget of {images:,} images is spent"
        if seconds is not None and self._progress.seconds() >= seconds:
            return f"the budget of {seconds:,.0f} seconds is spent"
        return ""

    def __getstate__(self) -> dict[str, Any]:
        # Tune writes its own state now and then; nothing ever reads it.
        return {}
