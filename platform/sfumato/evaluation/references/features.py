"""Features of references, made once for each (data, extractor) and kept in the cache folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sfumato.evaluation.blocks.store import BlockStore
from sfumato.evaluation.blocks.workers import Workers
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import CHUNK, Extractor, ReadsCaptions
from sfumato.evaluation.progress import Begin, silent
from sfumato.evaluation.references.blocks import Extracting, Part, joined_features, parts_of
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.references.reference import Captioned, Reference
from sfumato.evaluation.references.statistics import StatisticsReference
from sfumato.evaluation.statistics import Float32Array, Int64Array
from sfumato.evaluation.store import Array, digest


@dataclass(frozen=True, slots=True)
class ReferenceFeatures:
    """Finds features of whole sets in `cache`, or has `workers` make them.

    Finished blocks stay in the folder `blocks` until a set is complete: after a kill, work resumes from them.
    `begin` is told of every set that is made. A worker reports after `batch_size` images, None: one block.
    """

    cache: FeatureCache
    blocks: Path
    workers: Workers
    begin: Begin = silent
    batch_size: int | None = None

    def of(
        self, reference: Reference, extractors: Sequence[Extractor], what: str = "reference"
    ) -> dict[str, FeatureSet]:
        """Features, logits and labels of the whole set, in its order, by the features' name.

        The key is the digest of the data's manifest, which tells splits apart too, with the digest of the
        extractor, which covers its weights and its transform. An image is read once for all extractors.
        Progress calls the set `what`.

        Raises DataError for images or labels that do not match the set's `spec`.
        """
        if isinstance(reference, StatisticsReference):
            return {extractor.name: reference.features(extractor) for extractor in extractors}
        entries = {extractor.name: _entry(reference, extractor) for extractor in extractors}
        found = {name: self.cache.read(f"{entry}.safetensors") for name, entry in entries.items()}
        lacking = [extractor for extractor in extractors if found[extractor.name] is None]
        if lacking:
            parts = parts_of(reference)
            cut = digest([part.first for part in parts])  # blocks of another cut are others
            stores = {e.name: BlockStore(self.blocks / f"{entries[e.name]}-{cut}") for e in lacking}
            self._make_missing(reference, lacking, stores, parts, what)
            for extractor in lacking:
                arrays = joined_features(stores[extractor.name], parts, reference.size)
                facts = {"reference": reference.digest, "extractor": extractor.digest}
                self.cache.write(f"{entries[extractor.name]}.safetensors", arrays, facts)
                stores[extractor.name].remove()
                found[extractor.name] = arrays
        return {name: _feature_set(arrays) for name, arrays in found.items() if arrays is not None}

    def _make_missing(
        self,
        reference: Reference,
        extractors: Sequence[Extractor],
        stores: Mapping[str, BlockStore],
        parts: Sequence[Part],
        what: str,
    ) -> None:
        missing = {name: {part.name for part in store.missing(parts)} for name, store in stores.items()}
        tasks = [
            replace(part, extractors=wanted)
            for part in parts
            if (wanted := tuple(name for name, lacking in missing.items() if part.name in lacking))
        ]
        tell, done = self.begin(what), reference.size - sum(map(len, tasks))
        tell(done, reference.size)
        at_once = -(-(self.batch_size or 1) // CHUNK)
        for part, blocks in self.workers.run(Extracting(reference, extractors), tasks, at_once):
            for name, block in blocks.items():
                stores[name].save(block)
            done += len(part)
            tell(done, reference.size)


def caption_features(
    reference: Reference, extractor: Extractor, cache: FeatureCache, rows: int
) -> Float32Array:
    """Features [rows, D] of the captions of the first images; computed once for each key, as above."""
    assert isinstance(reference, Captioned)
    assert isinstance(extractor, ReadsCaptions)
    key = digest("captions", reference.digest, extractor.digest, rows)
    name = f"captions-{extractor.name}-{key}.safetensors"
    stored = cache.read(name)
    if stored is None:
        stored = {"text": extractor.extract_text(reference.captions(0, rows))}
        cache.write(name, stored, {"reference": reference.digest, "extractor": extractor.digest})
    text_ND: Float32Array = stored["text"]
    return text_ND


def class_counts(features: FeatureSet, classes: int) -> Int64Array | None:
    """Images of each class [K], or None if there are no labels."""
    if features.label_N is None:
        return None
    return np.bincount(features.label_N, minlength=classes).astype(np.int64)


def _entry(reference: Reference, extractor: Extractor) -> str:
    """The name of the cache's entry."""
    return f"reference-{extractor.name}-{digest('reference', reference.digest, extractor.digest)}"


def _feature_set(arrays: Mapping[str, Array]) -> FeatureSet:
    return FeatureSet(arrays["embedding"], arrays.get("logits"), arrays.get("label"))
