"""Finds training that is stuck, reports which rank and where, and ends it, so that the run restarts.

A rank without a pulse for `parallel.hang_timeout` is frozen. A group hangs if no rank
finishes a step for that long; its ranks outside a collective are reported as the cause. Ray Train notices the
lost worker and restarts the group from the newest checkpoint, up to `parallel.max_failures` times.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from sfumato.runtime.training.beside import beside
from sfumato.runtime.training.controller_handle import unpacked
from sfumato.runtime.training.heartbeat import Seen, interval

_MOST_NAMED = 8
_ANSWER_S = 2.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The ranks that do not answer or caused the hang, and the message to the user."""

    ranks: tuple[int, ...]
    frozen: bool
    text: str


def judge(ranks: Mapping[int, Seen], timeout_s: float) -> Verdict | None:
    """The verdict on the group; None while any rank makes progress, or does work without a time limit."""
    silent = {rank: seen for rank, seen in ranks.items() if seen.silent_s > timeout_s / 2}
    answer = {rank: seen for rank, seen in ranks.items() if rank not in silent}
    frozen = any(seen.silent_s > timeout_s for seen in silent.values())
    still = [rank for rank, seen in answer.items() if seen.still_s > timeout_s]
    # A rank that waits for others in a hook, whose time is not limited, does not get on either.
    hangs = bool(still) and all(rank in still or _waits(seen) for rank, seen in answer.items())
    if not frozen and not hangs:
        return None
    blamed = sorted(silent) or sorted(rank for rank in still if not _waits(answer[rank])) or sorted(still)
    images = max((seen.beat.images for seen in ranks.values() if seen.beat), default=0)
    said = [*([f"{_named(silent)} not answer"] if silent else []), *_places(answer, blamed)]
    text = (
        f"training was stuck at {images:,} images for {timeout_s:g} s (parallel.hang_timeout): "
        f"{'; '.join(said)}; it starts again from the last checkpoint"
    )
    return Verdict(tuple(blamed), bool(silent), text)


def _waits(seen: Seen) -> bool:
    return seen.beat is not None and seen.beat.place.waits


def _places(ranks: Mapping[int, Seen], blamed: Sequence[int]) -> list[str]:
    """The positions of the ranks that answer: causes first, ranks in the same place together."""
    groups: dict[tuple[bool, str, str], list[int]] = {}
    for rank in sorted(ranks):
        beat = ranks[rank].beat
        if beat is not None:
            verb = "waiting for others" if beat.place.waits else "stuck" if rank in blamed else "busy"
            groups.setdefault((rank not in blamed, verb, beat.place.text), []).append(rank)
    return [
        f"{_named({rank: ranks[rank] for rank in members}, 'is', 'are')} {verb} in {where}"
        for (_, verb, where), members in sorted(groups.items())
    ]


def _named(ranks: Mapping[int, Seen], one: str = "does", many: str = "do") -> str:
    shown = sorted(ranks)[:_MOST_NAMED]
    texts = [f"{rank} (process {ranks[rank].who.pid} on {ranks[rank].who.node})" for rank in shown]
    more = f" and {len(ranks) - len(shown)} more" if len(ranks) > len(shown) else ""
    noun, verb = ("rank", one) if len(ranks) == 1 else ("ranks", many)
    return f"{noun} {', '.join(texts)}{more} {verb}"


def watching(board: Any, timeout_s: float | None) -> AbstractContextManager[None]:
    """Name stuck workers on the board and end them while the block runs. None: never."""
    return nullcontext() if timeout_s is None else beside(partial(_watch, board, timeout_s), "hang")


def _watch(board: Any, timeout_s: float, stop: threading.Event) -> None:
    suspected = ""
    # Twice in a row, with beats in between: a machine that was asleep must not condemn those that wake up.
    while not stop.wait(2 * interval(timeout_s)):
        try:
            attempt, ranks = ray.get(board.pulses.remote(), timeout=60)
            verdict = judge(ranks, timeout_s)
            if verdict is None or attempt != suspected:
                suspected = attempt if verdict else ""
                continue
            suspected = ""
            if _confirmed(ranks, verdict):
                board.forget.remote()
                board.note.remote(verdict.text)
                for rank in verdict.ranks:
                    ray.kill(unpacked(ranks[rank].who.actor))
        except ray.exceptions.GetTimeoutError:  # the machine has no time for the board
            continue
        except ray.exceptions.RayError:  # the cluster may be going down; `fit` reports that
            return


def _confirmed(ranks: Mapping[int, Seen], verdict: Verdict) -> bool:
    """Whether ranks without a pulse still exist; Ray Train takes care of those that died."""
    if not verdict.frozen:
        return True
    for ping in [unpacked(ranks[rank].who.actor).__ray_ready__.remote() for rank in verdict.ranks]:
        try:
            ray.get(ping, timeout=_ANSWER_S)
        except ray.exceptions.GetTimeoutError:
            continue
        except ray.exceptions.RayActorError:
            pass
        return False
    return True
