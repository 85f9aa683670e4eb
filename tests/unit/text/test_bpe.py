"""A tokenizer is a function of the captions: merges against counts by hand, any text written and read."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest

from sfumato.errors import ConfigError
from sfumato.text import bpe

TEXTS = ["low low low low low", "lower lower " + "newest " * 6, "widest widest widest"]


def merges_by_hand(texts: list[str], number: int) -> list[tuple[str, str]]:
    """Algorithm 1 of Sennrich et al. 2016, on words that begin with the mark of a space."""
    words = Counter(tuple(f"Ġ{word}") for text in texts for word in text.split())
    found = []
    for _ in range(number):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                pairs[pair] += count
        most = max(pairs.values())
        best = [pair for pair, count in pairs.items() if count == most]
        if most < bpe.SEEN or len(best) > 1:  # ties are the library's to break
            return found
        found.append(best[0])
        merged: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            out, at = [], 0
            while at < len(word):
                joins = word[at : at + 2] == best[0]
                out.append("".join(best[0]) if joins else word[at])
                at += 2 if joins else 1
            merged[tuple(out)] += count
        words = merged
    return found


def test_merges_are_the_most_frequent_pairs() -> None:
    """Of words whose pairs never occur equally often."""
    texts = ["a " * 50, "bc " * 20 + "dbc " * 5 + "d " * 3]
    expected = [("Ġ", "a"), ("b", "c"), ("Ġ", "bc"), ("Ġ", "d"), ("Ġd", "bc")]
    assert merges_by_hand(texts, 5) == expected
    assert [tuple(line.split(" ")) for line in bpe.learn(texts, 400).split("\n")] == expected


def test_learning_does_not_depend_on_the_order_of_captions() -> None:
    shuffled = random.Random(1).sample(TEXTS * 3, 9)
    assert bpe.learn(TEXTS * 3, 290) == bpe.learn(shuffled, 290)


def test_no_more_tokens_than_asked_for() -> None:
    merges = bpe.learn(TEXTS, bpe.BASE + 5)
    assert len(merges.split("\n")) == 5
    assert bpe.tokenizer_of(merges).get_vocab_size() == bpe.BASE + 5


@pytest.mark.parametrize("text", ["", "a cube", "Ein Würfel 立方体 🟥", "<|endoftext|>", "a  b\n c"])
def test_any_text_can_be_written(text: str) -> None:
    tokenizer = bpe.tokenizer_of(bpe.learn(TEXTS, 290))
    ids = bpe.tokens(tokenizer, [text], 64).ids[0].tolist()
    assert ids[0] == bpe.START_ID
    end = ids.index(bpe.END_ID)
    assert set(ids[end:]) == {bpe.END_ID}
    assert tokenizer.decode(ids[1:end]).strip() == " ".join(text.lower().split())


def test_long_texts_are_cut_and_short_ones_padded() -> None:
    tokenizer = bpe.tokenizer_of("")
    found = bpe.tokens(tokenizer, ["abcdefgh", "a", ""], 6)
    assert found.ids.shape == (3, 6)
    assert found.ids[0, -1] == bpe.END_ID, "a cut text has an end"
    assert found.mask.tolist() == [[True] * 6, [True] * 4 + [False] * 2, [True] * 2 + [False] * 4]
    assert bpe.lengths(tokenizer, ["abcdefgh", "a", ""]) == [11, 4, 2]


@pytest.mark.parametrize("merges", ["a", "a b c", "ab c", "a\tb"])
def test_other_content_is_refused(merges: str) -> None:
    with pytest.raises(ConfigError, match="line 1 does not join two known tokens"):
        bpe.tokenizer_of(merges)
