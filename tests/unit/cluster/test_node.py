"""The GPUs of a machine that joins a cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sdstream.cluster.node import gpu_mib


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of the only ``nvidia-smi``, which a test may write."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path / "nvidia-smi"


def write(program: Path, text: str) -> None:
    """Write an executable file."""
    program.write_text(text)
    program.chmod(0o755)


def test_each_gpu_is_listed(program: Path) -> None:
    """The memory of each GPU is a line of the output; a failure means no GPU."""
    assert gpu_mib() == []
    write(program, "#!/bin/sh\necho 81920\necho 40960\n")
    assert gpu_mib() == [81920, 40960]
    write(program, "#!/bin/sh\necho 81920\nexit 9\n")
    assert gpu_mib() == []


def test_a_program_that_does_not_work(
    program: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that hangs or cannot be run is reported with the flag that replaces it."""
    write(program, "#!/no/such/shell\n")
    assert gpu_mib() == []
    assert "--gpus sets their number: [Errno 2]" in caplog.text

    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", hang)
    assert gpu_mib() == []
    assert "--gpus sets their number: Command" in caplog.text
