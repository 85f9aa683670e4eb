"""`sfumato card`: the model card of a run or of a model folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfumato.errors import CheckpointError, ConfigError
from sfumato.runtime.card.facts import facts_of
from sfumato.runtime.card.markdown import text_of
from sfumato.runtime.card.write import DATA, TEXT, put_card
from sfumato.runtime.runs.targets import model_of


def card(run: str, *, out: Path | None, root: Path) -> tuple[str, dict[str, Any]]:
    """The card as Markdown and as plain data; with `out`, both are also written into that folder.

    A model folder whose run is not here has the card that it was exported with.

    Raises CheckpointError for a model without either.
    """
    with model_of(run, root=root) as found:
        if found.run is None:
            files = [found.model / name for name in (TEXT, DATA)]
            if not all(file.is_file() for file in files):
                raise CheckpointError(
                    f"{run}: this model has no card ({TEXT}), and its run is not here: export it again"
                )
            return files[0].read_text(encoding="utf-8"), json.loads(files[1].read_text(encoding="utf-8"))
        facts = facts_of(found.run, found.model)
    if out is not None:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out}: that is a file; name a folder")
        put_card(facts, out)
    return text_of(facts), facts
