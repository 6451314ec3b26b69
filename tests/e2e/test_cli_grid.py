"""``sdstream grid``: a labelled sheet of images that compares options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from tests.e2e.test_cli import opened, said, sdstream
from tests.support.servers import ServerProcess

SIDE = 64
GAP = 8


def tiles(sheet: Image.Image, columns: int, rows: int) -> list[Image.Image]:
    """Return the images of a sheet, row by row; they are aligned to its right and bottom edges."""
    sheet = sheet.convert("RGB")
    left = sheet.width - columns * (SIDE + GAP) - GAP
    top = sheet.height - rows * (SIDE + GAP) - GAP
    places = [
        (left + GAP + x * (SIDE + GAP), top + GAP + y * (SIDE + GAP))
        for y in range(rows)
        for x in range(columns)
    ]
    return [sheet.crop((x, y, x + SIDE, y + SIDE)) for x, y in places]


def test_two_axes(tmp_path: Path, native_server: ServerProcess) -> None:
    """Each cell is the image that ``generate`` returns for its options; the parameters name the
    axes."""
    where = ("--size", "64x64", "--server", native_server.url)
    result = sdstream(
        *("grid", "a red circle", "-x", "sampler=euler,heun", "-y", "steps=2,4", "--seed", "5"),
        *where,
        folder=tmp_path,
    )
    assert result.returncode == 0, said(result)
    assert said(result).endswith("4 images, grid.png")
    sheet = opened(tmp_path / "grid.png")
    text = sheet.info["parameters"]
    assert text.startswith("a red circle\nSteps: 2, Sampler: Euler, ")
    assert text.endswith(
        'Script: X/Y/Z plot, X Type: sampler, X Values: "euler, heun", Y Type: steps, '
        'Y Values: "2, 4"'
    )
    alone = ("generate", "a red circle", "--sampler", "heun", "--steps", "2", "--seed", "5")
    assert sdstream(*alone, *where, folder=tmp_path).returncode == 0
    expected = opened(tmp_path / "image.png").convert("RGB")
    cells = tiles(sheet, 2, 2)
    assert ImageChops.difference(cells[1], expected).getbbox() is None
    assert ImageChops.difference(cells[0], cells[3]).getbbox() is not None


def test_words_of_the_prompt(tmp_path: Path, fake_server: ServerProcess) -> None:
    """The values replace a word; without -y the sheet has one row, and all seeds are the same."""
    command = ("grid", "a red circle", "-x", "circle=circle,star", "-o", "g.png", "--steps", "1")
    result = sdstream(*command, "--size", "64x64", "--server", fake_server.url, folder=tmp_path)
    assert result.returncode == 0, said(result)
    text = opened(tmp_path / "g.png").info["parameters"]
    assert 'X Type: circle, X Values: "circle, star"' in text
    assert "Y Type" not in text
    jobs = sdstream("jobs", "--limit", "2", "--json", "--server", fake_server.url, folder=tmp_path)
    found = json.loads(jobs.stdout)
    assert {job["parameters"]["prompt"] for job in found} == {"a red circle", "a red star"}
    assert {job["parameters"]["seed"] for job in found} == {found[0]["parameters"]["seed"]}
    (group,) = {job["group"] for job in found}
    assert group.startswith("grid-")


def test_a_cell_that_cannot_be_generated(tmp_path: Path, fake_server: ServerProcess) -> None:
    """The sheet is written although one cell was rejected; the exit code is 1."""
    command = ("grid", "a", "-x", "steps=1,0", "--size", "64x64", "--server", fake_server.url)
    result = sdstream(*command, folder=tmp_path)
    assert result.returncode == 1
    assert "Error: 'sample_steps' must be at least 1, not 0." in said(result)
    assert opened(tmp_path / "grid.png").width > 2 * SIDE


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '-x'"),
        (["-x", "sampler"], "-x must be NAME=VALUE,VALUE"),
        (["-x", "sampler=eulre"], "-x sampler: unknown sampler 'eulre'. Did you mean 'euler'?"),
        (["-x", "samplr=euler"], "neither a word of the prompt nor one of sampler, schedule"),
        (["-x", "samplr=euler"], "Did you mean 'sampler'?"),
        (["-x", "steps=few"], "'few' is not a valid integer"),
        (["-x", "steps=1,2", "-y", "steps=3"], "-x and -y must differ"),
        (["-x", "steps=1", "-x", "cfg=3", "-y", "seed=1"], "-x is given 2 times"),
        (["-x", "steps=1,2", "--steps", "3"], "both as an axis and as an option"),
        (["-x", "strength=0.1,0.2"], "need --image"),
        (["-x", "steps=1,2", "-o", "x.webp"], "-o must end in .png"),
        (["-x", f"seed={','.join(map(str, range(145)))}"], "the limit is 144"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], words: str) -> None:
    """Wrong usage is reported with exit code 2 and a message, before anything starts."""
    result = sdstream("grid", "a cat", *arguments, folder=tmp_path, engine="fake")
    assert result.returncode == 2
    assert words in said(result)
