"""When phases run, and the contents of a training step: its updates, and the batches that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sfumato.core.batch import Batch
from sfumato.core.family import Phase
from sfumato.core.progress import Progress


def runs(phase: Phase, progress: Progress) -> bool:
    """Whether the phase has its turn in the step that starts at `progress`."""
    started = progress.images >= phase.start_images
    stopped = phase.stop_images is not None and progress.images >= phase.stop_images
    return started and not stopped and progress.step % phase.every == 0


def problems(phases: Sequence[Phase], images: int) -> list[str]:
    """Problems with when phases start and stop in a training of so many images, one line each."""
    found = []
    for phase in phases:
        if phase.start_images < 0:
            found.append(f"phase {phase.name!r} starts at {phase.start_images:,} images; the least is 0")
        elif phase.stop_images is not None and phase.stop_images <= phase.start_images:
            found.append(
                f"phase {phase.name!r} never runs: it stops at {phase.stop_images:,} images and starts at "
                f"{phase.start_images:,}"
            )
    if not found and (gap := _gap(phases, images)) is not None:
        start, stop = gap
        found.append(
            f"no phase runs between {start:,} and {stop:,} images: make one start earlier or stop later, or "
            f"set train.images={start}"
            if start
            else f"no phase runs before {stop:,} images: make one start earlier"
        )
    return found


def _gap(phases: Sequence[Phase], images: int) -> tuple[int, int] | None:
    """The first stretch of training in which no phase runs."""
    reached = 0
    for phase in sorted(phases, key=lambda phase: phase.start_images):
        if reached >= images or phase.start_images > reached:
            break
        reached = images if phase.stop_images is None else max(reached, phase.stop_images)
    if reached >= images:
        return None
    later = [phase.start_images for phase in phases if phase.start_images > reached]
    return reached, min([*later, images])


@dataclass(frozen=True, slots=True)
class Update:
    """One optimizer step of a phase, on the `repeat`-th global batch of a step of training."""

    phase: Phase
    repeat: int


def updates(phases: Sequence[Phase], progress: Progress) -> list[Update]:
    """The updates of the step that starts at `progress`, in order."""
    return [
        Update(phase, repeat) for phase in phases if runs(phase, progress) for repeat in range(phase.repeats)
    ]


class Prepared:
    """The micro-batches of a step as `prepare` left them, each kept until its last update."""

    def __init__(self, planned: Sequence[Update]) -> None:
        self._left = [update.repeat for update in planned]
        self._kept: dict[tuple[int, int], Batch] = {}

    def get(self, repeat: int, index: int, make: Callable[[], Batch]) -> Batch:
        """Pass `index` over global batch `repeat`: prepared by the first update that asks for it."""
        place = (repeat, index)
        batch = self._kept.pop(place, None)
        if batch is None:
            batch = make()
        if self._left.count(repeat) > 1:  # another update will need it
            self._kept[place] = batch
        return batch

    def done(self, update: Update) -> None:
        """Close an update."""
        self._left.remove(update.repeat)
