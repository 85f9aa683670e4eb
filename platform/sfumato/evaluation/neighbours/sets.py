"""Neighbours of feature sets, computed once however many metrics ask for them."""

from __future__ import annotations

from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.neighbours.balls import Memberships, memberships
from sfumato.evaluation.neighbours.nearest import Neighbours, nearest_in, nearest_others
from sfumato.evaluation.statistics import Float64Array


def own_neighbours(features: FeatureSet, options: MetricOptions) -> Neighbours:
    """The k nearest other vectors of the same set. Raises ValueError for k samples or fewer."""
    return features.derived(
        ("own neighbours", options.k),
        lambda: nearest_others(features.embedding_ND, options.k, spread=options.spread),
    )


def squared_radius_N(features: FeatureSet, options: MetricOptions) -> Float64Array:
    """Squared radii of the balls that make up the set's manifold."""
    return own_neighbours(features, options).squared_Nk[:, -1]


def nearest_reference(reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> Neighbours:
    """The nearest vector of the reference [M, 1] to each generated one."""
    return generated.derived(
        ("nearest in", reference),
        lambda: nearest_in(generated.embedding_ND, reference.embedding_ND, spread=options.spread),
    )


def mutual(reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> Memberships:
    """Which generated vectors (b) lie in the reference's (a) balls, and vice versa."""
    return generated.derived(
        ("mutual", reference, options.k),
        lambda: memberships(
            reference.embedding_ND,
            generated.embedding_ND,
            squared_radius_N(reference, options),
            squared_radius_N(generated, options),
            spread=options.spread,
        ),
    )
