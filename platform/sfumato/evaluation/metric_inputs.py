"""What some metrics read beside features: images, captions, held-out images, likelihoods, path lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from sfumato.evaluation.captions import Captioned, ReadsCaptions
from sfumato.evaluation.feature_cache import FeatureCache
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metrics.metric import FeatureSet
from sfumato.evaluation.plan import Plan
from sfumato.evaluation.reference import Reference
from sfumato.evaluation.reference_features import caption_features, reference_features
from sfumato.evaluation.selection import Selection
from sfumato.evaluation.statistics import Float32Array


@dataclass(frozen=True, slots=True)
class Extras:
    """Of the reference, made before anything is generated; by the features' name.

    `text` are the features of the first images' captions, `held_out` those of images not trained on.
    """

    text: Mapping[str, Float32Array]
    held_out: Mapping[str, FeatureSet]

    @classmethod
    def of(
        cls,
        selection: Selection,
        reference: Reference,
        held_out: Reference | None,
        extractors: Sequence[Extractor],
        cache: FeatureCache,
        samples: int,
    ) -> Extras:
        """As many captions as there are samples count.

        Raises CapabilityError for features that cannot read captions.
        """
        text: dict[str, Float32Array] = {}
        for extractor in extractors if selection.needs_captions else ():
            if not isinstance(extractor, ReadsCaptions):
                continue
            extractor.extract_text(["a"])  # without a tokenizer it fails here, not in a worker
            if isinstance(reference, Captioned) and reference.captioned:
                rows = min(samples, reference.size)
                text[extractor.name] = caption_features(reference, extractor, cache, rows)
        others: dict[str, FeatureSet] = {}
        if held_out is not None:
            others = {e.name: reference_features(held_out, e, cache) for e in extractors}
        return cls(text, others)

    def with_reference(
        self, real: Mapping[str, FeatureSet], plan: Plan, reference: Reference
    ) -> dict[str, FeatureSet]:
        """The reference's features with all of it."""
        bits_N = plan.bits()
        return {
            name: replace(
                features,
                images=lambda: (images for images, _ in reference.blocks()),
                bits_N=bits_N,
                bits_of=plan.bits_of,
                text_ND=self.text.get(name),
                held_out=self.held_out.get(name),
            )
            for name, features in real.items()
        }


def generated_features(real: Mapping[str, FeatureSet], plan: Plan) -> dict[str, FeatureSet]:
    """Features of what was made, with the lengths of the model's steps; by the features' name."""
    path_M = plan.path_lengths()
    return {
        name: replace(plan.store.features(plan.tasks, name, plan.samples, plan.label_N), path_M=path_M)
        for name in real
    }
