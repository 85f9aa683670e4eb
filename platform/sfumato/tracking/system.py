"""Samples the machine's load into a run's metrics, under the names of MLflow's section "System metrics".

That section has exactly the metrics `system/NAME`: a further part would make another section.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

Report = Callable[[Mapping[str, float]], None]


class SystemSampler:
    """Reports the use of CPU, memory, disk, network and GPUs every `interval` seconds."""

    def __init__(self, report: Report, *, interval: float) -> None:
        self._report = report
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracking-system", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        try:
            monitors = _monitors()
            while not self._stop.wait(self._interval):
                self._report(self._sample(monitors))
        except Exception as error:  # noqa: BLE001 - a sensor that fails must not end the run
            logging.getLogger("sfumato").warning("tracking: no more system metrics (%s)", error)

    def _sample(self, monitors: list[Any]) -> dict[str, float]:
        values: dict[str, float] = {}
        for monitor in monitors:
            monitor.collect_metrics()
            values.update(monitor.aggregate_metrics())
            monitor.clear_metrics()
        return {f"system/{key}": float(value) for key, value in values.items()}


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics import cpu_monitor, disk_monitor, gpu_monitor, network_monitor

    kinds: list[Any] = [cpu_monitor.CPUMonitor, disk_monitor.DiskMonitor, network_monitor.NetworkMonitor]
    monitors: list[Any] = [kind() for kind in kinds]
    gpu: Any = gpu_monitor.GPUMonitor
    try:
        monitors.append(gpu())
    except Exception:  # noqa: BLE001 - MLflow raises several kinds where there is no NVIDIA GPU or driver
        logging.getLogger("sfumato").debug("no GPU to monitor")
    return monitors
