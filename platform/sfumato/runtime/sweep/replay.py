"""Replays the trials of earlier calls of a sweep to a new scheduler."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from sfumato.tuning.journal import Journal


def into(scheduler: TrialScheduler, journal: Journal) -> None:
    """Tell the scheduler their reports. Resumed trials report again by themselves, and population based
    training compares living trials only."""
    if not isinstance(scheduler, AsyncHyperBandScheduler | MedianStoppingRule):
        return
    nobody: Any = None  # neither of them asks its controller for anything then
    for trial in journal.in_order():
        if not trial.ended or not trial.reports:
            continue
        stub = Trial("ended", trial_id=f"ended-{trial.number}", stub=True)
        scheduler.on_trial_add(nobody, stub)
        *before, last = ({"images": r.images, "objective": r.value} for r in trial.reports)
        for result in before:
            if isinstance(scheduler, AsyncHyperBandScheduler):
                scheduler.on_trial_result(nobody, stub, result)
            else:
                scheduler.on_trial_complete(nobody, stub, result)  # which only remembers
        scheduler.on_trial_complete(nobody, stub, last)
