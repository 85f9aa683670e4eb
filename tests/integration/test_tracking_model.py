"""A registered model, loaded through MLflow alone, draws what the generator draws."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from adapter import AdapterConfig
from library_folders import save_unet
from tiny_evaluation import untrained

from sfumato.core.batch import DataSpec
from sfumato.core.pretrained import Pretrained
from sfumato.core.progress import Progress
from sfumato.errors import CheckpointError, ConfigError
from sfumato.families.diffusion import Config
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.runtime.runs.pretrained import look_up
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.model import describe_version, register_model
from sfumato.tracking.run import Tracker
from sfumato.training.loop import install

DIGITS = DataSpec(channels=1, height=8, width=8, classes=tuple("0123456789"))


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    root = tmp_path_factory.mktemp("project")
    settings = TrackingSettings(system_metrics=False)
    with Tracker.start(settings, root=root, folder=root / "run", run_name="tiny") as tracker:
        mlflow.set_tracking_uri(tracker.handle.store.uri)
        yield tracker
    mlflow.set_tracking_uri(None)


def test_the_registered_model_draws_the_same_images(tracker: Tracker, tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", Config.tiny(), DIGITS, name="tiny/digits", images=1234)
    assert register_model(tracker.handle, folder, "digits", description="# A card") == 1
    client = tracker.handle.store.client()
    assert client.get_model_version("digits", "1").description == "# A card"
    describe_version(tracker.handle, "digits", 1, "# A newer card")
    assert client.get_model_version("digits", "1").description == "# A newer card"
    describe_version(tracker.handle, "digits", 7, "of a version that was deleted")
    loaded = mlflow.pyfunc.load_model("models:/digits/1")
    generator = Generator.load(folder)
    rows = pd.DataFrame({"seed": [5, 9, 5, 5], "label": [1, 2, 3, 4]})
    images = loaded.predict(rows)
    assert images.shape == (4, 8, 8, 1)
    assert images.dtype == np.uint8
    of_five = generator.sample(3, seed=5, labels=[1, 3, 4])
    np.testing.assert_array_equal(images[[0, 2, 3]], of_five)
    np.testing.assert_array_equal(images[[1]], generator.sample(1, seed=9, labels=[2]))
    without = loaded.predict(pd.DataFrame({"seed": [7, 7, 7]}))
    np.testing.assert_array_equal(without, generator.sample(3, seed=7))


def test_an_adapter_finds_its_base_where_it_is_told(tracker: Tracker, tmp_path: Path) -> None:
    base = save_unet(tmp_path / "unet")
    config = AdapterConfig(base=look_up(Pretrained(folder=str(base)), tmp_path, "model.base"))
    spec, strategy = DataSpec(1, 8, 8), Single(Placement())
    family = config.build(spec)
    install(family, strategy, seed=0)
    folder = tmp_path / "model"
    weights = strategy.weights(family.samplers)
    save_model_folder(folder, config, spec, weights, name="adapter", progress=Progress.at(1))
    images = Generator.load(folder, trust=True).sample(2, seed=3)
    rows = pd.DataFrame({"seed": [3, 3]})

    second = base.rename(tmp_path / "second")
    with pytest.raises(CheckpointError, match="is not there"):
        register_model(tracker.handle, folder, "adapted")
    assert register_model(tracker.handle, folder, "adapted", base=second) == 1
    uri = "models:/adapted/1"
    np.testing.assert_array_equal(mlflow.pyfunc.load_model(uri).predict(rows), images)
    third = second.rename(tmp_path / "third")
    with pytest.raises(CheckpointError, match="is not there"):
        mlflow.pyfunc.load_model(uri)
    loaded = mlflow.pyfunc.load_model(uri, model_config={"base": str(third)})
    np.testing.assert_array_equal(loaded.predict(rows), images)


def test_versions_count_and_nothing_is_pickled(tracker: Tracker, tmp_path: Path) -> None:
    folder = untrained(tmp_path / "model", Config.tiny(), DIGITS, name="tiny/digits", images=1234)
    first = register_model(tracker.handle, folder, "counted")
    assert register_model(tracker.handle, folder, "counted") == first + 1
    client = tracker.handle.store.client()
    version = client.get_model_version("counted", str(first))
    assert version.run_id == tracker.run_id
    assert version.tags["sfumato.images"] == "1234"
    packed = Path(
        mlflow.artifacts.download_artifacts(f"models:/counted/{first}", dst_path=str(tmp_path / "d"))
    )
    suffixes = {path.suffix for path in packed.rglob("*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".bin"}
    requirements = (packed / "requirements.txt").read_text().split()
    assert f"mlflow=={mlflow.__version__}" in requirements
    assert not [line for line in requirements if "+" in line or "==" not in line]


def test_a_wrong_name_or_folder_is_one_clear_line(tracker: Tracker, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"registry.name 'a/b'"):
        register_model(tracker.handle, tmp_path, "a/b")
    with pytest.raises(CheckpointError, match="train first"):
        register_model(tracker.handle, tmp_path / "none", "digits")
