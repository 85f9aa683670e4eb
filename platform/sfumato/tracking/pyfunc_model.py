"""The code that MLflow runs to load and call a registered model ("models from code", no pickle)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel

from sfumato.core.conditions import NEGATIVE, Condition
from sfumato.sampling.condition_columns import column_rows
from sfumato.sampling.generator import Generator
from sfumato.sampling.leaving import facts_of


class SfumatoModel(PythonModel):
    """Draws one image a row from columns `seed` and, by name, the conditions that the model takes.

    Rows of equal seed are samples 0, 1, ... of that seed, the ones that `sfumato sample --seed` draws. If the
    base of an adapter has moved, say where it is: `load_model(uri, model_config={"base": PLACE})`.
    """

    def load_context(self, context: Any) -> None:
        # Loading an MLflow model runs its code anyway; a family by import path needs no more trust than that.
        base = (context.model_config or {}).get("base") or None
        self._generator = Generator.load(context.artifacts["model"], trust=True, base=base)
        self._generator.door.check(self._generator.data.height, self._generator.data.width, files=False)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Images uint8 [rows, H, W, C]; `params` change the model's sampling defaults.

        The images have the marks of the model's `provenance` that pixels can carry. Raises ConfigError where
        loading finds that it requires one of a file.
        """
        frame = model_input.reset_index(drop=True)
        images: dict[int, npt.NDArray[np.uint8]] = {}
        for seed, rows in frame.groupby("seed", sort=False):
            given = {
                name: column_rows(name, condition, rows[name].tolist(), self._generator.takes)
                for name, condition in self._columns().items()
                if name in rows and not rows[name].isna().all()
            }
            drawn = self._generator.sample(len(rows), seed=int(str(seed)), conditions=given, options=params)
            facts = facts_of(given, range(len(rows)), int(str(seed)))
            drawn, _ = self._generator.door.pixels(drawn, facts)
            images.update(zip(rows.index, drawn, strict=True))
        return np.stack([images[row] for row in range(len(frame))])

    def _columns(self) -> dict[str, Condition]:
        """The columns allowed besides `seed`."""
        taken = self._generator.conditions
        negative = {NEGATIVE + condition.name: condition for condition in taken if condition.negative}
        return {condition.name: condition for condition in taken} | negative


set_model(SfumatoModel())
