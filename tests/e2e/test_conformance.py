"""Small models of each architecture that can be made small, on the real runtime.

scripts/conformance runs every architecture at full shape, which takes gigabytes and minutes.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sdstream.core.model_families import FAMILIES
from sdstream.weights.inspection import check
from tests.conformance.run import scratch, try_subject
from tests.conformance.subjects import SUBJECTS, Subject
from tests.support.weight_files import write_safetensors

TITLES = [subject.title for subject in SUBJECTS]


@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.quick], ids=lambda s: s.title)
def test_a_small_model_draws(subject: Subject) -> None:
    """A small model generates, edits, inpaints and, where supported, uses reference images."""
    with scratch() as folder:
        outcome = try_subject(subject, folder)
    assert outcome.passed, outcome.columns


@pytest.mark.parametrize("subject", SUBJECTS, ids=TITLES)
def test_full_shapes_are_let_through(tmp_path: Path, subject: Subject) -> None:
    """The check of weight files accepts every model that the runtime supports."""
    files = {
        component: write_safetensors(tmp_path / component, shapes)
        for component, shapes in subject.parts().items()
    }
    check(files, subject.family)


def test_every_family_is_tried() -> None:
    """Every family of the catalogue has a model in SUBJECTS."""
    assert {subject.family for subject in SUBJECTS} == {*FAMILIES}
