"""A plan as text, and as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sfumato.planning.estimate import Estimate, Lasting
from sfumato.planning.plan import Plan

_GIB, _GB = 2.0**30, 1e9
_HOUR = 3600.0


def as_data(plan: Plan) -> dict[str, Any]:
    """For `--json`: bytes, seconds, images a second."""
    return {
        "gpu": asdict(plan.gpu),
        "gpus": plan.gpus,
        "assumed": asdict(plan.assumed),
        "parameters": _trained(plan),
        "operations_per_image": _operations(plan),
        "as_written": _estimate(plan.own),
        "refused": list(plan.refused),
        "proposed": _estimate(plan.proposed),
        "changes": list(plan.changes),
        "goodput": [asdict(line) for line in plan.lasting],
    }


def _estimate(found: Estimate | None) -> dict[str, Any] | None:
    return None if found is None else {**asdict(found), "fits": found.fits}


def _trained(plan: Plan) -> dict[str, int]:
    return {n.name: n.numbers for n in plan.work.networks if n.role == "trained"}


def _operations(plan: Plan) -> dict[str, float]:
    """Of a forward and backward pass of each phase, for one image."""
    return {one.phase: one.useful / one.rows for one in plan.work.many.plain}


def as_text(plan: Plan) -> str:
    """A page: what was assumed, the recipe as written, what is proposed, failures."""
    gpu, assumed = plan.gpu, plan.assumed
    trains = ", ".join(f"{name} {count:,} parameters" for name, count in _trained(plan).items())
    counts = ", ".join(
        f"{name} {flops / 1e9:,.1f} GFLOPs an image" for name, flops in _operations(plan).items()
    )
    taken = (
        f"MFU {assumed.mfu:.0%} of {gpu.peak(plan.work.precision) / 1e12:,.0f} TFLOPS, "
        f"{assumed.usable:.0%} of {gpu.memory / _GIB:,.0f} GiB, {gpu.peer / _GB:,.0f} GB/s in a node of 8, "
        f"{assumed.network / _GB:,.0f} GB/s a GPU between nodes, storage {assumed.storage / _GB:,.1f} GB/s, "
        f"restarts of {assumed.restart:,.0f} s"
    )
    lines = [
        f"{plan.gpus} x {gpu.name}, {plan.work.precision}, batch {plan.work.batch:,}",
        f"trains    {trains}",
        f"counted   {counts} (forward and backward)",
        f"assumed   {taken}",
    ]
    if plan.own is not None:
        lines += ["", *_block("as written", plan.own)]
    else:
        lines += ["", "as written: refused", *(f"  {line}" for line in plan.refused)]
    if plan.proposed is None:
        lines += ["", f"proposed: nothing fits {plan.gpus} {gpu.name}; take more of them, or a smaller model"]
    elif plan.proposed == plan.own:
        lines += ["", "proposed: as written; " + " ".join(plan.changes)]
    else:
        lines += ["", *_block("proposed", plan.proposed), "  overrides    " + " ".join(plan.changes)]
    shown = plan.proposed or plan.own
    if shown is not None:
        lines += ["", *_training(plan, shown), *(_failures(line) for line in plan.lasting)]
    return "\n".join(lines)


def _block(title: str, one: Estimate) -> list[str]:
    held = one.held
    parts = {
        "parameters": held.parameters,
        "gradients": held.gradients,
        "optimizer": held.optimizer,
        "averages": held.averages,
        "frozen": held.frozen,
        "gathered": held.gathered,
        "activations": one.activations,
    }
    fits = "fits" if one.fits else "DOES NOT FIT"
    again = ", activations recomputed" if one.recompute else ""
    named = ", ".join(f"{name} {size / _GIB:,.2f}" for name, size in parts.items() if size)
    step = (
        f"{_time(one.step)} ({one.images_per_second:,.0f} images/s, MFU {one.mfu:.1%}): compute "
        f"{_time(one.compute)}, communication {_time(one.traffic.seconds)}, of which "
        f"{_time(one.traffic.exposed)} not hidden ({one.traffic.size / _GB:,.2f} GB a rank)"
    )
    saved = (
        f"{one.checkpoint / _GB:,.2f} GB: halts training {_time(one.stall)}, written in {_time(one.writing)}"
    )
    return [
        f"{title}: {one.strategy}, micro-batch {one.micro_batch}{again}",
        f"  memory       {one.memory / _GIB:,.2f} of {one.room / _GIB:,.1f} GiB a rank, {fits}: {named}",
        f"  step         {step}",
        f"  data         {one.reading / 1e6:,.1f} MB/s of all ranks",
        f"  checkpoint   {saved}",
        f"  bottleneck   {one.bottleneck}",
    ]


def _training(plan: Plan, one: Estimate) -> list[str]:
    seconds = plan.work.images / one.images_per_second
    whole = f"{seconds / _HOUR:,.1f} h" if seconds >= _HOUR else f"{seconds / 60:,.1f} min"
    hours = f"{seconds / _HOUR * plan.gpus:,.1f} GPU hours"
    every = f"train.checkpoint.every={plan.work.checkpoint_every:,}"
    return [f"{plan.work.images:,} images: {whole} without failures, {hours}; {every}"]


def _failures(line: Lasting) -> str:
    return (
        f"  failures every {line.mean / _HOUR:,.1f} h ({line.source}): goodput {line.goodput:.1%}; "
        f"{line.best_goodput:.1%} with train.checkpoint.every={line.best_images}"
    )


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    return f"{seconds * 1e3:,.1f} ms" if seconds >= 1e-4 else f"{seconds * 1e6:,.0f} us"
