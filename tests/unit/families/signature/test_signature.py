"""Messages in pictures: attacks against their definitions, both objectives trained until they work."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage
from torch import Tensor, nn

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import EmaOf, FamilyConfig
from sfumato.core.messages import ReadsMessages
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.families import config_class
from sfumato.families.signature import attacks
from sfumato.families.signature.objectives.stable_signature import SignedStage, message_bits
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.provenance.watermarks import Message
from sfumato.runtime.runs.pretrained import resolved_model
from sfumato.sampling.generator import Generator
from sfumato.sampling.message_reader import MessageReader
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training.loop import install

Command = Callable[..., tuple[int, str, str]]
DATA = DataSpec(1, 16, 16)
MESSAGE = "5c3a9f06"


def _scene(rows: int = 4, side: int = 32) -> Tensor:
    """Smooth images in [-1, 1]."""
    coarse = torch.rand(rows, 1, 5, 5, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    return nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(-1, 1)


def test_attacks_are_what_they_say() -> None:
    x, u, noise = _scene(2), torch.full((2, 1, 1, 1), 0.5), torch.randn(2, 1, 32, 32)
    blurred = [ndimage.gaussian_filter(image, 1, truncate=2, mode="nearest") for image in x[:, 0].numpy()]
    assert np.allclose(attacks.blurred(x, u, noise)[:, 0], blurred, atol=1e-5)
    assert torch.allclose(attacks.noisy(x, u, noise), x + 0.05 * noise)
    assert torch.allclose(attacks.brighter(x, u, noise), x, atol=1e-6)
    whole = attacks.cropped(x, torch.ones_like(u), noise)
    assert torch.allclose(whole, x, atol=1e-5)
    inner = attacks.cropped(x, torch.zeros_like(u), noise)
    middle = nn.functional.interpolate(x[..., 4:28, 4:28], (32, 32), mode="bilinear")
    assert (inner - middle)[..., 2:-2, 2:-2].abs().max() < 1e-4
    dct = fft.dct(np.eye(8), norm="ortho", axis=0)
    assert np.allclose(attacks._cosines(), dct, atol=1e-6)


def test_jpeg_is_nearly_that_of_a_library_and_has_gradients() -> None:
    x = _scene(1) + 0.05 * torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    x = x.clamp(-1, 1).requires_grad_()
    found = attacks.jpeg(x, torch.zeros(1, 1, 1, 1), x.detach())
    pixels = ((x.detach()[0, 0] + 1) * 127.5).round().byte().numpy()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=50)
    theirs = np.asarray(Image.open(out)).astype(float) / 127.5 - 1
    ours = found.detach()[0, 0].numpy()
    assert np.abs(ours - theirs).mean() < 0.35 * np.abs(pixels / 127.5 - 1 - theirs).mean()
    found.square().sum().backward()
    assert x.grad is not None and x.grad.abs().min() > 0


def _rng(number: int) -> StreamRng:
    return StreamRng([Piece(0, 0, 16)], rows_per_stream=16, seed=0, images=number, phase="p")


def _trained(model: dict[str, Any], steps: int, nets: dict[str, nn.Module]) -> tuple[Any, list[float]]:
    """Train `network` on smooth images; returns the family and the share of bits read right in each step."""
    family = config_class("signature").model_validate({"family": "signature", **model}).build(DATA)
    for name, spec in family.nets.items():
        if name not in nets and not isinstance(spec, EmaOf):
            with seeded("test", name):
                nets[name] = spec.build()
    optimizer = torch.optim.Adam(nets["network"].parameters(), 5e-3)
    x, read = _scene(16, 16), []
    for step in range(steps):
        out = family.phases[0].loss(nets, {"image": x}, Progress.at(0), _rng(step))
        optimizer.zero_grad()
        out.loss_B.mean().backward()
        optimizer.step()
        read.append(float(out.metrics["bits"].mean()))
    return family, read


HIDDEN = {
    "kind": "hidden",
    "width": 16,
    "depth": 1,
    "strength": 0.5,
    "image_weight": 0.1,
    "attacks": ["nothing", "noise"],
}


@pytest.fixture(scope="module")
def extractor() -> nn.Module:
    nets: dict[str, nn.Module] = {}
    _, read = _trained({"objective": HIDDEN}, 160, nets)
    assert np.mean(read[:10]) < 0.6 < 0.85 < np.mean(read[-20:])
    return nets["network"].eval()


def _model(name: str, objective: dict[str, Any], nets: dict[str, nn.Module]) -> Generator:
    config = config_class("signature").model_validate({"family": "signature", "objective": objective})
    return Generator(config, DATA, nets, name=name, progress=Progress.at(1))


def test_a_decoder_learns_to_sign_and_its_encoder_stays(
    extractor: nn.Module, tmp_path: Path, sfumato_here: Command
) -> None:
    card = {"channels": 1, "height": 16, "width": 16}
    stage = {
        "family": "vae",
        "latent": {"kind": "kl", "channels": 4},
        "network": {"channels": [8, 8], "norm_groups": 4},
    }
    objective = {
        "kind": "stable_signature",
        "message": MESSAGE,
        "image_weight": 0.1,
        "first_stage": {"model": {"family": "vae", "config": stage, "data": card}},
        "extractor": {
            "model": {
                "family": "signature",
                "config": {"family": "signature", "objective": HIDDEN},
                "data": card,
            }
        },
    }
    nets: dict[str, nn.Module] = {"extractor": extractor}
    with seeded("test", "first_stage"):
        first = config_class("vae").model_validate(stage).as_first_stage(DATA)
        assert first is not None
        nets["first_stage"] = first.build().eval()
    nets["network"] = SignedStage(first.build())
    nets["network"].load_state_dict(
        {f"stage.{key}": value for key, value in nets["first_stage"].state_dict().items()}
    )
    family, read = _trained({"objective": objective}, 90, nets)
    assert isinstance(family, ReadsMessages) and family.message == MESSAGE
    assert np.mean(read[:3]) < 0.75 < 0.97 < np.mean(read[-10:])
    signed, plain, x = nets["network"].eval(), nets["first_stage"], _scene(4, 16)
    with torch.no_grad():
        one, two = signed.encode(x).mean, plain.encode(x).mean  # type: ignore[operator]
        assert torch.equal(one, two), "latents stay as they were"
        pictures = signed.decode(one), plain.decode(two)  # type: ignore[operator]
    model = _model("signed", objective, {"ema": signed, "extractor": extractor})
    reader = MessageReader(model)
    images = [((p + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy() for p in pictures]
    assert all(found.p_value < 1e-4 for found in reader.read(images[0]))
    assert all(found.p_value > 1e-3 for found in reader.read(images[1]))

    folder = tmp_path / "model"
    states = {name: net.state_dict() for name, net in model.nets.items()}
    save_model_folder(folder, model.config, DATA, states, name="signed", progress=Progress.at(1))
    Image.fromarray(images[0][0][..., 0]).save(tmp_path / "x.png")
    code, out, _ = sfumato_here(
        "provenance", "detect", str(tmp_path / "x.png"), "--by", str(folder), "--json"
    )
    assert (code, json.loads(out)["message"]) == (0, MESSAGE)
    code, _, err = sfumato_here(
        "provenance", "detect", str(tmp_path), "--by", str(folder), "--message", "0" * 8
    )
    assert (code, f"signs with {MESSAGE}; leave it out" in err) == (2, True)


def test_an_extractor_reads_any_message(extractor: nn.Module) -> None:
    model = _model("reader", HIDDEN, {"ema": extractor})
    bits = message_bits(MESSAGE)
    assert (bits.numpy() == Message(message=MESSAGE).bits).all()
    with torch.no_grad():
        marked = extractor.hiding(_scene(4, 16), bits.expand(4, -1))  # type: ignore[operator]
    images = ((marked + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.mean([found.matched or 0 for found in MessageReader(model, MESSAGE).read(images)]) > 27
    with pytest.raises(Exception, match="reads any message; say which"):
        MessageReader(model)


def test_what_does_not_fit_is_refused() -> None:
    signature = config_class("signature")
    with pytest.raises(ValueError, match="there are nothing, noise"):
        signature.model_validate({"family": "signature", "objective": {"attacks": ["rotation"]}})
    tiny = signature.variants()["stable_signature"]
    assert any("3x8x8" in line for line in tiny.problems(DataSpec(3, 8, 8)))
    objective = tiny.objective  # type: ignore[attr-defined]
    other = objective.extractor.model.model_copy(update={"data": DataSpec(3, 8, 8)})
    changed = objective.model_copy(
        update={"extractor": objective.extractor.model_copy(update={"model": other})}
    )
    (problem,) = changed.problems(DataSpec(1, 8, 8))
    assert "reads images of 3 channels, the data's have 1" in problem
    vae = objective.first_stage.model
    wrong = objective.extractor.model_copy(update={"model": vae})
    (problem,) = objective.model_copy(update={"extractor": wrong}).problems(DataSpec(1, 8, 8))
    assert "is no extractor" in problem


def _stored(folder: Path, config: FamilyConfig, nets: dict[str, nn.Module] | None = None) -> Path:
    """A model folder of initial weights, or of these."""
    family, states = config.build(DATA), {}
    for name in family.samplers:
        spec = family.nets[name]
        source = family.nets[spec.source] if isinstance(spec, EmaOf) else spec
        assert not isinstance(source, EmaOf)
        with seeded("test", folder.name, name):
            states[name] = (nets or {}).get(name, source.build()).state_dict()
    save_model_folder(folder, config, DATA, states, name=folder.name, progress=Progress.at(1))
    return folder


def test_runs_follow_one_another_up_to_a_model_of_signed_latents(tmp_path: Path) -> None:
    """Recipes that name folders, as they are looked up when a run starts; every step loads the one before."""
    reader = {"family": "signature", "objective": {"kind": "hidden", "width": 4, "depth": 1}}
    stage = {
        "family": "vae",
        "latent": {"kind": "vq", "channels": 4},
        "network": {"channels": [4, 8], "norm_groups": 2},
    }
    _stored(tmp_path / "reader", config_class("signature").model_validate(reader))
    _stored(tmp_path / "stage", config_class("vae").model_validate(stage))
    objective = {
        "kind": "stable_signature",
        "first_stage": {"run": str(tmp_path / "stage")},
        "extractor": {"run": str(tmp_path / "reader")},
    }
    asked = config_class("signature").model_validate({"family": "signature", "objective": objective})
    config = resolved_model(asked, tmp_path)
    assert config.problems(DATA) == []
    family, strategy = config.build(DATA), Single(Placement())
    install(family, strategy, 0)
    with strategy.gathered(("network", "first_stage", "extractor")) as nets:
        state = {f"stage.{key}": value for key, value in nets["first_stage"].state_dict().items()}
        assert all(torch.equal(value, state[key]) for key, value in nets["network"].state_dict().items())
        changed = copy.deepcopy(nets["network"])
        extractor = nets["extractor"]
    for parameter in changed.parameters():
        parameter.data += 0.1
    _stored(tmp_path / "signed", config, {"ema": changed, "extractor": extractor})

    latent = {
        "family": "diffusion",
        "network": {"channels": [8], "layers_per_block": 1, "norm_groups": 4, "head_dim": 8},
        "objective": {"kind": "ddpm", "timesteps": 20},
        "sampling": {"steps": 2},
        "first_stage": {"run": str(tmp_path / "signed")},
    }
    above = resolved_model(config_class("diffusion").model_validate(latent), tmp_path)
    assert above.problems(DATA) == []
    strategy = Single(Placement())
    install(above.build(DATA), strategy, 0)
    x = _scene(2, 16)
    with strategy.gathered(("first_stage",)) as found:
        opened: Any = found["first_stage"]
        codes = opened.codes(x)
        assert torch.equal(codes, changed.codes(x))  # type: ignore[operator]
        assert torch.equal(opened.decode_codes(codes), changed.decode_codes(codes))  # type: ignore[operator]
        plain: Any = changed.stage
        with torch.no_grad():
            assert torch.equal(plain.encode(x).mean, opened.encode(x).mean)
