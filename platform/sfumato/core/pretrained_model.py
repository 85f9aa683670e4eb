"""A whole model to start from: a run, the folder of a diffusers pipeline, or one file of the ecosystem.

A family that trains on from such a model has a field of type `PretrainedModel`. Once it is looked up, it
holds the description of the model, from which `FamilyConfig.completed` takes what the recipe leaves out.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from sfumato.core.config import Config
from sfumato.core.pretrained import IDENTIFIED, Pretrained

PARTS = ("unet", "transformer")
"""The folders of pipelines that hold the network that denoises."""


class LibraryPipeline(Config):
    """The description of a pipeline of diffusers, without its weights."""

    name: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$", description="The name of its class.")
    parts: dict[str, dict[str, Any]] = Field(
        description="Its parts by name, each with what a model takes from its configuration."
    )


class PretrainedModel(Pretrained):
    """The model to start from: one of `run`, `folder` and `file`.

    Without `subfolder`, `folder` is that of a pipeline: it has a model_index.json.
    """

    network: str | None = Field("ema", description="Which network of the run's model; ema is the average.")
    folder: Annotated[str, IDENTIFIED] = Field(
        "", description="A folder of a diffusers pipeline: model_index.json, and a folder for each part."
    )
    file: Annotated[str, IDENTIFIED] = Field(
        "", description="One safetensors file that holds a whole model, as Stable Diffusion is distributed."
    )
    like: Annotated[str, IDENTIFIED] = Field(
        "",
        description="For `file`: the folder of a diffusers pipeline of the same kind, whose configuration, "
        "scheduler and tokenizer the file lacks. It needs no weights.",
    )
    pipeline: Annotated[LibraryPipeline | None, IDENTIFIED] = Field(
        None, description="The pipeline; recorded when a run starts."
    )

    @property
    def whole(self) -> bool:
        """Whether `folder` is a pipeline's, not that of one network."""
        return bool(self.folder) and (self.pipeline is not None or not self.subfolder)

    @model_validator(mode="after")
    def _like_goes_with_file(self) -> Self:
        if bool(self.file) != bool(self.like):
            here, lacks = ("file", "like") if self.file else ("like", "file")
            raise ValueError(
                f"{here} needs {lacks}: a file holds weights alone, and like names a folder of a diffusers "
                "pipeline that says what they are"
            )
        return self
