"""Curricula: turns that change from stage to stage, against a list that is stepped through."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import ImageInfo
from sfumato.data.order import pools as pools_module
from sfumato.data.order.curriculum import NEVER, Stage, StagedTurns
from sfumato.data.order.global_batches import Deal
from sfumato.data.order.pools import Pool, stages_of
from sfumato.errors import ConfigError

STAGES = (Stage(30, (0, 2)), Stage(7, (1,)), Stage(1, (2, 1, 0)))
WEIGHTS = (1.0, 1.0, 2.0)
IMAGE = ImageInfo(height=8, width=8, channels=1)


def test_turns_of_stages_agree_with_stepping_through_them() -> None:
    turns = StagedTurns(STAGES, WEIGHTS, seed=4)
    everyone = turns.between(0, 3_000)
    assert set(everyone[:30]) == {0, 2}
    assert set(everyone[30:37]) == {1}
    assert set(everyone[37:]) == {0, 1, 2}
    for start, stop in ((0, 1), (25, 36), (29, 38), (36, 1_500)):
        np.testing.assert_array_equal(turns.between(start, stop), everyone[start:stop])
    served: Counter[int] = Counter()
    for turn, competitor in enumerate(everyone.tolist()):
        if turn in (0, 29, 30, 36, 37, 2_999):
            assert turns.before(turn).tolist() == [served[number] for number in range(3)]
        assert turns.turn_of(competitor, served[competitor]) == turn
        served[competitor] += 1


def test_a_competitor_of_an_early_stage_alone_is_never_served_again() -> None:
    turns = StagedTurns((Stage(5, (0,)), Stage(1, (1,))), (1.0, 1.0), seed=0)
    assert [turns.turn_of(0, number) for number in (0, 4, 5)] == [0, 4, NEVER]
    assert turns.turn_of(1, 0) == 5


def class_pools(classes: int, samples: int) -> list[Pool]:
    return [Pool("x", IMAGE, classes, (), (samples,), 1 / classes, label) for label in range(classes)]


def settings(*stages: tuple[list[int], int], **fields: object) -> DataSettings:
    curriculum = [{"classes": classes, "images": images} for classes, images in stages]
    return DataSettings.model_validate(
        {"path": "x", "streams": 2, "balance": "class", "curriculum": curriculum, **fields}
    )


def test_batches_hold_the_classes_of_their_stage_and_blocks_come_in_the_order_of_need() -> None:
    """Every row of every batch finds its sample in the blocks, also where reading starts in a later stage."""
    chosen, parts, rows = settings(([0], 9), ([1, 2], 8), ([0], 1)), class_pools(3, 6), 2
    deal = Deal(1, parts, 2, 4, rows, None, stages_of(chosen, parts, batch=4))
    seen = [{int(pool) for stream in (0, 1) for pool in deal.pools_of_rows(at, stream)} for at in range(9)]
    assert seen[:3] == [{0}] * 3, "9 images are rounded up to 3 batches of 4"
    assert seen[3] | seen[4] == {1, 2}
    assert seen[5:] == [{0}] * 4

    def samples(start: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """(stream, pool) to the samples in the order in which they are delivered, of the first 40 blocks."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for block in islice(deal.blocks((0, 1), start), 40):
            order = block.permutation()[block.skip :]
            places = [part.first + at for part in block.ranges for at in range(part.count)]
            drawn = [(block.epoch, places[int(at)]) for at in order]
            found.setdefault((block.stream, block.pool), []).extend(drawn)
        return found

    whole, later = samples(0), samples(4)
    for lane, taken in later.items():
        passed = sum(
            int(pool) == lane[1] for batch in range(4) for pool in deal.pools_of_rows(batch, lane[0])
        )
        common = min(len(whole[lane]) - passed, len(taken))
        assert common > 0
        assert whole[lane][passed : passed + common] == taken[:common]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (settings(([0, 1], 8)), "no stage has class 2 (c); add it to a stage"),
        (settings(([0, 1, 2, 7], 8)), "7 is not a class; the data has 0 to 2"),
        (settings(([0, 1, 2], 8), balance="none"), "set data.balance=class"),
    ],
)
def test_curricula_that_do_not_fit_are_refused(chosen: DataSettings, said: str) -> None:
    class Named:
        classes = ("a", "b", "c")

    with pytest.raises(ConfigError) as error:
        pools_module._check_curriculum(chosen, Named(), class_pools(3, 6))  # type: ignore[arg-type]
    assert said in str(error.value)
    assert str(error.value).startswith("data.curriculum: ")
