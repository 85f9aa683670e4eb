"""The list of skipped samples: of all ranks and attempts, in the run's folder and among its artifacts."""

from __future__ import annotations

import json
from pathlib import Path

from sfumato.data.format.faults import Fault
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training.bad_samples import SkippedSamples
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.run import Tracker


def test_samples_skipped_by_any_rank_and_attempt_are_listed_once(tmp_path: Path) -> None:
    one, two, three = (Fault("s.tar", key, "not an image") for key in ("c", "a", "b"))
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    settings = TrackingSettings(system_metrics=False)
    tracker = Tracker.start(settings, root=tmp_path, folder=folder.path, run_name="skips")
    skipped = SkippedSamples(folder, tracker)
    skipped.add([[], []])
    assert (skipped.text, folder.read_json("skipped.json")) == ("", None)
    skipped.add([[one], [two, one]])
    # The run is killed; what goes on from its checkpoint meets other samples, and the same ones again.
    again = SkippedSamples(folder, tracker)
    again.add([[two], [three]])
    SkippedSamples(folder, None).add([[Fault("s.tar", "d", "only rank 0 writes")]])
    expected = [f"s.tar: {key}: not an image" for key in "abc"]
    assert folder.read_json("skipped.json") == expected
    assert again.text.startswith("3 samples could not be used")
    assert tracker.finish() == 0
    client = tracker.handle.store.client()
    (listed,) = (found for found in client.list_artifacts(tracker.run_id) if found.path == "skipped.json")
    downloaded = client.download_artifacts(tracker.run_id, listed.path, str(tmp_path))
    assert (listed.path, json.loads(Path(downloaded).read_text())) == ("skipped.json", expected)
