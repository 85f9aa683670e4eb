"""InceptionV3 features against torch-fidelity's own network, resizes against theirs and Pillow's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fidelity import FeatureExtractorInceptionV3, interpolate_bilinear_2d_like_tensorflow1x
from PIL import Image

from sfumato.core.batch import DataSpec
from sfumato.core.rng import seeded
from sfumato.errors import CapabilityError
from sfumato.evaluation.features import all_features
from sfumato.evaluation.features.inception import WEIGHTS, InceptionKind, InceptionOptions
from sfumato.evaluation.features.inception_network import InceptionV3
from sfumato.evaluation.features.resize import bicubic, tensorflow_bilinear


class NoReference:
    """The extractor needs nothing of it."""


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose batch statistics keep the activations alive through all layers."""
    with seeded(0, "inception"):
        network = InceptionV3()
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.7, 1.4)
                torch.nn.init.uniform_(module.bias, -0.2, 0.2)
    path = tmp_path_factory.mktemp("weights") / WEIGHTS.name
    torch.save(network.state_dict(), path)
    return path


def test_features_equal_torch_fidelitys_network_resize_included(random_weights: Path, tmp_path: Path) -> None:
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(random_weights)
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 27, 3), dtype=np.uint8)
    extractor = InceptionKind().build(NoReference(), InceptionOptions(weights=random_weights), tmp_path)  # type: ignore[arg-type]
    ours = extractor.extract(images)
    with torch.no_grad():
        pool3, logits = theirs(torch.from_numpy(images).permute(0, 3, 1, 2))
    assert float(pool3.std()) > 0.01, "the comparison would mean nothing on dead features"
    scale = float(pool3.abs().max())
    np.testing.assert_allclose(ours.embedding_ND, pool3.numpy(), rtol=1e-5, atol=1e-5 * scale)
    assert ours.logits_NK is not None
    np.testing.assert_allclose(
        ours.logits_NK, logits.numpy(), rtol=1e-5, atol=1e-5 * float(logits.abs().max())
    )
    assert extractor.facts["resize"] == "tensorflow"
    assert extractor.facts["published_weights"] is False
    clean = InceptionKind().build(
        NoReference(),  # type: ignore[arg-type]
        InceptionOptions(weights=random_weights, resize="clean"),
        tmp_path,
    )
    assert clean.digest != extractor.digest


@pytest.mark.parametrize("size", [(32, 32), (299, 299), (500, 310), (1, 7)])
def test_the_tensorflow_resize_is_torch_fidelitys_bit_by_bit(size: tuple[int, int]) -> None:
    x = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0)).float()
    theirs = interpolate_bilinear_2d_like_tensorflow1x(x, size=(299, 299), align_corners=False)
    assert torch.equal(tensorflow_bilinear(x, 299), theirs)


@pytest.mark.parametrize("size", [(32, 32), (640, 400)])
def test_the_clean_resize_is_pillows_in_float(size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).integers(0, 256, size).astype(np.float32)
    theirs = np.asarray(Image.fromarray(x).resize((299, 299), Image.Resampling.BICUBIC)).clip(0, 255)
    ours = bicubic(torch.from_numpy(x)[None, None], 299)[0, 0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_weights_that_are_missing_or_others_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SFUMATO_INCEPTION_WEIGHTS", raising=False)
    kind, nothing = InceptionKind(), NoReference()
    with pytest.raises(
        CapabilityError, match=r"none given; set .*weights=FILE or SFUMATO_INCEPTION_WEIGHTS=FILE"
    ):
        kind.build(nothing, InceptionOptions(), tmp_path)  # type: ignore[arg-type]
    monkeypatch.setenv("SFUMATO_INCEPTION_WEIGHTS", str(tmp_path / "no.pth"))
    with pytest.raises(CapabilityError, match=r"no\.pth' are not an existing file"):
        kind.build(nothing, InceptionOptions(), tmp_path)  # type: ignore[arg-type]
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name in ("other.pth", "text.pth"):
        with pytest.raises(CapabilityError, match="does not hold the weights of the 2015-12-05") as raised:
            kind.build(nothing, InceptionOptions(weights=tmp_path / name), tmp_path)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)


def test_a_download_counts_with_the_right_checksum_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real transfer, from a file: the same code path as from the network."""
    import hashlib
    from dataclasses import replace

    monkeypatch.delenv("SFUMATO_INCEPTION_WEIGHTS", raising=False)
    served = tmp_path / "served.pth"
    served.write_bytes(b"weights")
    good = replace(WEIGHTS, url=served.as_uri(), sha256=hashlib.sha256(b"weights").hexdigest())
    cache = tmp_path / "cache"
    bad = replace(good, sha256="0" * 64)
    with pytest.raises(CapabilityError, match=r"expected 000000000000\.\.\.: nothing was kept"):
        bad.locate(None, cache, download=True)
    assert list(cache.iterdir()) == []
    assert good.locate(None, cache, download=True).read_bytes() == b"weights"
    served.unlink()
    assert good.locate(None, cache, download=False) == cache / "served.pth", "kept from before"
    with pytest.raises(CapabilityError, match=r"download of .* failed"):
        replace(good, url=(tmp_path / "gone.pth").as_uri()).locate(None, cache, download=True)


def test_channels_are_checked_and_kinds_say_what_they_give() -> None:
    assert InceptionKind().problems(DataSpec(1, 8, 8)) == []
    assert InceptionKind().problems(DataSpec(4, 8, 8)) == [
        "features inception needs images of 1 or 3 channels, this data has 4"
    ]
    kinds = all_features()
    assert {name for name, kind in kinds.items() if kind.classifies} == {"classifier"}
    assert {name for name, kind in kinds.items() if kind.gives_logits} == {"classifier", "inception"}
