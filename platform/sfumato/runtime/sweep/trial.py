"""The actor in which Ray Tune runs a trial. The next trial reuses it, which saves time."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from sfumato.errors import CheckpointError
from sfumato.runtime.sweep.sweep_plan import SweepPlan
from sfumato.runtime.sweep.training import TrialRun, forget_reports, recipe_of, wait_for_former
from sfumato.training import hand_over
from sfumato.training.store import open_store

MEMORY = 256 << 20
"""Bytes that Ray reserves for the actor. CPUs belong to the trial's workers, Ray has to reserve something,
and every node has memory."""
_CHECKPOINT_S = 120.0
_ABOUT = "hand-over.json"


def configuration(path: str, number: int, values: Mapping[str, Any]) -> dict[str, str]:
    """A trial's values as Tune sees them: text, which its search algorithms do not take apart."""
    return {"sweep": path, "trial": json.dumps({"number": number, "values": values})}


def number_of(config: Mapping[str, Any]) -> int:
    return int(json.loads(config["trial"])["number"])


def values_of(config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(config["trial"])["values"])


class TrialActor(tune.Trainable):
    """Starts training at the first step, so that weights can be passed on before."""

    def setup(self, config: dict[str, Any]) -> None:
        self._run: TrialRun | None = None
        self._assign(config)

    def _assign(self, config: Mapping[str, Any]) -> None:
        self._plan = SweepPlan.load(config["sweep"])
        self._values = values_of(config)
        # The name and not the configuration: with weights, a trial is handed the giver's configuration.
        self._number = int(self.trial_name)

    def step(self) -> dict[str, Any]:
        if self._run is None:
            self._run = TrialRun(self._plan, self._number, self._values)
        return self._run.next_result()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._assign(new_config)
        return True

    def cleanup(self) -> None:
        run, self._run = self._run, None
        if run is not None and run.running():
            run.give_up(f"given up at {run.last_images:,} images")

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The trial's checkpoint that belongs to its last report, for another trial or for itself."""
        run, folder = self._run, Path(checkpoint_dir)
        about: dict[str, Any] = {"number": self._number, "token": secrets.token_hex(3)}
        if run is not None:
            store = open_store(run.folder.checkpoint_uri(self._plan.recipe(self._number, self._values)))
            try:
                at = hand_over.take_out(
                    store, run.last_images, folder, wait_s=_CHECKPOINT_S, going_on=run.running
                )
                about |= {"images": at, "value": run.last_value}
            except CheckpointError as error:
                about["problem"] = str(error)
        (folder / _ABOUT).write_text(json.dumps(about))

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Take over another trial's weights; a trial's own are in its folder, newer ones perhaps."""
        assert isinstance(checkpoint, str), "checkpoints are folders"
        about = json.loads((Path(checkpoint) / _ABOUT).read_text())
        folder = self._plan.folder(self._number)
        known = folder.read_json("handed.json") or {}
        if about["number"] == self._number or about["token"] == known.get("token"):
            return
        if "problem" in about:
            raise CheckpointError(about["problem"])
        wait_for_former(folder)
        recipe = recipe_of(self._plan, self._number, self._values)
        hand_over.put_in(
            open_store(folder.checkpoint_uri(recipe)),
            Path(checkpoint),
            token=about["token"],
            recipe_digest=recipe.digest(),
            recipe=recipe.counted(),
        )
        shutil.rmtree(folder.path / "snapshots", ignore_errors=True)
        forget_reports(self._plan, self._number, about["images"], about["value"])
        folder.write_json(
            "handed.json", {"token": about["token"], "from": about["number"], "images": about["images"]}
        )
