"""Textual Inversion: new words in every kind of tokenizer, trained alone, read by diffusers and read back."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from adapting import DATA, drawn, looked_up, nets_of, step, swapped
from safetensors.torch import load_file, save_file
from text_folders import save_text_model
from tiny_pipelines import save_pipeline
from torch import Tensor, nn

from sfumato.core.batch import Texts
from sfumato.core.family import SampleRequest
from sfumato.core.pretrained import Pretrained
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.errors import CheckpointError, ConfigError
from sfumato.families.diffusion.adapters.textual_inversion import TextualInversionConfig
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.runtime.runs.pretrained import look_up
from sfumato.sampling.pretrained_files import base_of, base_record
from sfumato.text.encoders.folder import FolderConfig
from sfumato.text.encoders.joint import JointConfig
from sfumato.text.network import TextConditioned
from sfumato.text.new_words import NewWord, Vectors, embedding_of, ends, extended

WORD = {"kind": "textual_inversion", "word": "<thing>", "vectors": 2, "like": "the"}


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "sd", "sd")


def started(folder: Path, **adapter: Any) -> DiffusionConfig:
    return _started(folder, json.dumps(adapter))


@cache
def _started(folder: Path, asked: str) -> DiffusionConfig:
    sampling = {"steps": 3, "guidance": 3.0}
    return looked_up(
        folder.parent, pretrained={"folder": str(folder)}, sampling=sampling, adapter=json.loads(asked)
    )


@torch.no_grad()
def sampled(config: DiffusionConfig, nets: Any, prompts: list[str]) -> Tensor:
    request = SampleRequest(num=2, options=config.sampling, conditions={"text": Texts(prompts)})
    return config.build(DATA).sample(nets, request, Progress.at(0), SampleRng(7, range(2))) / 2 + 0.5


@pytest.mark.parametrize("kind", ["clip", "t5", "bert", "gpt2", "joint"])
def test_a_new_word_takes_the_places_of_its_vectors(kind: str, tmp_path: Path) -> None:
    encoder: Any = JointConfig.tiny()
    if kind != "joint":
        save_text_model(tmp_path / kind, kind)
        weights = look_up(Pretrained(folder=str(tmp_path / kind)), tmp_path, "weights")
        encoder = FolderConfig(weights=weights, tokens=8).learnt(lambda: ())
    with seeded(0):
        network: nn.Module = encoder.build()
    opens, closes = ends(encoder, network)
    plain, mask = encoder.tokenize(["a the a", "a a a"], network)
    extended(network, 2)
    table = embedding_of(network)
    assert isinstance(table, Vectors)
    first = table.base_layer.num_embeddings
    word = NewWord("<new>", 2)
    texts = ["a the a", "<new> a", "a <new>", "<new>", "a a <new> a a a a a"]
    ids, _ = word.tokenize(encoder, texts, network)
    assert torch.equal(ids[0], plain[0]), "a text without it is cut as before"
    assert ids[1, opens : opens + 2].tolist() == [first, first + 1]
    places = [at for at in range(8) if ids[2, at] >= first]
    assert [int(ids[2, at]) for at in places] == [first, first + 1]
    assert places[0] == int(encoder.tokenize(["a"], network).mask.sum()) - closes
    assert int(ids[3].ge(first).sum()) == 2
    table.new_VD.data.normal_()
    states = network(ids, mask.new_ones(ids.shape)).states
    assert float((states[1] - network(plain[1:], mask[1:]).states[0]).detach().abs().max()) > 1e-4


def test_its_vectors_alone_train_and_others_prompts_stay(sd: Path) -> None:
    plain, config = started(sd, kind="layers", train=["*"]), started(sd, **WORD)
    assert config.problems(DATA) == []
    nets = nets_of(config)
    table: Any = next(module for module in nets["network"].modules() if isinstance(module, Vectors))
    before = {name: value.clone() for name, value in nets["network"].state_dict().items()}
    torch.testing.assert_close(drawn(config, nets), drawn(plain, nets_of(plain)), rtol=0, atol=1e-6)
    start = table.new_VD.detach().clone()
    assert config.text is not None
    found = next(module for module in nets["network"].modules() if isinstance(module, TextConditioned))
    ids, mask = config.text.encoders[0].tokenize(["the"], found.encoders["text_encoder"])
    other = table.base_layer.weight.detach()[ids[0][mask[0]][1:-1]].mean(dim=0)
    torch.testing.assert_close(start, other.expand_as(start), msg="it starts as the other word")
    step_on(config, nets, ["a <thing>", "<thing>"])
    moved = [n for n, value in nets["network"].state_dict().items() if not torch.equal(value, before[n])]
    assert [name.rpartition(".")[2] for name in moved] == ["new_VD"]
    torch.testing.assert_close(drawn(config, nets), drawn(plain, nets_of(plain)), rtol=0, atol=1e-6)
    assert (
        float((sampled(config, nets, ["<thing>"] * 2) - sampled(config, nets, ["the"] * 2)).abs().max())
        > 1e-4
    )


def step_on(config: DiffusionConfig, nets: dict[str, nn.Module], prompts: list[str]) -> None:
    import adapting

    usual = adapting.PROMPTS
    adapting.PROMPTS = prompts
    try:
        step(config, nets, rate=3.0)
    finally:
        adapting.PROMPTS = usual


def test_diffusers_loads_its_vectors_and_they_are_read_back(sd: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    config = started(sd, **WORD)
    nets = nets_of(config)
    step_on(config, nets, ["a <thing>", "<thing>"])
    config.build(DATA).export_diffusers(nets, str(tmp_path / "word"), config.sampling)
    file = tmp_path / "word" / "learned_embeds.safetensors"
    whole = started(sd, kind="layers", train=["*"])
    whole.build(DATA).export_diffusers(nets_of(whole), str(tmp_path / "whole"), whole.sampling)
    pipeline = StableDiffusionPipeline.from_pretrained(
        swapped(tmp_path / "base", sd, tmp_path / "whole"), safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_textual_inversion(str(file))
    prompts = ["the <thing>", "<thing> a"]
    images = pipeline(
        prompts,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=SampleRng(7, range(2)).normal(2, 4, 4),
        output_type="pt",
    ).images
    torch.testing.assert_close(images, sampled(config, nets, prompts), rtol=0, atol=1e-4)
    again = nets_of(started(sd, **WORD, start={"file": str(file)}))
    torch.testing.assert_close(sampled(config, again, prompts), sampled(config, nets, prompts))
    save_file({"<other>": torch.zeros(3, 5)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"holds vectors of 3x5, the model takes 2x8"):
        nets_of(started(sd, **WORD, start={"file": str(tmp_path / "other.safetensors")}))
    assert load_file(file)["<thing>"].shape == (2, 8)


def test_lora_reaches_a_frozen_text_encoder(sd: Path, tmp_path: Path) -> None:
    """Its weights come from their own folder, and the file has its part for diffusers."""
    lora = {"kind": "lora", "rank": 2, "modules": ["to_q", "q_proj"], "text_encoder": True}
    plain, config = started(sd, kind="layers", train=["*"]), started(sd, **lora)
    assert config.problems(DATA) == []
    nets = nets_of(config)
    torch.testing.assert_close(drawn(config, nets), drawn(plain, nets_of(plain)), rtol=0, atol=1e-6)
    step(config, nets, rate=0.5)
    config.build(DATA).export_diffusers(nets, str(tmp_path / "lora"), config.sampling)
    state = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert {key.split(".")[0] for key in state} == {"unet", "text_encoder"}
    weights: Any = config.build(DATA).nets["network"].weights  # type: ignore[union-attr]
    assert base_of(base_record(weights), tmp_path) == weights, "a model folder names both places"
    frozen = started(sd, **{**lora, "text_encoder": False})
    assert "nothing matches 'q_proj'" in frozen.problems(DATA)[0]


def test_captions_without_the_word_are_refused() -> None:
    class Data:
        def values(self, column: str) -> Any:
            return iter(["a <thing>", "a cat", "a dog"])

        def encoder(self, column: str) -> None:
            return None

    with pytest.raises(ConfigError, match=r"2 of 3 captions lack '<thing>', such as 'a cat'"):
        TextualInversionConfig().learnt(Data(), print)
