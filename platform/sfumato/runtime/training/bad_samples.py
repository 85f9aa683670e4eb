"""Lists the samples that a run skipped, and names the images of a batch for an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sfumato.data.format.faults import Fault
from sfumato.data.format.index import load_shard
from sfumato.data.format.manifest import Manifest
from sfumato.data.order.epochs import Order
from sfumato.data.order.pools import pools_of
from sfumato.errors import TrainingError
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.tracking.run import Tracker
from sfumato.training.skips import NotFinite

FILE = "skipped.json"


def explained(error: NotFinite, recipe: Recipe, manifest: Manifest) -> TrainingError:
    """The error if going back to a checkpoint did not help: the images, and what to do."""
    keys = batch_keys(recipe, manifest, error.bad.images)
    return TrainingError(
        f"{error}; {f'that batch is {shown(keys)}; ' if keys else ''}lower the learning rate, clip "
        "gradients (train.clip_grad_norm), use train.precision=fp32, or look at these images"
    )


def batch_keys(recipe: Recipe, manifest: Manifest, images: int) -> list[str]:
    """Keys of the batch that starts at so many images, stream by stream; none if data sets are mixed.

    With `data.on_error=skip` this names unusable samples, too, although others took their rows.
    """
    pools = pools_of(recipe.data, manifest)
    if len(pools) != 1:
        return []
    streams, rows = recipe.data.streams, recipe.train.batch // recipe.data.streams
    window, chunk = recipe.data.shuffle_window, recipe.data.shuffle_chunk
    order = Order(recipe.seed, manifest.shard_samples, streams, window, chunk=chunk)
    first = images // recipe.train.batch * rows
    keys = []
    for stream in range(streams):
        for row in range(rows):
            _, shard, place = order.sample_at(stream, first + row)
            index = load_shard(recipe.data.path, manifest.shards[shard])
            keys.append(str(index.keys[place].as_py()))
    return keys


def shown(keys: list[str], most: int = 8) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


class SkippedSamples:
    """Samples that any rank has skipped since the run began, in all attempts. Rank 0 lists them."""

    def __init__(self, folder: RunFolder, tracker: Tracker | None) -> None:
        self._folder, self._tracker = folder, tracker
        self._known: set[str] = set(folder.read_json(FILE) or ())

    def add(self, faults_of_ranks: Iterable[Sequence[Fault]]) -> None:
        """Rewrite the list if it has grown."""
        found = {str(fault) for faults in faults_of_ranks for fault in faults} - self._known
        if not found or self._tracker is None:
            return
        self._known |= found
        self._folder.write_json(FILE, sorted(self._known))
        self._tracker.artifact(self._folder.path / FILE)

    @property
    def text(self) -> str:
        """One line for people; empty if nothing was skipped."""
        count = len(self._known)
        return f"{count} samples could not be used and were skipped; {FILE} lists them" if count else ""
