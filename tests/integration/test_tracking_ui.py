"""The UI server, runs found by name, and the pages as a browser shows them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from repository import PLATFORM
from sklearn.datasets import load_digits

from sfumato.errors import ConfigError
from sfumato.provenance.formats import encoded
from sfumato.sampling.grid import image_grid
from sfumato.tracking.config import TrackingSettings
from sfumato.tracking.run import Tracker
from sfumato.tracking.runs import find_run, list_runs
from sfumato.tracking.ui import serve, started

if TYPE_CHECKING:
    from playwright.sync_api import Page

SETTINGS = TrackingSettings(experiment="digits", system_metrics=False)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = os.environ.get("SFUMATO_SCREENSHOTS")
"""A folder to keep the browser tests' pictures in."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def blurred_digits(sigma: float) -> np.ndarray:
    """Sixteen real digits under noise, as a model in training would draw them: uint8 [16, 8, 8, 1]."""
    digits = load_digits().images[:16, ..., None] / 16
    noise = np.random.default_rng(0).normal(size=digits.shape)
    return (np.clip(digits + sigma * noise, 0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tracker]]:
    """Two finished runs of one name and of different families, with metrics and sample grids."""
    root = tmp_path_factory.mktemp("project")
    runs = []
    for number, family in ((1, "diffusion"), (2, "gan")):
        tags = {"sfumato.family": family}
        tracker = Tracker.start(SETTINGS, root=root, folder=root / str(number), run_name="ddpm", tags=tags)
        for step in range(1000, 6000, 1000):
            tracker.metrics({"train/denoise/loss": 500 / step / number}, step=step)
            tracker.image("samples", encoded(image_grid(blurred_digits(1000 / step / number))), step=step)
        assert tracker.finish() == 0
        runs.append(tracker)
        time.sleep(0.01)
    return root, runs


def test_the_newest_run_of_a_name_wins_and_that_is_said(project: tuple[Path, list[Tracker]]) -> None:
    root, (first, second) = project
    found = find_run("ddpm", SETTINGS, root=root)
    assert found.run_id == second.run_id
    assert "the newest of 2 runs" in found.said
    by_id = find_run(first.run_id, SETTINGS, root=root)
    assert (by_id.run_id, by_id.name, by_id.status) == (first.run_id, "ddpm", "FINISHED")
    assert by_id.metrics["train/denoise/loss"] == 0.1
    assert [run.run_id for run in list_runs(SETTINGS, root=root)] == [second.run_id, first.run_id]
    assert list_runs(SETTINGS, root=root, experiment="none") == []


@pytest.mark.parametrize("name", ["dpm", "o'brien", "0" * 32])
def test_an_unknown_run_is_answered_with_the_nearest(name: str, project: tuple[Path, list[Tracker]]) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'ddpm'\?"):
        find_run(name, SETTINGS, root=project[0])


def test_looking_for_a_run_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start a run first"):
        find_run("ddpm", SETTINGS, root=tmp_path)
    with pytest.raises(ConfigError, match="start a run first"):
        serve(SETTINGS, root=tmp_path)
    assert list_runs(SETTINGS, root=tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_a_taken_port_is_one_clear_line(project: tuple[Path, list[Tracker]]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port} cannot be used .*--port {port + 1}"):
            serve(SETTINGS, root=project[0], port=port)


def listeners(port: int) -> set[str]:
    """The local addresses (hexadecimal, as the kernel lists them) on which somebody listens to a port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_ui_serves_loopback_alone_and_ends_on_ctrl_c(project: tuple[Path, list[Tracker]]) -> None:
    port = free_port()
    code = (
        # Where the suite runs in the background, its children are told to ignore ctrl-C.
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys\nfrom pathlib import Path\nfrom sfumato.tracking.config import TrackingSettings\n"
        "from sfumato.tracking.ui import serve\n"
        "serve(TrackingSettings(), root=Path(sys.argv[1]), port=int(sys.argv[2]))\n"
    )
    platform = str(PLATFORM)
    ui = subprocess.Popen(
        [sys.executable, "-c", code, str(project[0]), str(port)],
        env={**os.environ, "PYTHONPATH": platform},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert ui.stdout is not None
        assert f"http://127.0.0.1:{port}" in ui.stdout.readline()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/version") as answer:
            assert answer.status == 200
        assert listeners(port) == {"0100007F"}
        ui.send_signal(signal.SIGINT)
        assert ui.wait(timeout=600) == 0
        assert listeners(port) == set(), "the server and its worker have ended"
    finally:
        ui.kill()


@contextlib.contextmanager
def browser_page(url: str) -> Iterator[Page]:
    """A page of headless Chromium with our pages alone to talk to."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        elsewhere = re.compile(f"^(?!{re.escape(url)}|data:|blob:)")
        page.route(elsewhere, lambda route: route.abort())
        yield page
        browser.close()


LOADED = """step => {
    const images = [...document.images].filter(image => image.src.includes(`step%2B${step}%2B`));
    return images.length === 2 && images.every(image => image.complete && image.naturalWidth > 0);
}"""
"""Whether the page shows the pictures of both runs at a step."""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)")
def test_the_chart_view_shows_sample_grids_with_a_step_slider(
    project: tuple[Path, list[Tracker]], tmp_path: Path
) -> None:
    pytest.importorskip("playwright")
    _, runs = project
    folder = Path(SCREENSHOTS or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    with started(runs[0].handle.store, free_port()) as ui, browser_page(ui.url) as page:
        page.set_default_timeout(100_000)
        page.goto(f"{ui.url}/#/experiments/{runs[0].experiment_id}/runs?compareRunsMode=CHART")
        page.wait_for_selector("[role=slider]")
        if close := page.query_selector("[data-component-id='mlflow.assistant.chat_panel.close']"):
            close.click()
        slider = page.locator("[role=slider]")
        slider.scroll_into_view_if_needed()
        slider.focus()
        for step in (1000, 2000, 3000):
            page.keyboard.press("ArrowRight")
            page.wait_for_function(LOADED, arg=step)
            assert slider.get_attribute("aria-valuenow") == str(step)
            page.screenshot(path=folder / f"samples-{step}.png")
