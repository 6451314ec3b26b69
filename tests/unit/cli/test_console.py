"""Tables and errors of the command line."""

from __future__ import annotations

import pytest

from sdstream.cli import console
from sdstream.cli.console import plain_errors, print_table
from sdstream.client.answers import APIError


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal with 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(console, "is_terminal", lambda _stream: True)


@pytest.mark.usefixtures("narrow")
def test_a_table_without_its_last_column(capsys: pytest.CaptureFixture[str]) -> None:
    """If the last column is empty, the one before it is shown as a whole if the table fits."""
    row = ("job_" + "x" * 26, "completed", "100 %", "30 Nov 12:00", "")
    print_table(("job", "status", "progress", "begun", "prompt"), [row], spare=("progress",))
    assert capsys.readouterr().out.splitlines()[1].endswith("100 %     30 Nov 12:00")


@pytest.mark.usefixtures("narrow")
def test_a_table_that_is_too_wide(capsys: pytest.CaptureFixture[str]) -> None:
    """A narrow terminal leaves out the spare columns, and then cuts the last one."""
    row = ("job_" + "x" * 26, "completed", "100 %", "30 Nov 12:00", "a cat " * 9)
    print_table(("job", "status", "progress", "begun", "prompt"), [row], spare=("progress",))
    head, line = capsys.readouterr().out.splitlines()
    assert "progress" not in head
    assert (len(line), line[-1]) == (80, "…")


def test_an_unknown_key(capsys: pytest.CaptureFixture[str]) -> None:
    """The error for a missing key names the flag and the variable."""
    with pytest.raises(SystemExit), plain_errors():
        raise APIError(401, "Invalid API key.")
    expected = "Error: Invalid API key. --api-key or SDSTREAM_CLIENT_KEY sets the key.\n"
    assert capsys.readouterr().err == expected
