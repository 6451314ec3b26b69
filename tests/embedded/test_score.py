"""The judge's eye: right on true drawings, and not blind to faults."""

import numpy as np
import pytest

from scripts.embedded.draw import Plan, Thing, draw
from scripts.embedded.score import ASPECTS, Table, cases, score, self_check, true_drawing
from scripts.embedded.shapes import SHAPES

CIRCLE = Plan("one", "white", (Thing("circle", "red", 0.5, 0.5, 0.28),))


@pytest.fixture(scope="module")
def checked() -> Table:
    """Scores of true drawings at the default size."""
    return self_check(360)


def test_every_aspect_is_right_on_true_drawings(checked: Table) -> None:
    """Each aspect the eye scores is right on at least 95 % of true drawings."""
    shares = checked.shares()
    assert set(ASPECTS) <= set(shares)
    assert all(share >= 0.95 for share in shares.values()), shares


def test_every_shape_is_recognised(checked: Table) -> None:
    """Each shape is named right on at least 95 % of true drawings."""
    shares = checked.shape_shares()
    assert set(shares) == set(SHAPES)
    assert all(share >= 0.95 for share in shares.values()), checked.confusion()


@pytest.mark.parametrize(("width", "height"), [(192, 128), (128, 192), (64, 64)])
def test_other_sizes(width: int, height: int) -> None:
    """The eye is as good at other sizes."""
    shares = self_check(72, width, height).shares()
    assert all(share >= 0.95 for share in shares.values()), shares


@pytest.mark.parametrize(("width", "height"), [(128, 128), (96, 256)])
def test_numbers_in_relations(width: int, height: int) -> None:
    """Rows of objects in a relation are judged: each number, colour, shape, and the relation."""
    shares = self_check(72, width, height, ("group",)).shares()
    assert set(shares) == {"background", "colour", "shape", "count", "relation", "everything"}
    assert all(share >= 0.95 for share in shares.values()), shares


def test_a_wrong_number_in_a_relation_is_seen() -> None:
    """One star above a house is wrong if two were wanted."""
    star, house = Thing("star", "blue", 0.25, 0.25, 0.17), Thing("house", "red", 0.5, 0.75, 0.17)
    two = (star, Thing("star", "blue", 0.75, 0.25, 0.17), house)
    wanted = Plan("group", "white", two, relation="above")
    verdicts = score(true_drawing(Plan("group", "white", (star, house)), 0), wanted).verdicts
    assert verdicts["count"] == [False, True]


@pytest.mark.parametrize(
    ("wrong", "aspect"),
    [
        (Plan("one", "blue", CIRCLE.things), "background"),
        (Plan("one", "white", (Thing("circle", "green", 0.5, 0.5, 0.28),)), "colour"),
        (Plan("one", "white", (Thing("star", "red", 0.5, 0.5, 0.28),)), "shape"),
        (Plan("one", "white", ()), "count"),
    ],
)
def test_faults_are_seen(wrong: Plan, aspect: str) -> None:
    """A picture of something else is marked wrong in what differs."""
    verdicts = score(true_drawing(wrong, 0), CIRCLE).verdicts
    assert not all(verdicts[aspect])


def test_wrong_place_and_relation_are_seen() -> None:
    """A thing elsewhere, or two things swapped, are marked wrong."""
    left = Plan("place", "white", (Thing("cat", "red", 0.25, 0.5, 0.17),), place="left")
    moved = Plan("place", "white", (Thing("cat", "red", 0.75, 0.5, 0.17),), place="left")
    assert score(true_drawing(moved, 0), left).verdicts["place"] == [False]
    things = (Thing("cat", "red", 0.25, 0.5, 0.17), Thing("dog", "blue", 0.75, 0.5, 0.17))
    swapped = Plan("relation", "white", things, relation="right")
    assert score(true_drawing(swapped, 0), swapped).verdicts["relation"] == [False]


def test_noise_is_not_taken_for_anything() -> None:
    """Noise and an empty picture score badly without an error."""
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    for case in cases(12):
        assert not score(noise, case.plan).perfect
        assert not score(np.zeros_like(noise), case.plan).perfect


def test_prompts_are_not_training_captions() -> None:
    """The judge's prompts are in wordings of their own."""
    captions = {draw(seed, 16, 16).caption for seed in range(5000)}
    assert not captions & {case.prompt for case in cases(300)}
