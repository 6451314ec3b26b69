"""Prompts as the runtime sees them, checked against token ids taken from its own log."""

import numpy as np
import pytest

from scripts.embedded import text
from scripts.embedded.draw import draw


@pytest.fixture(scope="module")
def vocabulary() -> text.Vocabulary:
    """The vocabulary in use."""
    return text.Vocabulary.load()


def test_known_token_ids(vocabulary: text.Vocabulary) -> None:
    """A prompt becomes the ids the runtime's tokeniser makes of it, between ":" and the tail."""
    rows = vocabulary.rows("a red circle on a blue background")
    ids = [vocabulary.tokens[row] for row in rows]
    assert ids == [25, 264, 2518, 12671, 389, 264, 6303, 4004, *text.TAIL_IDS]


def test_empty_prompt_is_a_space(vocabulary: text.Vocabulary) -> None:
    """The empty prompt is one token, the space before it."""
    ids = [vocabulary.tokens[row] for row in vocabulary.rows("")]
    assert ids == [25, 220, *text.TAIL_IDS]


def test_every_caption_word_is_known(vocabulary: text.Vocabulary) -> None:
    """No caption has a word without a row, in any capitals."""
    for seed in range(4000):
        caption = draw(seed, 16, 16).caption
        assert vocabulary.unknown_row not in vocabulary.rows(caption), caption


def test_unknown_words_share_a_row(vocabulary: text.Vocabulary) -> None:
    """A word nobody foresaw becomes the unknown token."""
    assert vocabulary.unknown_row in vocabulary.rows("a red xylophonist")


def test_rows_keep_their_order(vocabulary: text.Vocabulary) -> None:
    """Rows are unique, and the first ones are those the first weights were trained with."""
    assert len(set(vocabulary.tokens)) == len(vocabulary.tokens)
    assert vocabulary.tokens[:6] == (11, 13, 17, 18, 19, 25)
    assert vocabulary.tokens[209] == 151668


def test_native_padding(vocabulary: text.Vocabulary) -> None:
    """Without a sample, all 256 positions are there, in order, and nothing is weighted."""
    batch = text.batch([vocabulary.rows("a cat"), vocabulary.rows("")], vocabulary.pad_row())
    assert batch.ids.shape == (2, 256)
    assert np.array_equal(batch.positions[0], np.arange(256))
    assert not batch.pad_bias.any()


def test_sampled_padding(vocabulary: text.Vocabulary) -> None:
    """A sample of the padding keeps true places and together weighs as much as all of it."""
    row = vocabulary.rows("a cat")
    batch = text.batch([row], vocabulary.pad_row(), 36, np.random.default_rng(0))
    pads = batch.positions[0, len(row) :]
    assert (np.diff(batch.positions[0]) > 0).all()
    assert pads.min() >= len(row)
    assert pads.max() < 256
    weight = np.exp(batch.pad_bias[0, len(row) :]).sum()
    assert weight == pytest.approx(256 - len(row), rel=1e-4)
