"""Watermarks: what is hidden is found again, and p-values are what chance gives."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from sfumato import cli
from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.errors import ConfigError, DataError
from sfumato.provenance import detection
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.door import Door
from sfumato.provenance.stored import Provenance, write_provenance
from sfumato.provenance.watermarks import WATERMARKS, Images, WatermarkConfig, p_value
from sfumato.provenance.watermarks.spread import SpreadConfig

FROM_FILES = {"trustmark", "seal"}
"""Tested in test_repeated.py."""
SCHEMES = {
    name: WATERMARKS.make(name, message="5c3a9f06") for name in WATERMARKS.names() if name not in FROM_FILES
}


@pytest.fixture(scope="module")
def scenes() -> Images:
    """Two pictures [128, 128, 3] with a spectrum as of photographs: amplitudes fall as frequency ** -1.3."""
    rng = np.random.default_rng(1)
    across = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128)[None])
    across[0, 0] = 1
    noise = np.fft.fft2(rng.standard_normal((2, 3, 128, 128))) / across**1.3
    planes = np.fft.ifft2(noise).real
    shared = planes.mean(1, keepdims=True) * 2 + planes * 0.3
    shared *= 50 / shared.std((1, 2, 3), keepdims=True)
    return (shared.transpose(0, 2, 3, 1) + 128).round().clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def marked(scenes: Images) -> dict[str, Images]:
    slow = {"rivagan": scenes[:1]}
    return {
        name: one.build().embed(slow.get(name, scenes), one.bits)
        for name, one in SCHEMES.items()
        if _there(name)
    }


@pytest.mark.parametrize("name", list(SCHEMES))
def test_the_message_survives_and_is_hardly_seen(
    name: str, scenes: Images, marked: dict[str, Images]
) -> None:
    if name not in marked:
        pytest.skip(f"{name} needs invisible-watermark, which `make test` installs")
    settings, watermark = SCHEMES[name], SCHEMES[name].build()
    for before, after in zip(scenes, marked[name], strict=False):
        before = before[: len(after), : len(after)]
        assert 10 * np.log10(255**2 / np.mean((before.astype(float) - after) ** 2)) > 38
        for changed in (after, _jpeg(after, 75)):
            assert watermark.detect(changed, settings.bits).p_value < 1e-4
        assert watermark.detect(before, settings.bits).p_value > 1e-3
        other = np.roll(settings.bits, 1) ^ 1
        assert watermark.detect(after, other).p_value > 1e-3


def test_p_values_are_those_of_fair_coins() -> None:
    for matched in range(33):
        exact = Fraction(sum(comb(32, k) for k in range(matched, 33)), 2**32)
        assert p_value(matched) == pytest.approx(float(exact), rel=1e-12)
    assert p_value(32, 8192) == pytest.approx(8192 / 2**32)
    assert p_value(0, 10) == 1


def test_chance_gives_no_smaller_p_values_than_they_say(scenes: Images) -> None:
    """Of random messages in one unmarked picture; at most 2 * level would be a failure of 4 deviations."""
    watermark = SpreadConfig().build()
    rng = np.random.default_rng(0)
    messages = rng.integers(0, 2, (300, 32)).astype(np.uint8)
    image = scenes[0, :64, :64]
    values = np.array([watermark.detect(image, bits).p_value for bits in messages])
    for level in (0.05, 0.2):
        assert (values <= level).mean() <= level + 4 * np.sqrt(level * (1 - level) / 300)


def test_spread_finds_crops_and_needs_its_secret(scenes: Images, marked: dict[str, Images]) -> None:
    settings = SCHEMES["spread"]
    watermark, image = settings.build(), marked["spread"][0]
    strong = SpreadConfig(message=settings.message, psnr=34).build().embed(scenes[:1], settings.bits)[0]
    assert watermark.detect(strong[13:121, 7:117], settings.bits).p_value < 1e-3
    other = SpreadConfig(message=settings.message, secret="another").build()
    assert other.detect(image, settings.bits).p_value > 1e-3


def test_spread_is_a_function_of_its_secret_alone() -> None:
    """Bits and pixels that another library, or another machine, must find again."""
    image = np.full((64, 64, 3), 128, np.uint8)
    image[::2] += 20
    settings = SpreadConfig()
    found = settings.build().embed(image[None], settings.bits)[0].astype(int) - image
    assert found[0, :8, 0].tolist() == PIXELS
    assert np.array_equal(found[..., 0], found[..., 1])


def test_grey_and_transparent_pictures(scenes: Images) -> None:
    settings = SpreadConfig()
    watermark = settings.build()
    grey = watermark.embed(scenes[:1, ..., :1], settings.bits)
    assert grey.shape == (1, 128, 128, 1)
    assert watermark.detect(grey[0], settings.bits).p_value < 1e-4
    clear = np.concatenate([scenes[:1], np.full((1, 128, 128, 1), 7, np.uint8)], -1)
    found = watermark.embed(clear, settings.bits)
    assert (found[..., 3] == 7).all()
    assert watermark.detect(found[0], settings.bits).p_value < 1e-4
    flat = np.zeros((1, 64, 64, 3), np.uint8)
    assert watermark.detect(flat[0], settings.bits).p_value == 1
    assert watermark.embed(flat, settings.bits).shape == flat.shape


def test_the_door_marks_pixels_and_says_so(scenes: Images) -> None:
    settings = SpreadConfig()
    door = Door(ProvenanceSettings(watermark=settings))
    images, applied = door.pixels(scenes[:1])
    assert np.array_equal(images, settings.build().embed(scenes[:1], settings.bits))
    assert applied == [{"watermark": {"kind": "spread", "message": "876f6936"}}]
    small, applied = door.pixels(scenes[:1, :8, :8])
    assert np.array_equal(small, scenes[:1, :8, :8])
    assert applied == [{"watermark": {"kind": "spread", "left_out": "needs 64 pixels a side"}}]


def test_grids_are_marked_as_a_whole(scenes: Images) -> None:
    settings = SpreadConfig()
    door = Door(ProvenanceSettings(watermark=settings))
    for picture in (Image.fromarray(scenes[0]), Image.fromarray(scenes[0, ..., 0])):
        found = np.asarray(door.sheet(picture)).reshape(128, 128, -1)
        assert settings.build().detect(found, settings.bits).p_value < 1e-4
    small = Image.new("RGB", (63, 100))
    assert door.sheet(small) is small


def test_a_required_watermark_refuses_small_pictures(scenes: Images) -> None:
    needed = ProvenanceSettings(watermark=SpreadConfig(), require=("watermark",))
    with pytest.raises(ConfigError, match="spread needs 64 pixels a side, the images have 8x8"):
        Door(needed).check(8, 8)
    with pytest.raises(ConfigError, match="needs 64 pixels a side"):
        Door(needed).pixels(scenes[:, :8, :8])
    Door(needed).check(64, 64, files=False)
    digits = Path(__file__).parents[3] / "pipelines" / "digits" / "ddpm.yaml"
    recipe = recipes.load(digits, ["provenance={watermark: {kind: spread}, require: [watermark]}"])
    assert any("the images have 8x8" in line for line in recipe.problems(DataSpec(1, 8, 8, ("a", "b"))))


def test_settings() -> None:
    for wrong in ("", "123", "5C3A9F06", "5c3a9f0g", "5c3a9f06\n"):
        with pytest.raises(ValidationError):
            SpreadConfig(message=wrong)
    assert SpreadConfig(message="80000001").bits.tolist() == [1, *[0] * 30, 1]


def test_detection_of_files_and_folders(scenes: Images, marked: dict[str, Images], tmp_path: Path) -> None:
    settings = SCHEMES["spread"]
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    Image.fromarray(marked["spread"][0]).save(folder / "a.png")
    Image.fromarray(marked["spread"][1]).save(folder / "below" / "b.jpg", quality=90)
    Image.fromarray(scenes[0]).save(folder / "c.png")
    Image.fromarray(scenes[0, :20, :30]).save(folder / "d.png")
    (folder / "e.png").write_text("no picture")
    (folder / "f.txt").write_text("no picture")
    found = detection.detect(folder, settings)
    assert [one.marked(1e-3) for one in found] == [True, True, False, False, False]
    assert found[3].wrong == "20x30 pixels; spread needs at least 64 a side"
    assert found[4].wrong == "no picture that can be read"
    for name, message in (
        ("d.png", "at least 64 a side"),
        ("e.png", "no picture that"),
        ("g.png", "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            detection.detect(folder / name, settings)


def test_the_command(
    marked: dict[str, Images],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(marked["spread"][0]).save("a.png")
    write_provenance(tmp_path, Provenance(ProvenanceSettings(watermark=SCHEMES["spread"])))
    assert _run(monkeypatch, "a.png", "--message", "5c3a9f06", "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)["files"]
    assert one["marked"] and one["matched"] >= 30 and one["p_value"] < 1e-6
    assert _run(monkeypatch, "a.png", "--model", ".") == 0
    assert "a.png: marked, 3" in capsys.readouterr().out
    assert _run(monkeypatch, "a.png") == 1, "another message"
    assert _run(monkeypatch, "a.png", "--message", "zz") == 2
    assert "message" in capsys.readouterr().err
    assert _run(monkeypatch, "a.png", "--scheme", "spraed") == 2
    assert "--scheme: got 'spraed'; did you mean 'spread'" in capsys.readouterr().err


def test_packed_sets(
    marked: dict[str, Images],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for row, image in enumerate(marked["spread"]):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "a" / f"{row}.png")
    pack(FolderSource(path=str(tmp_path / "a")), tmp_path / "d")
    assert _run(monkeypatch, str(tmp_path / "d"), "--message", "5c3a9f06") == 0
    assert "2 of 2 pictures have the mark at p <= 0.001" in capsys.readouterr().out


PIXELS = [0, -2, -1, 0, 0, -1, -4, -3]


def _there(name: str) -> bool:
    try:
        settings: WatermarkConfig = SCHEMES[name]
        settings.build()
    except ConfigError:
        return False
    return True


def _jpeg(image: Images, quality: int) -> Images:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG", quality=quality)
    return np.asarray(Image.open(out))


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["sfumato", "provenance", "detect", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)
