"""A run's progress for Prometheus: nodes export it with Ray's own metrics, as `ray_sfumato_...`.

MLflow keeps every figure; these few are for a cluster's dashboards and alerts, which look at all runs and
nodes at once.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Gauge

# Gauge -> the metric of the loop that it shows.
_FROM_METRICS = {
    "sfumato_images_per_second": "train/images_per_second",
    "sfumato_data_wait_fraction": "train/data_wait_fraction",
}
_DESCRIPTIONS = {
    "sfumato_images": "Images that the run has trained on.",
    "sfumato_images_total": "Images that the recipe asks for.",
    "sfumato_images_per_second": "Images trained per second by all workers in the last log interval.",
    "sfumato_data_wait_fraction": "Fraction of the last log interval spent waiting for data, 0 to 1.",
    "sfumato_collapse": "1 if the last evaluation in training found a sign of mode collapse, else 0.",
}
NAMES = tuple(_DESCRIPTIONS)


class Gauges:
    """The gauges of one run, created in the process that sets them."""

    def __init__(self, run: str) -> None:
        self._gauges = {
            name: Gauge(name, description=text, tag_keys=("run",)) for name, text in _DESCRIPTIONS.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags({"run": run})

    def collapse(self, seen: bool) -> None:
        """After each evaluation during training that looks for collapse."""
        self._gauges["sfumato_collapse"].set(float(seen))

    def set(self, images: int, total_images: int, metrics: Mapping[str, float]) -> None:
        """Rank 0's report, once per log interval."""
        self._gauges["sfumato_images"].set(images)
        self._gauges["sfumato_images_total"].set(total_images)
        for name, metric in _FROM_METRICS.items():
            if metric in metrics:
                self._gauges[name].set(metrics[metric])
