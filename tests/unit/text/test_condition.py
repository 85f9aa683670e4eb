"""From captions to inputs: dropped by the rng alone, together or for one encoder, and never encoded twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from text_folders import save_text_model
from torch import nn

from sfumato.core.batch import Batch, Piece, Texts
from sfumato.core.pretrained import Pretrained
from sfumato.core.rng import StreamRng
from sfumato.runtime.runs.pretrained import look_up
from sfumato.text.condition import TextCondition
from sfumato.text.config import TextConfig
from sfumato.text.encoders.folder import FolderConfig
from sfumato.text.encoders.joint import JointConfig
from sfumato.text.states import States

ROWS = 400


def condition(dropout: float, own: float = 0.0) -> TextCondition:
    encoders = (JointConfig.tiny(), JointConfig.tiny().model_copy(update={"dropout": own}))
    return TextCondition(TextConfig(encoders=encoders, dropout=dropout))


def batch() -> Batch:
    return {"image": torch.zeros(ROWS, 1, 1, 1), "text": Texts(["the"] * ROWS)}


def rng() -> StreamRng:
    return StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=1, images=0, phase="p")


def empty(prepared: Batch, encoder: str) -> torch.Tensor:
    return prepared[f"{encoder}_mask"].sum(dim=1) == 2


@pytest.mark.parametrize(("dropout", "own"), [(0.3, 0.0), (0.2, 0.5), (0.0, 0.0)])
def test_shares_of_dropped_captions(dropout: float, own: float) -> None:
    prepared = condition(dropout, own).prepare({}, batch(), rng())
    first, second = (empty(prepared, name) for name in ("text_encoder", "text_encoder_2"))
    assert first.float().mean() == pytest.approx(dropout, abs=0.07)
    assert second.float().mean() == pytest.approx(1 - (1 - dropout) * (1 - own), abs=0.07)
    assert bool((second | ~first).all()), "what is dropped for all is dropped for each"
    again = condition(dropout, own).prepare({}, batch(), rng())
    assert all(torch.equal(prepared[name], again[name]) for name in prepared if name != "text")


class Seen(nn.Module):
    """A network that returns what it sees."""

    def forward(self, x: torch.Tensor, text: States) -> States:
        return text


def test_encoded_inputs_are_seen_alike() -> None:
    text = condition(0.0)
    network = text.wrap(Seen()).eval()
    inputs = text.inputs({}, ["the one", ""], torch.device("cpu"))
    with torch.no_grad():
        encoded = network.encoded(inputs)
        for one, two in zip(network(torch.zeros(2), inputs), network(torch.zeros(2), encoded), strict=True):
            assert torch.equal(one, two)
    assert not any(name.endswith("_ids") for name in encoded)
    assert network.encoded(encoded) == encoded


def test_states_in_the_data_give_the_same_inputs(tmp_path: Path) -> None:
    """With dropped captions: those rows see the states of the empty text."""
    weights = look_up(Pretrained(folder=str(save_text_model(tmp_path / "t5", "t5"))), tmp_path, "w")
    encoder = FolderConfig(weights=weights, tokens=7, layer=-2).learnt(lambda: ())
    text = TextCondition(TextConfig(encoders=(encoder,), dropout=0.3))
    nets = {name: frozen.build().eval() for name, frozen in text.frozen.items()}
    rows = {**batch(), "text": Texts(["the one", "a", "", "the the"] * (ROWS // 4))}
    with torch.no_grad():
        states = nets["text_encoder"](*encoder.tokenize(rows["text"], nets["text_encoder"]))
        columns = {f"text_encoder_{part}": value for part, value in zip(States._fields, states, strict=True)}
        live = text.of(text.prepare(nets, rows, rng()))
        stored = text.of(text.prepare(nets, {"image": rows["image"], **columns}, rng()))
    assert live.keys() == stored.keys()
    for name, value in live.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-5, atol=1e-6)
