"""How well a judge thinks that images match their captions: a model that reads both together, from a folder.

ImageReward (Xu et al. 2023, sec. 3) and its like are cross-encoders of BLIP (Li et al. 2022, sec. 3.2), whose
head for image-text matching gives the probability that the two belong together; a fine-tuned one scores what
people prefer. transformers calls them `BlipForImageTextRetrieval`. PickScore and HPS are CLIPs: give their
folder to the features `clip`, and `clip_score` is their score.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field

from sfumato.core.config import Config
from sfumato.errors import CapabilityError, DataError
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.features.transformers_folder import load_folder, transformers_problems
from sfumato.evaluation.metric_inputs import EvaluationSettings, Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    Topic,
)
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import Float64Array, UInt8Array
from sfumato.evaluation.store import Array
from sfumato.evaluation.subjects.source import Drawn, GivesCaptions, Kind, SampleSource

NAME = "text_match"
_FILES = ("config.json", "model.safetensors", "preprocessor_config.json")
_SAFELY = {"local_files_only": True, "trust_remote_code": False}  # no code in the folder is run


class TextMatchSettings(Config):
    """Settings of `text_match`."""

    text_match_weights: Path | None = Field(
        None,
        description="Folder of the judge: config.json, model.safetensors, preprocessor_config.json and a "
        "tokenizer, of a BlipForImageTextRetrieval of transformers.",
    )


class Judge:
    """The judge in a folder. Raises CapabilityError, in one line, if there is none."""

    def __init__(self, folder: Path) -> None:
        if problems := transformers_problems(NAME):
            raise CapabilityError(*problems)
        if missing := [name for name in _FILES if not (folder / name).is_file()]:
            raise CapabilityError(f"metric {NAME}: {str(folder)!r} has no {' and no '.join(missing)}")
        import transformers as library

        self.digest = hashlib.sha256(b"".join((folder / name).read_bytes() for name in _FILES)).hexdigest()
        self._model: Any = load_folder(library.BlipForImageTextRetrieval, folder, NAME).eval()
        auto: Any = library
        try:
            self._images = auto.AutoImageProcessor.from_pretrained(folder, **_SAFELY)
            self._tokenizer = auto.AutoTokenizer.from_pretrained(folder, **_SAFELY)
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise CapabilityError(f"metric {NAME}: {folder} cannot be loaded ({reason})") from error
        self._places = int(self._model.config.text_config.max_position_embeddings)

    @torch.no_grad()
    def scores(self, images_NHWC: UInt8Array, captions: Sequence[str]) -> Float64Array:
        """The probability [N] that each image and its caption belong together."""
        pictures = [Image.fromarray(image.squeeze()).convert("RGB") for image in images_NHWC]
        pixels = self._images(images=pictures, return_tensors="pt")["pixel_values"]
        words = self._tokenizer(
            list(captions), padding=True, truncation=True, max_length=self._places, return_tensors="pt"
        )
        found = self._model(
            input_ids=words["input_ids"], attention_mask=words["attention_mask"], pixel_values=pixels
        ).itm_score
        scores_N: Float64Array = found.double().softmax(dim=1)[:, 1].numpy()
        return scores_N


class Matches(MetricInput):
    """The judge's score of each image with its own caption, and with that of another image."""

    name = NAME

    def given_by(self, source: SampleSource) -> bool:
        """By images that are drawn for captions, or have some."""
        return isinstance(source, GivesCaptions) and source.captioned

    def lacking(self, kind: Kind | None) -> str:
        """Captions."""
        return "images with captions, and these have none"

    def open(self, settings: EvaluationSettings, options: MetricOptions, reference: Reference) -> object:
        """The folder. Raises CapabilityError without one."""
        folder = options.of(TextMatchSettings).text_match_weights
        if folder is None:
            raise CapabilityError(
                f"metric {NAME} needs a judge: set evaluate.metric_options.text_match_weights=FOLDER to a "
                "BlipForImageTextRetrieval, or leave it out of evaluate.metrics"
            )
        return str(folder.resolve()), judge(str(folder.resolve())).digest

    def prepare(self, setting: Setting, opened: object) -> PreparedMatches:
        """Workers open the folder themselves."""
        assert isinstance(opened, tuple)
        return PreparedMatches(*opened)


@lru_cache(maxsize=1)
def judge(folder: str) -> Judge:
    """One a process."""
    return Judge(Path(folder))


@dataclass(frozen=True)
class PreparedMatches(Prepared):
    """Made beside the features."""

    folder: str
    digest: str

    @property
    def identity(self) -> object:
        """The judge."""
        return self.digest

    def beside(
        self, source: SampleSource, index: int, drawn: Drawn, extractors: Sequence[Extractor]
    ) -> Mapping[str, Array]:
        """[n, 2] of a block: with their own captions, and with those of the next images."""
        assert isinstance(source, GivesCaptions)
        captions = source.captions_of(index)[: len(drawn.images)]
        own, others = captions, [*captions[1:], *captions[:1]]
        found = [judge(self.folder).scores(drawn.images, texts) for texts in (own, others)]
        return {NAME: np.stack(found, axis=1)}

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With the scores."""
        return replace(features, inputs={**features.inputs, NAME: made.beside(NAME)})


class TextMatch(BaseMetric):
    """Mean probability, 0 to 1, that an image and its caption belong together; higher is better.

    `details` give the same for the captions of other samples, which a good judge finds lower.
    """

    name = NAME
    higher_is_better = True
    topic: Topic = "alignment"
    inputs = (Matches(),)
    reads_features = False
    Settings = TextMatchSettings

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        scores_N2 = generated.inputs.get(NAME)
        if scores_N2 is None:
            raise DataError(f"{self.name} needs images with captions: leave it out of evaluate.metrics")
        own_N, others_N = scores_N2.T
        return MetricResult(NAME, float(own_N.mean()), {"of_other_captions": float(others_N.mean())}, own_N)


METRICS: tuple[Metric, ...] = (TextMatch(),)
