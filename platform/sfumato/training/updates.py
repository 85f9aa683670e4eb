"""One update: the passes of a phase over a rank's share of a global batch, and the optimizer step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sfumato.core.batch import Batch, MicroBatch, to_device
from sfumato.core.family import Family, LossOut, Nets, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng
from sfumato.core.seeds import derive
from sfumato.parallel.strategy import Strategy
from sfumato.training.config import TrainSettings
from sfumato.training.family_state import FamilyState
from sfumato.training.meters import Means
from sfumato.training.passes import passes_of
from sfumato.training.phases import Prepared, Update
from sfumato.training.skips import Skips


class Updates:
    """Runs updates, and adds their results to `means`, `skips` and `state`."""

    def __init__(
        self,
        family: Family,
        strategy: Strategy,
        settings: TrainSettings,
        *,
        seed: int,
        streams: int,
        means: Means,
        skips: Skips,
        state: FamilyState,
    ) -> None:
        self._family, self._strategy, self._settings = family, strategy, settings
        self._nets = family.nets
        self._seed, self._streams = seed, streams
        self._rows_per_stream = settings.batch // streams
        self._clip = settings.clip_grad_norm
        self._passes = passes_of(strategy, settings, streams)
        self._means, self._skips, self._state = means, skips, state
        self._weight: Tensor | None = None
        """Sum of the rows' weights in the update under way, on this rank."""

    def run(self, update: Update, share: list[MicroBatch], progress: Progress, prepared: Prepared) -> None:
        """One optimizer step of one phase on this rank's share of a global batch."""
        phase = update.phase
        nets = self._strategy.view(phase.trains)
        passes = max(len(share), self._passes)
        self._weight = None
        for index in range(passes):
            # A rank with fewer micro-batches takes part with one that does not count.
            micro, counts = share[min(index, len(share) - 1)], index < len(share)
            last = index == passes - 1
            with self._strategy.accumulate(phase.trains, last=last, second_order=phase.second_order):
                out = self._loss(update, nets, micro, progress, index, prepared)
                self._strategy.backward(phase.trains, self._part(update, out, micro.rows, counts=counts))
        prepared.done(update)
        spec = self._nets[phase.trains]
        assert isinstance(spec, Trainable), f"phase {phase.name}: {phase.trains} is not Trainable"
        norm = self._strategy.step(
            phase.trains,
            lr=spec.optimizer.lr.at(progress),
            max_norm=phase.clip_grad_norm if self._clip == "auto" else self._clip,
            scale=self._scale(),
        )
        kept = torch.isfinite(norm)
        self._means.add(f"{phase.name}/grad_norm", norm, 1)
        self._means.commit(kept)
        self._state.commit(kept)
        self._skips.add(phase.name, kept, self._images(update, progress))

    def _loss(
        self,
        update: Update,
        nets: Nets,
        micro: MicroBatch,
        progress: Progress,
        index: int,
        prepared: Prepared,
    ) -> LossOut:
        """The loss of the phase in pass `index`, one value per row."""
        phase, device = update.phase, self._strategy.placement.device
        images = self._images(update, progress)
        rng = StreamRng(
            micro.pieces,
            rows_per_stream=self._rows_per_stream,
            seed=self._seed,
            images=images,
            phase=phase.name,
            streams=self._streams,
            device=device,
        )
        # Dropout draws from torch's global generator; it too depends only on the position in training.
        first = micro.pieces[0]
        _seed_global(derive(self._seed, images, phase.name, first.stream, first.first), device)

        def prepare() -> Batch:
            batch = to_device(micro.batch, device)
            with torch.no_grad(), self._autocast():
                return self._family.prepare(nets, batch, progress, rng)

        batch = prepared.get(update.repeat, index, prepare)
        # Entered again: a cast cached without gradients would have none here.
        with nullcontext() if phase.float32 else self._autocast():
            out = phase.loss(nets, batch, progress, rng)
        for what, value in (("loss", out.loss_B), ("weight", out.weights_B)):
            if value is not None and value.shape != (micro.rows,):
                raise ValueError(
                    f"phase {phase.name!r} must return one {what} per row, [{micro.rows}]; "
                    f"got {list(value.shape)}"
                )
        return out

    def _part(self, update: Update, out: LossOut, rows: int, *, counts: bool) -> Tensor:
        """The micro-batch's part of the mean loss over the global batch: a scalar.

        With weights it is sum(weight * loss) / rows of the batch, and `_scale` corrects for the difference.
        """
        phase, loss_B = update.phase.name, out.loss_B.float()
        if not counts:
            return 0.0 * loss_B.sum()
        weights_B = None if out.weights_B is None else out.weights_B.detach().float()
        if weights_B is not None:
            loss_B = loss_B * weights_B
            total = weights_B.double().sum()
            self._weight = total if self._weight is None else self._weight + total
        self._means.add(f"{phase}/loss", out.loss_B, rows, weights_B)
        for name, value in out.metrics.items():
            self._means.add(f"{phase}/{name}", value, rows)
        self._state.add(phase, out.sums)
        return loss_B.sum() / self._settings.batch

    def _scale(self) -> Tensor | None:
        """The factor that turns the gradient of sum(weight * loss) / rows into that of the weighted mean.

        The sum of all weights is known only after the last micro-batch of all ranks, so the gradient is
        rescaled before clipping: exact, and the same under every strategy. None without weights.
        """
        if self._weight is None:
            return None
        total = self._strategy.sum_in_order(self._weight.view(1))[0]
        return torch.where(total > 0, self._settings.batch / total, 1.0)

    def _images(self, update: Update, progress: Progress) -> int:
        """The images seen when the global batch of an update starts."""
        return progress.images + update.repeat * self._settings.batch

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        device, enabled = self._strategy.placement.device.type, self._settings.precision == "bf16"
        with ExitStack() as stack:
            if enabled and device == "cpu":
                # There the fused attention's backward pass takes twice as long in bfloat16 as the products
                # that it fuses.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=enabled))
            yield


def _seed_global(seed: int, device: torch.device) -> None:
    """Like `torch.manual_seed`, which spends a tenth of a millisecond on devices that are not used."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
