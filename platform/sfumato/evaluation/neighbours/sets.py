"""Neighbours of feature sets, computed once however many metrics ask for them.

Density and coverage may have a `k` of their own. One search and one pass over the pairs serve both.
"""

from __future__ import annotations

from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.neighbours.balls import Memberships, memberships_by_radius
from sfumato.evaluation.neighbours.nearest import Neighbours, nearest_in, nearest_others
from sfumato.evaluation.statistics import Float64Array


def own_neighbours(features: FeatureSet, options: MetricOptions) -> Neighbours:
    """The k nearest other vectors of the same set, or more. Raises ValueError for k samples or fewer."""
    return _own_neighbours(features, options, options.k)


def squared_radius_N(features: FeatureSet, options: MetricOptions, k: int | None = None) -> Float64Array:
    """Squared radii of the balls that make up the set's manifold; `k`: another than the options'."""
    wanted = k or options.k
    return _own_neighbours(features, options, wanted).squared_Nk[:, wanted - 1]


def _own_neighbours(features: FeatureSet, options: MetricOptions, k: int) -> Neighbours:
    """At least k; as many as density asks for, if the set has so many."""
    found = max(k, min(options.density_k, len(features) - 1))
    return features.derived(
        ("own neighbours", found),
        lambda: nearest_others(features.embedding_ND, found, spread=options.spread),
    )


def nearest_reference(reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> Neighbours:
    """The nearest vector of the reference [M, 1] to each generated one."""
    return generated.derived(
        ("nearest in", reference),
        lambda: nearest_in(generated.embedding_ND, reference.embedding_ND, spread=options.spread),
    )


def mutual(
    reference: FeatureSet, generated: FeatureSet, options: MetricOptions, k: int | None = None
) -> Memberships:
    """Which generated vectors (b) lie in the reference's (a) balls, and vice versa; `k`: another than the
    options' for the reference's balls."""
    wanted = k or options.k
    every_k = sorted({wanted, *(other for other in (options.k, options.density_k) if other < len(reference))})
    found = generated.derived(
        ("mutual", reference, options.k, *every_k),
        lambda: memberships_by_radius(
            reference.embedding_ND,
            generated.embedding_ND,
            [squared_radius_N(reference, options, each) for each in every_k],
            squared_radius_N(generated, options),
            spread=options.spread,
        ),
    )
    return found[every_k.index(wanted)]
