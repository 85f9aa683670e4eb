"""Ray Train's trainer, without the helper processes that a run on a private cluster has no use for.

Every such process imports all of Ray and torch first, which on two cores is seconds before the first step.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.torch.torch_trainer import TorchTrainer


class Trainer(TorchTrainer):
    """A TorchTrainer that starts no process for data sets if there are none.

    With `alone`, the run has the cluster for itself, and the cluster ends with it: then no process waits to
    clean up after a lost controller, and none negotiates with an autoscaler.
    """

    def __init__(self, *arguments: Any, alone: bool, **settings: Any) -> None:
        self._alone = alone
        super().__init__(*arguments, **settings)

    def _create_default_callbacks(self) -> list[Any]:
        needless: list[type] = [] if self.datasets else [DatasetsCallback]
        if self._alone:
            needless.append(PlacementGroupCleanerCallback)
        callbacks: list[Any] = super()._create_default_callbacks()
        return [callback for callback in callbacks if type(callback) not in needless]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        if self._alone and type(settings["scaling_policy"]) is FixedScalingPolicy:
            settings["scaling_policy"] = _WithoutAutoscaler(settings["scaling_policy"].scaling_config)
        return super()._initialize_and_run_controller(**settings)


class _WithoutAutoscaler(FixedScalingPolicy):
    """Asks nobody for nodes: there is one."""

    def after_controller_start(self, train_run_context: TrainRunContext) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass
