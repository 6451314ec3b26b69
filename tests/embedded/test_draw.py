"""The training pictures: deterministic, of every size, captioned in words the model knows."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scripts.embedded.draw import (
    COLOURS,
    KINDS,
    PLACES,
    Picture,
    Plan,
    Thing,
    caption_words,
    draw,
    render,
)
from scripts.embedded.shapes import NATURAL, PALETTE, SHAPES
from scripts.embedded.wording import COLOUR_WORDS, names
from sdstream.weights import embedded
from sdstream.weights.embedded import vocabularies

SIZES = [(64, 64), (96, 96), (128, 128), (192, 128), (128, 192), (256, 256), (256, 64), (80, 176)]


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """A sample of small pictures."""
    return [draw(seed, 64, 64) for seed in range(3000)]


def test_same_seed_same_picture() -> None:
    """A seed and a size always give the same pixels and the same caption."""
    for seed in range(40):
        first, second = draw(seed), draw(seed)
        assert np.array_equal(first.pixels, second.pixels)
        assert (first.caption, first.plan) == (second.caption, second.plan)


def test_seeds_differ() -> None:
    """Different seeds give different pictures."""
    assert len({draw(seed, 32, 32).pixels.tobytes() for seed in range(200)}) > 190


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sizes(width: int, height: int) -> None:
    """Pictures are drawn at any size, wide and tall, as uint8 [height, width, 3]."""
    for seed in range(20):
        pixels = draw(seed, width, height).pixels
        assert pixels.shape == (height, width, 3)
        assert pixels.dtype == np.uint8


def test_size_does_not_change_the_subject() -> None:
    """The caption and the kind of picture follow from the seed alone for plain objects."""
    for seed in range(100):
        small, large = draw(seed, 64, 64), draw(seed, 256, 256)
        if small.plan.things and small.plan.kind != "portrait":
            assert small.caption == large.caption
            assert small.plan == large.plan


def test_every_kind_is_drawn(pictures: list[Picture]) -> None:
    """Each kind of picture comes about as often as its weight says."""
    counts = Counter(picture.plan.kind for picture in pictures)
    total = sum(KINDS.values())
    for kind, weight in KINDS.items():
        share = counts[kind] / len(pictures)
        assert share == pytest.approx(weight / total, abs=0.04)


def test_every_class_is_drawn(pictures: list[Picture]) -> None:
    """All shapes, colours, places, numbers and relations occur."""
    plans = [picture.plan for picture in pictures]
    things = [thing for plan in plans for thing in plan.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {plan.place for plan in plans} == {None, *PLACES}
    assert {len(plan.things) for plan in plans if plan.kind == "count"} == {2, 3, 4}
    groups = [Counter(t.colour for t in plan.things) for plan in plans if plan.kind == "group"]
    assert {n for group in groups for n in group.values()} == {1, 2, 3}
    relations = {plan.relation for plan in plans} - {None}
    assert relations == {"left", "right", "above", "below", "beside", "inside"}
    views = [plan.view for plan in plans if plan.view]
    assert {view.time for view in views} == {"day", "sunset", "night"}
    assert {view.extra for view in views} == {None, "boat", "house", "tree", "cactus"}


def test_objects_stand_off_their_background(pictures: list[Picture]) -> None:
    """No object has the colour of the background it stands on."""
    for picture in pictures:
        plan = picture.plan
        if plan.kind != "portrait":
            assert all(thing.colour != plan.background for thing in plan.things)


def test_captions_vary(pictures: list[Picture]) -> None:
    """Captions come in many wordings: empty, bare, long, capitalised, with a full stop."""
    captions = [picture.caption for picture in pictures]
    assert 0.05 < captions.count("") / len(captions) < 0.11
    assert len(set(captions)) > 0.7 * len(captions)
    assert any(caption in SHAPES for caption in captions)
    assert any(caption[:1].isupper() for caption in captions)
    assert any(caption.endswith(".") for caption in captions)
    assert any("please" in caption for caption in captions)


def test_parts_are_left_out(pictures: list[Picture]) -> None:
    """Colour and background are often not named; the colour is then a natural one."""
    names = {word for words in COLOUR_WORDS.values() for word in words}.union(COLOURS)
    unnamed = [
        picture
        for picture in pictures
        if picture.plan.kind == "one"
        and picture.caption
        and not any(word in picture.caption.lower() for word in names)
    ]
    assert len(unnamed) > 20
    apples = [p.plan.things[0] for p in unnamed if p.plan.things[0].shape == "apple"]
    assert {apple.colour for apple in apples} <= set(NATURAL["apple"])


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("cat",), "one"),
        (("three", "cats"), "count"),
        (("an", "apple"), "one"),
        (("sunset", "mountains"), "scene"),
        (("golden", "retriever", "scarf", "autumn"), "portrait"),
    ],
)
def test_example_prompts_have_pictures(words: tuple[str, ...], kind: str) -> None:
    """The example prompts of the systems we stand beside have fitting training pictures."""
    found = (draw(seed, 16, 16) for seed in range(30_000))
    assert any(
        picture.plan.kind == kind and set(words) <= set(picture.caption.lower().split())
        for picture in found
    )


def test_render_draws_the_plan() -> None:
    """A given plan is drawn with its colours where it says."""
    plan = Plan("one", "blue", (Thing("circle", "red", 0.25, 0.5, 0.15),))
    pixels = render(plan, 3, 128, 64).astype(int)
    assert np.abs(pixels[32, 32] - PALETTE["red"]).max() < 12
    assert np.abs(pixels[2, 120] - PALETTE["blue"]).max() < 12


def test_the_words_of_the_captions_are_those_of_the_card() -> None:
    """The service warns of words in prompts that the built-in model was never shown."""
    (known,) = vocabularies().values()
    assert sorted(known.words) == caption_words()
    assert known.unknown("three yellow stars next to a house") == []


def test_the_names_of_objects_are_those_of_the_card() -> None:
    """The service warns of numbers in prompts with several objects, which it knows by name."""
    (known,) = vocabularies().values()
    file = Path(embedded.__file__).with_name("drawings.json")
    card = json.loads(file.read_text())
    assert card["names"] == {name: shape for shape in SHAPES for name in names(shape)}
    assert set(card["names"]) <= set(known.words)
    knows_groups = card["group_scores"]["shares"]["everything"] >= 0.9
    assert (known.names, known.knows_groups) == (card["names"], knows_groups)


def test_captions_are_not_warned_of(pictures: list[Picture]) -> None:
    """The service warns of no prompt like those of the training, except of those with groups."""
    (known,) = vocabularies().values()
    told = [text for picture in pictures for text in known.warnings("embedded", picture.caption)]
    assert [text for text in told if "together with several things" not in text] == []
    alone = [picture.caption for picture in pictures if len(picture.plan.things) < 2]
    assert [caption for caption in alone if known.warnings("embedded", caption)] == []


@pytest.mark.parametrize(
    "prompt",
    ["many yellow stars", "both hearts", "no cats, a dog", "a house with no trees", "many fish",
     "red hearts", "two red apples next to a green apple", "two red circles and a red circle"],
)  # fmt: skip
def test_quantities_without_pictures_are_warned_of(prompt: str) -> None:
    """The service warns of quantities and negations that no caption contains in this way."""
    (known,) = vocabularies().values()
    assert known.warnings("embedded", prompt)
