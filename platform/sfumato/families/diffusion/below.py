"""The model below in a cascade: it draws the small picture that a super-resolution model enlarges.

Ho et al. 2022 ("Cascaded Diffusion Models", sec. 2.3) and Saharia et al. 2022 (Imagen, sec. 2.4): each model
of the cascade is trained for itself, and sampling runs through all of them with one text or class. The one
below may itself be such a model, so that cascades have any number of stages.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import NEGATIVE, Condition, Conditions
from sfumato.core.family import Family, FamilyConfig, Frozen, Nets, SampleRequest
from sfumato.core.pretrained import Pretrained, built_as, card_config
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng
from sfumato.core.state import HasState
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.families.diffusion.adapters import Lower

FIELD = "model.adapter.below"
BRANCH = "below"
"""Of the noise, and in the names of its networks."""


@dataclass(frozen=True, slots=True)
class Below:
    """The model, ready to be built, and its frozen networks by their names in the family above."""

    config: FamilyConfig
    data: DataSpec
    family: Family
    frozen: Mapping[str, Frozen]

    @classmethod
    def open(cls, reference: Pretrained) -> Below:
        """Raises ConfigError if it has not been looked up."""
        opened, card = reference.open(config_class), reference.model
        assert card is not None, "opened"
        config = card_config(card, config_class, f"{FIELD}.model.config", trust=reference.trust)
        frozen = {}
        for name in opened.family.samplers:
            weights = reference.model_copy(update={"network": name}).weights()
            spec = built_as(opened.family, name)
            dtype = spec.dtype if isinstance(spec, Frozen) else None
            frozen[f"{BRANCH}_{name}"] = Frozen(build=spec.build, weights=weights, dtype=dtype)
        return cls(config, opened.data, opened.family, frozen)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What steers it."""
        return self.config.conditions(self.data)

    def draw(self, nets: Nets, conditions: Conditions, rows: int, rng: SampleRng) -> Tensor:
        """Its images by its own options, [N, C, h, w] in [-1, 1].

        `conditions` are those of the model above, of which it gets its own.
        """
        names = {condition.name for condition in self.conditions}
        names |= {NEGATIVE + condition.name for condition in self.conditions if condition.negative}
        own = {name: value for name, value in conditions.items() if name in names}
        if getattr(self.config.sampling, "guidance", None) == 1:
            own = {name: value for name, value in own.items() if not name.startswith(NEGATIVE)}
        request = SampleRequest(num=rows, options=self.config.sampling, conditions=own)
        inner = {name: nets[f"{BRANCH}_{name}"] for name in self.family.samplers}
        return self.family.sample(inner, request, Progress.at(0), rng.branch(BRANCH))


def below_problems(lower: Lower, taken: Sequence[Condition], data: DataSpec) -> Iterator[str]:
    """Reasons why it cannot draw for a model that takes these conditions; none before it is looked up."""
    reference, factor = lower.reference, lower.factor
    if reference.source[0] != "run":
        yield f"{FIELD}: got a {reference.source[0]}; name a trained run in {FIELD}.run"
        return
    if reference.model is None:
        return
    named = f"{FIELD}.run: {reference.source[1]!r}"
    try:
        below = Below.open(reference)
    except ConfigError as error:
        yield from error.problems
        return
    wanted = (data.channels, data.height // factor, data.width // factor)
    if below.data.shape != wanted:
        theirs, ours = ("x".join(map(str, shape)) for shape in (below.data.shape, wanted))
        yield f"{named} draws pictures of {theirs}; factor={factor} enlarges those of {ours}"
    if isinstance(below.family, HasState):
        yield f"{named} keeps values beside its weights, which a cascade has no place for; name another model"
    names = {condition.name for condition in taken}
    for condition in below.conditions:
        if condition.name not in names and condition.required:
            yield f"{named} needs {condition.name}, which this model does not take"
