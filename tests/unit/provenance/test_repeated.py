"""TrustMark and Seal from files: small linear networks with the signatures of those that are published."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.repeated import repeated, voted
from sfumato.provenance.stored import Provenance, read_provenance, write_provenance
from sfumato.provenance.watermarks import WATERMARKS, Images, Watermark, WatermarkConfig

SIDE, BITS = 64, 100


def _patterns(number: int) -> np.ndarray:
    """Noise of a mean of 0 in each channel, in blocks of 4 pixels, float32 [number, 3, 64, 64]."""
    rng = np.random.default_rng(number)
    coarse = rng.standard_normal((number, 3, SIDE // 4, SIDE // 4)).astype(np.float32)
    coarse -= coarse.mean((2, 3), keepdims=True)
    return coarse.repeat(4, 2).repeat(4, 3)


def _onnx(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, list[int]], output: list[int]) -> str:
    patterns = _patterns(BITS).reshape(BITS, -1)
    constants = {
        "patterns": patterns * 0.01,
        "readers": patterns.T.copy(),
        "two": np.float32(2),
        "one": np.float32(1),
        "image_shape": np.array([1, 3, SIDE, SIDE]),
        "flat": np.array([1, -1]),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "network",
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in inputs.items()
        ],
        [helper.make_tensor_value_info("found", onnx.TensorProto.FLOAT, output)],
        [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return str(path)


@pytest.fixture(scope="module")
def trustmark(tmp_path_factory: pytest.TempPathFactory) -> WatermarkConfig:
    """Its encoder takes an image and bits, in this order of dimensions, and its decoder an image."""
    folder, image = tmp_path_factory.mktemp("trustmark"), [1, 3, SIDE, SIDE]
    node = helper.make_node
    encoder = [
        node("Mul", ["bits", "two"], ["doubled"]),
        node("Sub", ["doubled", "one"], ["signs"]),
        node("MatMul", ["signs", "patterns"], ["sum"]),
        node("Reshape", ["sum", "image_shape"], ["residual"]),
        node("Add", ["cover", "residual"], ["found"]),
    ]
    decoder = [node("Reshape", ["image", "flat"], ["row"]), node("MatMul", ["row", "readers"], ["found"])]
    made: WatermarkConfig = WATERMARKS.make(
        "trustmark",
        message="5c3a9f06",
        encoder=_onnx(folder / "encoder_Q.onnx", encoder, {"bits": [1, BITS], "cover": image}, image),
        decoder=_onnx(folder / "decoder_Q.onnx", decoder, {"image": image}, [1, BITS]),
    )
    return made


class _Linear(nn.Module):
    """256 bits on images of any size; reads the mark's presence first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("patterns", torch.from_numpy(_patterns(256)))

    @torch.jit.export
    def embed(self, images: Tensor, bits: Tensor) -> Tensor:
        shown = torch.einsum("bk,kchw->bchw", bits * 2 - 1, self.patterns)
        size = [images.shape[2], images.shape[3]]
        return images + 0.005 * nn.functional.interpolate(shown, size=size, mode="bilinear")

    @torch.jit.export
    def detect(self, images: Tensor) -> Tensor:
        small = nn.functional.interpolate(images, size=[64, 64], mode="bilinear")
        bits = torch.einsum("bchw,kchw->bk", small, self.patterns)
        return torch.cat([torch.ones_like(bits[:, :1]), bits], 1)

    def forward(self, images: Tensor, bits: Tensor) -> Tensor:
        return self.embed(images, bits)


@pytest.fixture(scope="module")
def seal(tmp_path_factory: pytest.TempPathFactory) -> WatermarkConfig:
    path = tmp_path_factory.mktemp("seal") / "y_256b_img.jit"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to replace TorchScript
        torch.jit.save(torch.jit.script(_Linear()), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    made: WatermarkConfig = WATERMARKS.make("seal", message="5c3a9f06", file=str(path), sha256=sha256)
    return made


@pytest.fixture(scope="module")
def scene() -> Images:
    """A smooth picture [1, 96, 128, 3]."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 196, (6, 8, 3)).astype(np.float64)
    image = torch.nn.functional.interpolate(
        torch.from_numpy(coarse).permute(2, 0, 1)[None], size=(96, 128), mode="bicubic"
    )
    return image.permute(0, 2, 3, 1).numpy().round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", ["trustmark", "seal"])
def test_what_they_hide_is_found(name: str, scene: Images, request: pytest.FixtureRequest) -> None:
    settings: WatermarkConfig = request.getfixturevalue(name)
    watermark: Watermark = settings.build()
    marked = watermark.embed(scene, settings.bits)
    assert marked.shape == scene.shape
    error = np.square(marked.astype(float) - scene).mean()
    assert 20 < 10 * np.log10(255**2 / error) < 45
    assert watermark.detect(marked[0], settings.bits).p_value < 1e-4
    assert watermark.detect(marked[0, ::2, ::2], settings.bits).p_value < 1e-3
    assert watermark.detect(scene[0], settings.bits).p_value > 1e-3
    assert watermark.detect(marked[0], settings.bits[::-1].copy() ^ 1).p_value > 1e-3
    assert np.array_equal(watermark.embed(scene, settings.bits), marked)
    grey = watermark.embed(scene[..., :1], settings.bits)
    assert grey.shape == (1, 96, 128, 1)
    clear = np.concatenate([scene, np.full((1, 96, 128, 1), 7, np.uint8)], -1)
    assert (watermark.embed(clear, settings.bits)[..., 3] == 7).all()


def test_trustmark_adds_the_residual_that_the_paper_says(trustmark: WatermarkConfig) -> None:
    """At the networks' own size, where nothing is resized, and in the middle square of a long picture."""
    watermark = trustmark.build()
    grey = np.full((1, SIDE, 3 * SIDE, 3), 128, np.uint8)
    signs = repeated(trustmark.bits, BITS) * 2 - 1
    residual = np.tensordot(signs, _patterns(BITS), 1) * 0.01 * 127.5
    expected = (128 + residual.transpose(1, 2, 0)).round().clip(0, 255)
    found = watermark.embed(grey, trustmark.bits)[0]
    assert np.abs(found[:, SIDE : 2 * SIDE] - expected).max() <= 1
    assert (found[:, :SIDE] == 128).all() and (found[:, 2 * SIDE :] == 128).all()
    assert watermark.detect(found, trustmark.bits).p_value < 1e-6


def test_messages_are_repeated_and_read_by_vote() -> None:
    bits = np.unpackbits(np.array([0x5C, 0x3A, 0x9F, 0x06], np.uint8))
    sent = repeated(bits, 100)
    assert (sent[:96].reshape(3, 32) == bits).all() and not sent[96:].any()
    read = sent * 2.0 - 1
    read[5] *= -1  # one copy of three
    assert (voted(read) == bits).all()
    with pytest.raises(ValueError, match="room for 31 bits"):
        repeated(bits, 31)


def test_wrong_files_are_refused(trustmark: WatermarkConfig, seal: WatermarkConfig, tmp_path: Path) -> None:
    pickled, text = tmp_path / "encoder_Q.ckpt", tmp_path / "x.onnx"
    for file in (pickled, text):
        file.write_bytes(b"no network")
    encoder, decoder = trustmark.encoder, trustmark.decoder  # type: ignore[attr-defined]
    for changes, message in (
        ({"encoder": ""}, "needs the files of its networks"),
        ({"encoder": str(tmp_path / "none.onnx")}, "no such file"),
        ({"encoder": str(pickled)}, "checkpoints of PyTorch are pickles and are not read"),
        ({"encoder": str(text)}, "cannot be read"),
        ({"encoder": decoder, "decoder": encoder}, "may be swapped"),
    ):
        with pytest.raises(ConfigError, match=message):
            trustmark.model_copy(update=changes).build()
    for changes, message in (
        ({"file": ""}, "needs the file of its model"),
        ({"file": str(tmp_path / "none.jit")}, "no such file"),
        ({"sha256": ""}, "is a program, so its sha256 is required"),
        ({"sha256": "0" * 64}, "is another file"),
        ({"file": str(text), "sha256": hashlib.sha256(b"no network").hexdigest()}, "is no TorchScript file"),
        ({"capacity": 128}, "reads 256 bits, capacity is 128"),
    ):
        with pytest.raises(ConfigError, match=message):
            seal.model_copy(update=changes).build()


def test_a_model_folder_may_not_bring_a_program(seal: WatermarkConfig, tmp_path: Path) -> None:
    write_provenance(tmp_path, Provenance(ProvenanceSettings(watermark=seal)))
    with pytest.raises(ConfigError, match="TorchScript; loading it runs its code"):
        read_provenance(tmp_path)
    assert read_provenance(tmp_path, trust=True).settings.watermark == seal


def test_the_command_takes_the_files(
    trustmark: WatermarkConfig,
    scene: Images,
    tmp_path: Path,
    sfumato_here: Callable[..., tuple[int, str, str]],
) -> None:
    Image.fromarray(trustmark.build().embed(scene, trustmark.bits)[0]).save(tmp_path / "x.png")
    files = [f"{name}={getattr(trustmark, name)}" for name in ("encoder", "decoder")]
    detect = ("provenance", "detect", str(tmp_path / "x.png"), "--scheme", "trustmark")
    code, out, _ = sfumato_here(*detect, "--message", "5c3a9f06", "--set", files[0], "--set", files[1])
    assert (code, "x.png: marked" in out) == (0, True)
    code, _, err = sfumato_here(*detect)
    assert (code, "set encoder and decoder" in err) == (2, True)
    code, _, err = sfumato_here(*detect, "--set", "encode=x")
    assert (code, "--set encode" in err) == (2, True)
