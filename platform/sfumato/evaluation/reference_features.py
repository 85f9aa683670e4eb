"""Features of the reference, computed once for each (data, extractor) and kept in the cache folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfumato.errors import DataError
from sfumato.evaluation.feature_cache import FeatureCache
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extracted, Extractor, ReadsCaptions
from sfumato.evaluation.reference import Captioned, ImageBlock, Reference
from sfumato.evaluation.reference_statistics import StatisticsReference
from sfumato.evaluation.statistics import Float32Array, Int64Array
from sfumato.evaluation.store import Array, digest


def reference_features(reference: Reference, extractor: Extractor, cache: FeatureCache | Path) -> FeatureSet:
    """Features, logits and labels of the whole reference, in its order; extracted once for each key.

    The key is the digest of the data's manifest, which tells splits apart too, with the digest of the
    extractor, which covers its weights and its transform.

    Raises DataError for images or labels that do not match the reference's `spec`.
    """
    key = digest("reference", reference.digest, extractor.digest)
    if isinstance(reference, StatisticsReference):
        return reference.features(extractor)
    cache = cache if isinstance(cache, FeatureCache) else FeatureCache(cache)
    name = f"reference-{extractor.name}-{key}.safetensors"
    stored = cache.read(name)
    arrays = _extract(reference, extractor) if stored is None else stored
    if stored is None:
        cache.write(name, arrays, {"reference": reference.digest, "extractor": extractor.digest})
    return FeatureSet(arrays["embedding"], arrays.get("logits"), arrays.get("label"))


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


def _extract(reference: Reference, extractor: Extractor) -> dict[str, Array]:
    extracted: list[Extracted] = []
    labels: list[Int64Array] = []
    for block in reference.blocks():
        _check(block, reference)
        extracted.append(extractor.extract(block[0]))
        if block[1] is not None:
            labels.append(block[1])
    if not extracted:
        raise DataError("the reference data holds no usable image")
    arrays: dict[str, Array] = {"embedding": np.concatenate([part.embedding_ND for part in extracted])}
    if not np.isfinite(arrays["embedding"]).all():
        raise DataError(f"features {extractor.name} of the reference are not finite")
    logits = [part.logits_NK for part in extracted if part.logits_NK is not None]
    if logits:
        arrays["logits"] = np.concatenate(logits)
    if labels:
        arrays["label"] = np.concatenate(labels)
    return arrays


def _check(block: ImageBlock, reference: Reference) -> None:
    images, label_N = block
    spec = reference.spec
    if images.shape[1:] != (spec.height, spec.width, spec.channels) or images.dtype != np.uint8:
        raise DataError(
            f"the reference holds {images.dtype} images of shape {images.shape[1:]}, but its manifest states "
            f"uint8 {(spec.height, spec.width, spec.channels)}: pack it again"
        )
    if label_N is None:
        return
    if len(label_N) != len(images) or label_N.min() < 0 or label_N.max() >= spec.num_classes:
        raise DataError(
            f"the reference has labels {label_N.min()} to {label_N.max()}, but its manifest names "
            f"{spec.num_classes} classes: pack it again"
        )
