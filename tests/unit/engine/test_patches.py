"""The runtime's patches: applied exactly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdstream.engine.patches import apply as patches

PATCH = """\
--- a/one.txt
+++ b/one.txt
@@ -1,3 +1,4 @@
 first
-second
+2nd
+between
 third
@@ -5,2 +6,1 @@
 fifth
--- a line that begins like a header
--- /dev/null
+++ b/new.txt
@@ -0,0 +1,2 @@
+created
+here
"""
BEFORE = "first\nsecond\nthird\nfourth\nfifth\n-- a line that begins like a header\nlast\n"


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source folder with one file to which the patch applies."""
    folder = tmp_path / "patches"
    folder.mkdir()
    (folder / "1.patch").write_text(PATCH)
    monkeypatch.setattr(patches, "PATCHES", folder)
    source = tmp_path / "source"
    source.mkdir()
    (source / "one.txt").write_text(BEFORE)
    return source


def test_changes_and_creates_files(source: Path) -> None:
    """Every hunk of every file is applied."""
    patches.apply(source)
    assert (source / "one.txt").read_text() == ("first\n2nd\nbetween\nthird\nfourth\nfifth\nlast\n")
    assert (source / "new.txt").read_text() == "created\nhere\n"


@pytest.mark.parametrize("change", [("second", "zweite"), ("first\n", ""), ("fifth", "5th")])
def test_changes_nothing_where_a_line_differs(source: Path, change: tuple[str, str]) -> None:
    """No offset or fuzz is allowed, so a patch does not apply to another release's sources."""
    other = BEFORE.replace(*change, 1)
    (source / "one.txt").write_text(other)
    with pytest.raises(patches.PatchError, match=r"1\.patch: one\.txt: line \d is not what"):
        patches.apply(source)
    assert (source / "one.txt").read_text() == other
    assert not (source / "new.txt").exists()


def test_a_patch_builds_on_the_one_before(source: Path) -> None:
    """A patch applies to the result of the patch before it."""
    (patches.PATCHES / "2.patch").write_text(
        "--- a/new.txt\n+++ b/new.txt\n@@ -1,2 +1,2 @@\n created\n-here\n+there\n"
    )
    patches.apply(source)
    assert (source / "new.txt").read_text() == "created\nthere\n"


def test_the_identity_is_that_of_the_content(source: Path) -> None:
    """The identity changes with the patches' content, so that an outdated build is not reused."""
    before = patches.identity()
    (patches.PATCHES / "1.patch").write_text(PATCH.replace("2nd", "zweite"))
    assert patches.identity() != before
