"""Prompts with known answers, and a judge of whether an image shows what its prompt asks for.

The judge does not use the model. It finds the background's colour along the border, the pixels that
differ from it, and the connected pieces of these with their colours, outlines and places.
`self_check` scores correct drawings; if the judge errs on those, its scores of a model are useless.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from scripts.embedded import wording
from scripts.embedded.draw import (
    CELL_RADIUS,
    COLOURS,
    LAYOUTS,
    PLACES,
    RADIUS,
    RELATED,
    Plan,
    Thing,
    render,
    rows_of,
)
from scripts.embedded.shapes import PALETTE, ROOMY, SHAPES

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

ASPECTS: tuple[str, ...] = ("background", "colour", "shape", "count", "place", "relation")

DIFFERENT = 45
"""Minimum distance of an object's pixels from the background, in the channel that differs most;
0..255."""
OUTLINE = 32
"""Outlines are compared as squares of this many cells each way."""
NEAR = 0.13
"""Maximum distance of an object's centre from its named place, as a share of the sides."""

_PALETTE = np.array([PALETTE[name] for name in COLOURS], np.float32)


# --- prompts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A prompt, in a wording that no training caption uses, and the plan that it asks for."""

    prompt: str
    plan: Plan


WORDINGS: dict[str, tuple[str, ...]] = {
    "one": (
        "a picture with {first}, background in {bg}",
        "this is {first} and the background is {bg}",
        "i want to see {first}, background: {bg}",
        "{bg} background and {first}",
    ),
    "place": (
        "put {first} {where}, {bg} background",
        "{where} there is {first}, background in {bg}",
        "{first} that is {where}, with the background being {bg}",
    ),
    "count": (
        "there are {first} on the {bg} background",
        "a group of {first} and the background is {bg}",
        "we see {first}, background: {bg}",
    ),
    "group": (
        "{first} placed {how} {second}, background in {bg}",
        "we see {first} {how} {second}, {bg} background",
    ),
    "relation": (
        "{first} placed {how} {second}, background in {bg}",
        "there is {first} {how} {second} and the background is {bg}",
        "we see {first} {how} {second}, {bg} background",
    ),
}
HOW: dict[str, str] = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
    "inside": "inside",
}

HIDES: dict[str, str] = {"tree": "brown", "flower": "green"}
"""Shape -> the colour that would hide a part of it (trunk, stem)."""


KINDS: tuple[str, ...] = ("one", "count", "place", "relation", "one", "count")
"""Kinds of cases, in the order in which they repeat."""


def cases(count: int, seed: int = 0, kinds: tuple[str, ...] = KINDS) -> list[Case]:
    """Return prompts that cycle through the kinds and all shapes, with random colours."""
    rng = Random(seed)
    return [_case(rng, kinds[k % len(kinds)], SHAPES[k % len(SHAPES)]) for k in range(count)]


def _case(rng: Random, kind: str, shape: str) -> Case:
    hidden = HIDES.get(shape)
    colour, other, background = rng.sample([c for c in COLOURS if c != hidden], 3)
    text = rng.choice(WORDINGS[kind])
    words = {"bg": background, "first": wording.article(f"{colour} {shape}")}
    if kind == "one":
        plan = Plan(kind, background, _things((shape,), (colour,), ("center",), RADIUS[""]))
    elif kind == "place":
        place = rng.choice([p for p in PLACES if p != "center"])
        plan = Plan(kind, background, _things((shape,), (colour,), (place,)), place=place)
        words["where"] = ("on the " if place in ("left", "right") else "in the ") + place
    elif kind == "count":
        number = rng.choice((2, 3, 4))
        plan = Plan(
            kind,
            background,
            _things((shape,) * number, (colour,) * number, LAYOUTS[number][0]),
        )
        words["first"] = _counted(number, colour, shape)
    elif kind == "group":
        plan, numbers = _grouped(rng, shape, colour, other, background)
        outer = plan.things[-1].shape
        words |= {
            "first": _counted(numbers[0], colour, shape),
            "second": _counted(numbers[1], other, outer),
            "how": HOW[plan.relation or ""],
        }
    else:
        plan, second = _related(rng, shape, colour, other, background)
        words |= {"second": second, "how": HOW[plan.relation or ""]}
    return Case(text.format(**words), plan)


def _counted(number: int, colour: str, shape: str) -> str:
    if number == 1:
        return wording.article(f"{colour} {shape}")
    return f"{('two', 'three', 'four')[number - 2]} {colour} {wording.plural(shape)}"


def _grouped(
    rng: Random, shape: str, colour: str, other: str, background: str
) -> tuple[Plan, tuple[int, int]]:
    """Return a plan of two rows of objects, which has `shape` first, and their numbers."""
    relation = rng.choice([name for name in HOW if name != "inside"])
    numbers = rng.choice(((2, 1), (1, 2), (2, 2), (3, 1), (1, 3)))
    outer = rng.choice([s for s in SHAPES if s != shape and HIDES.get(s) != background])
    things = rows_of(relation, (shape, outer), (colour, other), numbers)
    return Plan("group", background, things, relation=relation), numbers


def _things(
    shapes: Iterable[str],
    colours: Iterable[str],
    places: Iterable[str],
    radius: float = CELL_RADIUS,
) -> tuple[Thing, ...]:
    return tuple(
        Thing(shape, colour, *PLACES[place], radius)
        for shape, colour, place in zip(shapes, colours, places, strict=True)
    )


def _related(rng: Random, shape: str, colour: str, other: str, background: str) -> tuple[Plan, str]:
    """Return a plan of two objects, which has `shape` first, and the words for the second one."""
    relation = rng.choice(list(HOW))
    things: tuple[Thing, ...]
    if relation == "inside":
        outer = rng.choice([s for s in ROOMY if s != shape])
        things = (
            Thing(shape, colour, 0.5, 0.5, 0.16),
            Thing(outer, other, 0.5, 0.5, RADIUS["big"]),
        )
    else:
        outer = rng.choice([s for s in SHAPES if s != shape and HIDES.get(s) != background])
        things = _things((shape, outer), (colour, other), RELATED[relation])
    plan = Plan("relation", background, things, relation=relation)
    return plan, wording.article(f"{other} {outer}")


def true_drawing(plan: Plan, seed: int, width: int = 128, height: int = 128) -> Pixels:
    """Draw the image that a case asks for."""
    # The outer one of two nested objects is listed last and painted first.
    things = tuple(reversed(plan.things)) if plan.relation == "inside" else plan.things
    return render(Plan(plan.kind, plan.background, things), seed, width, height)


# --- the judge -----------------------------------------------------------------------------------


@dataclass
class Score:
    """The verdicts on an image: one or more for each aspect that its prompt asks for."""

    verdicts: dict[str, list[bool]] = field(default_factory=lambda: defaultdict(list))
    shapes: list[tuple[str, str]] = field(default_factory=list)
    """(wanted, seen) for every shape."""

    def add_shape(self, wanted: str, seen: str) -> None:
        """Add a wanted shape and the shape that was seen."""
        self.verdicts["shape"].append(wanted == seen)
        self.shapes.append((wanted, seen))

    @property
    def perfect(self) -> bool:
        """True if all verdicts are right."""
        return all(all(verdicts) for verdicts in self.verdicts.values())


@dataclass(frozen=True)
class Piece:
    """An object that was seen: its pixels and its main colour."""

    mask: Mask
    colour: str

    @property
    def centre(self) -> tuple[float, float]:
        """Centre of its bounding box as shares of the width and the height."""
        rows, columns = np.nonzero(self.mask)
        height, width = self.mask.shape
        return (columns.min() + columns.max() + 1) / 2 / width, (
            rows.min() + rows.max() + 1
        ) / 2 / height


def nearest_colours(pixels: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the palette index nearest to each pixel [..., 3]."""
    distances = np.square(pixels[..., None, :] - _PALETTE).sum(-1)
    return np.argmin(distances, axis=-1)


def main_colour(pixels: NDArray[np.float32]) -> str:
    """Return the palette colour that is the nearest one of most of the pixels [N, 3]."""
    return COLOURS[int(np.bincount(nearest_colours(pixels), minlength=len(COLOURS)).argmax())]


def border(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the pixels along the edges, [N, 3]."""
    edges = (pixels[:4], pixels[-4:], pixels[:, :4], pixels[:, -4:])
    return np.concatenate([edge.reshape(-1, 3) for edge in edges])


def connected(mask: Mask) -> list[Mask]:
    """Return the 8-connected pieces of a mask, largest first."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found: list[Mask] = []
    while left:
        stack, piece = [left.pop()], np.zeros_like(mask)
        while stack:
            y, x = stack.pop()
            piece[y, x] = True
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            stack.extend(around)
        found.append(piece)
    return sorted(found, key=lambda piece: -int(piece.sum()))


def shrink(mask: Mask, by: int = 2) -> Mask:
    """Return the mask without a rim of `by` pixels, whose colours are mixed."""
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.MinFilter(2 * by + 1))).astype(bool)


def find_pieces(pixels: NDArray[np.float32], mask: Mask) -> list[Piece]:
    """Return the objects in a mask: its large pieces, each with the small ones nearest to it."""
    parts = connected(mask)
    if not parts:
        return []
    least = max(0.003 * mask.size, 0.25 * parts[0].sum())
    large = [part for part in parts if part.sum() >= least]
    crumbs = [part for part in parts if 8 <= part.sum() < least]
    if not large:
        return []
    centres = np.array([np.argwhere(part).mean(0) for part in large])
    for crumb in crumbs:
        distance = np.square(centres - np.argwhere(crumb).mean(0)).sum(1)
        large[int(distance.argmin())] |= crumb
    return [Piece(part, main_colour(pixels[part])) for part in large]


def outline(mask: Mask) -> NDArray[np.float32]:
    """Return a mask's bounding box as a square of OUTLINE cells, with its proportions kept."""
    rows, columns = np.nonzero(mask)
    box = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    side = max(box.shape)
    square = np.zeros((side, side), np.uint8)
    top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[top : top + box.shape[0], left : left + box.shape[1]] = box * 255
    small = Image.fromarray(square).resize((OUTLINE, OUTLINE), Image.Resampling.BOX)
    return np.asarray(small).astype(np.float32) / np.float32(255)


def _outlines() -> dict[str, NDArray[np.float32]]:
    """Return every shape's outline, taken from a drawing of it."""
    found = {}
    for shape in SHAPES:
        thing = Thing(shape, "blue", 0.5, 0.5, 0.35)
        pixels = render(Plan("one", "white", (thing,)), 0, 256, 256).astype(np.float32)
        found[shape] = outline(np.abs(pixels - pixels[0, 0]).max(-1) > DIFFERENT)
    return found


OUTLINES = _outlines()


def name_shape(mask: Mask) -> str:
    """Return the shape whose outline overlaps the mask best."""
    if not mask.any():
        return "nothing"
    mine = outline(mask)

    def overlap(shape: str) -> float:
        other = OUTLINES[shape]
        return float(np.minimum(mine, other).sum() / np.maximum(mine, other).sum())

    return max(SHAPES, key=overlap)


def score(picture: Pixels, plan: Plan) -> Score:
    """Compare an image with the plan that its prompt asked for."""
    pixels = picture.astype(np.float32)
    edge = border(pixels)
    result = Score()
    result.verdicts["background"].append(main_colour(edge) == plan.background)
    mask = np.abs(pixels - np.median(edge, axis=0)).max(-1) > DIFFERENT
    if plan.relation == "inside":
        _score_nested(pixels, mask, plan, result)
        return result
    pieces = find_pieces(pixels, mask)
    if plan.relation:
        _score_related(pieces, plan, result)
    else:
        _score_alike(pieces, plan, result)
    return result


def _score_alike(pieces: list[Piece], plan: Plan, result: Score) -> None:
    """Score one object, or several of one kind."""
    wanted = plan.things[0]
    result.verdicts["count"].append(len(pieces) == len(plan.things))
    colours = [piece.colour for piece in pieces] or ["nothing"]
    result.verdicts["colour"].append(max(colours, key=colours.count) == wanted.colour)
    seen = [name_shape(piece.mask) for piece in pieces] or ["nothing"]
    result.add_shape(wanted.shape, max(seen, key=seen.count))
    if plan.place:
        x, y = pieces[0].centre if pieces else (-1.0, -1.0)
        off = max(abs(x - PLACES[plan.place][0]), abs(y - PLACES[plan.place][1]))
        result.verdicts["place"].append(off < NEAR)


def _score_related(pieces: list[Piece], plan: Plan, result: Score) -> None:
    """Score two rows of one or more objects, which the judge identifies by their colours."""
    rows = []
    for colour in dict.fromkeys(thing.colour for thing in plan.things):
        wanted = [thing for thing in plan.things if thing.colour == colour]
        row = [piece for piece in pieces if piece.colour == colour]
        rows.append(row)
        result.verdicts["colour"].append(bool(row))
        if plan.kind == "group":
            result.verdicts["count"].append(len(row) == len(wanted))
        seen = [name_shape(piece.mask) for piece in row] or ["nothing"]
        result.add_shape(wanted[0].shape, max(seen, key=seen.count))
    pairs = [(one.centre, other.centre) for one in rows[0] for other in rows[1]]
    offsets = [(one[0] - other[0], one[1] - other[1]) for one, other in pairs]
    holds = {
        "left": [right < -0.15 for right, _ in offsets],
        "right": [right > 0.15 for right, _ in offsets],
        "above": [down < -0.15 for _, down in offsets],
        "below": [down > 0.15 for _, down in offsets],
    }[plan.relation or ""]
    result.verdicts["relation"].append(bool(holds) and all(holds))


def _score_nested(pixels: NDArray[np.float32], mask: Mask, plan: Plan, result: Score) -> None:
    """Score an object inside another: the inner one's colour must lie within the outer one's."""
    inner, outer = plan.things
    outer_mask = mask & (nearest_colours(pixels) == COLOURS.index(outer.colour))
    body = np.median(pixels[outer_mask], axis=0) if outer_mask.any() else np.zeros(3)
    strange = shrink(mask) & (np.abs(pixels - body).max(-1) > DIFFERENT)
    pieces = [p for p in find_pieces(pixels, strange) if p.colour == inner.colour]
    seen = [bool(pieces), outer_mask.sum() > 0.05 * mask.size]
    result.verdicts["colour"].extend(seen)
    result.add_shape(inner.shape, name_shape(pieces[0].mask) if pieces else "nothing")
    result.add_shape(outer.shape, name_shape(mask))
    if not all(seen):
        result.verdicts["relation"].append(False)
        return
    x, y = pieces[0].centre
    rows, columns = np.nonzero(outer_mask)
    height, width = mask.shape
    within_x = columns.min() / width < x < columns.max() / width
    within_y = rows.min() / height < y < rows.max() / height
    result.verdicts["relation"].append(bool(within_x and within_y))


# --- tables --------------------------------------------------------------------------------------


@dataclass
class Table:
    """Scores of many images."""

    scores: list[Score] = field(default_factory=list)

    def shares(self) -> dict[str, float]:
        """Return the share of right verdicts for each aspect, and of images without a fault."""
        right: dict[str, list[bool]] = {aspect: [] for aspect in ASPECTS}
        for entry in self.scores:
            for aspect, verdicts in entry.verdicts.items():
                right[aspect].extend(verdicts)
        shares = {aspect: float(np.mean(v)) for aspect, v in right.items() if v}
        return shares | {"everything": float(np.mean([entry.perfect for entry in self.scores]))}

    def confusion(self) -> dict[str, dict[str, int]]:
        """Return how often each shape was seen, for each wanted shape."""
        table: dict[str, dict[str, int]] = {}
        for entry in self.scores:
            for wanted, seen in entry.shapes:
                row = table.setdefault(wanted, {})
                row[seen] = row.get(seen, 0) + 1
        return {wanted: table[wanted] for wanted in SHAPES if wanted in table}

    def shape_shares(self) -> dict[str, float]:
        """Return how often each wanted shape was seen, as a share."""
        return {s: row.get(s, 0) / sum(row.values()) for s, row in self.confusion().items()}


def self_check(
    count: int, width: int = 128, height: int = 128, kinds: tuple[str, ...] = KINDS
) -> Table:
    """Score correct drawings of the cases."""
    table = Table()
    for k, case in enumerate(cases(count, 1, kinds)):
        table.scores.append(score(true_drawing(case.plan, k, width, height), case.plan))
    return table
