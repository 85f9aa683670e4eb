"""The judge of images and captions: a BLIP with random weights, against transformers' own calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from text_folders import save_tokenizer

from sfumato.core.rng import seeded
from sfumato.errors import CapabilityError
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.metric_options import MetricOptions
from sfumato.evaluation.metrics.text_match import METRICS, NAME, Judge, Matches, PreparedMatches
from sfumato.evaluation.subjects.source import Drawn

transformers = pytest.importorskip("transformers")
CAPTIONS = ["the one", "a b c d e f", "", "he"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("judge")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**small, "vocab_size": 262, "max_position_embeddings": 16, "encoder_hidden_size": 8}
    config = transformers.BlipConfig(
        text_config=text, vision_config={**small, "image_size": 8, "patch_size": 4}, image_text_hidden_size=4
    )
    with seeded(0, "judge"):
        network = transformers.BlipForImageTextRetrieval(config)
        for value in network.parameters():
            torch.nn.init.normal_(value, std=0.5)
    network.save_pretrained(place)
    transformers.BlipImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(place)
    save_tokenizer(place)
    return place


def images() -> Any:
    return np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


class Source:
    captioned = True

    def captions_of(self, index: int) -> list[str]:
        return CAPTIONS


def test_scores_are_those_of_transformers(folder: Path) -> None:
    found = Judge(folder).scores(images(), CAPTIONS)
    network = transformers.BlipForImageTextRetrieval.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    prepare = transformers.BlipImageProcessorPil.from_pretrained(folder)
    for image, caption, score in zip(images(), CAPTIONS, found, strict=True):
        words = tokenizer([caption], return_tensors="pt")
        with torch.no_grad():
            two = network(
                input_ids=words["input_ids"],
                attention_mask=words["attention_mask"],
                pixel_values=prepare(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"],
            ).itm_score[0]
        assert score == pytest.approx(float(two.softmax(0)[1]), abs=1e-5)
    assert np.ptp(found) > 1e-3


def test_the_figure_is_the_mean_and_captions_of_others_stand_beside(folder: Path) -> None:
    judge = Judge(folder)
    made = PreparedMatches(str(folder), judge.digest).beside(Source(), 0, Drawn(images()), [])  # type: ignore[arg-type]
    features = FeatureSet(np.zeros((4, 2), np.float32), inputs={NAME: made[NAME]})
    (metric,) = METRICS
    result = metric.compute(features, features, MetricOptions())
    assert result.value == pytest.approx(judge.scores(images(), CAPTIONS).mean())
    others = [*CAPTIONS[1:], CAPTIONS[0]]
    assert result.details["of_other_captions"] == pytest.approx(judge.scores(images(), others).mean())


def test_a_missing_judge_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match="metric text_match needs a judge: set"):
        Matches().open(None, MetricOptions(), None)  # type: ignore[arg-type]
    with pytest.raises(CapabilityError, match=r"has no config\.json and no model\.safetensors"):
        Judge(tmp_path)
