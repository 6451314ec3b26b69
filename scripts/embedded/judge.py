"""Judge a model in the runtime: `python -m scripts.embedded.judge model.gguf`.

Generates images for prompts with known answers. Prints how often background, colour, shape, count,
place and relation are right, and which shapes were mistaken for others. `--check` judges correct
drawings instead of a model's images. `--served` judges images of the service at any size, which the
service may enlarge or reduce; they are first reduced to the size that the judge knows.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from scripts.embedded.draw import Plan
from scripts.embedded.score import (
    KINDS,
    WORDINGS,
    Case,
    Pixels,
    Score,
    Table,
    cases,
    score,
    true_drawing,
)

SHOWN: tuple[str, ...] = (
    "A lovely cat",
    "three cats",
    "an apple",
    "A vibrant sunset in the mountains, high quality.",
    "A photograph of a golden retriever wearing a scarf in autumn leaves.",
    "a red circle on a blue background",
    "a small yellow star on a black background",
    "two green squares",
    "a blue circle above a red square",
    "a white heart inside a purple circle",
    "a night sky with a moon over the sea",
    "a city skyline at night",
    "a boat on the sea at sunset",
    "a house on a hill under a blue sky",
    "a desert with a cactus",
    "snowy mountains on a sunny day",
    "a forest at night",
    "four orange fish on a cyan background",
)
"""Prompts for the first rows of a contact sheet."""

JUDGED_PIXELS = 192 * 128
"""The judge was checked on images of up to this many pixels."""

Artist = Callable[[Case, int], Pixels]


def judge(
    artist: Artist, prompts: list[Case], seeds: int
) -> tuple[Table, list[tuple[Pixels, str]]]:
    """Generate images for all prompts with an artist; return the scores and labelled images."""
    table, tiles = Table(), []
    for k, case in enumerate(prompts):
        for seed in range(seeds):
            picture = artist(case, 1000 * seed + k)
            verdict = score(picture, case.plan)
            table.scores.append(verdict)
            tiles.append((picture, f"{case.prompt} {faults(verdict)}"))
    return table, tiles


def faults(verdict: Score) -> str:
    """Return a label that names the wrong aspects."""
    wrong = [aspect for aspect, verdicts in verdict.verdicts.items() if not all(verdicts)]
    return f"[not: {', '.join(wrong)}]" if wrong else "[ok]"


def sheet(tiles: list[tuple[Pixels, str]], columns: int = 6) -> Image.Image:
    """Return labelled images side by side."""
    height, width = tiles[0][0].shape[:2]
    cell, label = max(width, 160) + 8, 40
    rows = -(-len(tiles) // columns)
    image = Image.new("RGB", (columns * cell, rows * (height + label)), "white")
    pen = ImageDraw.Draw(image)
    for k, (pixels, words) in enumerate(tiles):
        x, y = k % columns * cell, k // columns * (height + label)
        image.paste(Image.fromarray(pixels), (x, y))
        letters = cell // 6
        lines = [words[i : i + letters] for i in range(0, min(len(words), 3 * letters), letters)]
        pen.text((x, y + height + 1), "\n".join(lines), fill="black", font_size=10, spacing=1)
    return image


def report(table: Table) -> dict[str, object]:
    """Return the scores as JSON values."""
    return {
        "pictures": len(table.scores),
        "shares": {k: round(v, 3) for k, v in table.shares().items()},
        "shapes": {k: round(v, 3) for k, v in table.shape_shares().items()},
        "confusion": table.confusion(),
    }


def print_report(table: Table) -> None:
    """Print the scores as a small table."""
    print(f"{len(table.scores)} pictures")
    for aspect, share in table.shares().items():
        print(f"  {aspect:<12}{100 * share:6.1f} %")
    print("shapes, and what else was seen")
    shares = table.shape_shares()
    for wanted, row in table.confusion().items():
        others = sorted(((n, s) for s, n in row.items() if s != wanted), reverse=True)
        wrong = ", ".join(f"{seen} {number}" for number, seen in others[:5])
        print(f"  {wanted:<12}{100 * shares[wanted]:6.1f} %  {wrong}")


def truthful(width: int, height: int) -> Artist:
    """Return an artist that draws exactly what each prompt asks for."""
    return lambda case, seed: true_drawing(case.plan, seed, width, height)


def reduced(picture: Image.Image) -> Pixels:
    """Return an image, reduced to the number of pixels that the judge knows."""
    scale = math.sqrt(JUDGED_PIXELS / math.prod(picture.size))
    if scale < 1:
        size = (round(picture.width * scale), round(picture.height * scale))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture.convert("RGB"))


@contextmanager
def served(options: argparse.Namespace) -> Iterator[Artist]:
    """Yield an artist that generates images with the service, with the model of its catalogue."""
    from sdstream import Runner  # noqa: PLC0415 - only needed to judge a model

    asked = {"size": options.size, "steps": options.steps, "cfg_scale": options.cfg}
    with Runner() as runner:

        def artist(case: Case, seed: int) -> Pixels:
            answer = runner.generate(case.prompt, seed=seed, sampler=options.sampler, **asked)
            with Image.open(answer.data[0].url) as picture:
                return reduced(picture)

        yield artist


@contextmanager
def bare(options: argparse.Namespace, width: int, height: int) -> Iterator[Artist]:
    """Yield an artist that generates images with the runtime and a model's file."""
    from scripts.embedded import native  # noqa: PLC0415 - only needed to judge a model

    settings = native.Settings(width, height, options.steps, options.cfg, options.sampler)
    runtime = native.Runtime(options.model, options.threads)
    yield lambda case, seed: runtime.draw(case.prompt, seed, settings)


@contextmanager
def artist_of(options: argparse.Namespace) -> Iterator[Artist]:
    """Yield the artist that the command line selects."""
    width, height = (int(side) for side in options.size.split("x"))
    if options.check:
        yield truthful(width, height)
        return
    with served(options) if options.served else bare(options, width, height) as artist:
        yield artist


def main() -> None:
    """Judge a model, the service or, with --check, the judge."""
    options = parse_options()
    prompts = cases(options.count, options.first_seed, options.kinds)
    shown: list[tuple[Pixels, str]] = []
    with artist_of(options) as artist:
        if options.sheet and not options.check:
            shown = [(artist(Case(prompt, Plan("shown")), 7), prompt) for prompt in SHOWN]
        begin = time.monotonic()
        table, tiles = judge(artist, prompts, options.seeds)
    print_report(table)
    print(f"{(time.monotonic() - begin) / max(1, len(tiles)):.2f} s a picture")
    if options.sheet:
        picked = np.linspace(0, len(tiles) - 1, min(36, len(tiles))).astype(int) if tiles else ()
        sheet(shown + [tiles[k] for k in picked]).save(options.sheet)
    if options.json:
        options.json.write_text(json.dumps(report(table), indent=2) + "\n")


def parse_kinds(words: str) -> tuple[str, ...]:
    """Read kinds of cases, separated by commas; raises ArgumentTypeError."""
    kinds = tuple(words.split(","))
    for kind in kinds:
        if kind not in WORDINGS:
            raise argparse.ArgumentTypeError(f"no kind {kind!r}; there are: {', '.join(WORDINGS)}")
    return kinds


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", type=Path, nargs="?", help="a GGUF file")
    what.add_argument("--check", action="store_true", help="judge true drawings")
    what.add_argument("--served", action="store_true", help="judge what the service answers")
    add("--count", type=int, default=300, help="prompts")
    add("--first-seed", type=int, default=0, help="another set of prompts")
    add("--seeds", type=int, default=1, help="pictures of each prompt")
    add("--kinds", type=parse_kinds, default=KINDS, help=f"of {', '.join(WORDINGS)}")
    add("--size", default="128x128", help="WIDTHxHEIGHT in pixels")
    add("--steps", type=int, default=12)
    add("--cfg", type=float, default=2.0)
    add("--sampler", default="euler")
    add("--threads", type=int, default=2, help="of a GGUF file's model")
    add("--sheet", type=Path, help="write a contact sheet")
    add("--json", type=Path, help="write the scores")
    return parser.parse_args()


if __name__ == "__main__":
    main()
