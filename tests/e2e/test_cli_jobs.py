"""The commands for jobs, with running servers."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import httpx2
import psutil
import pytest

from tests.e2e.test_cli import environment, opened, said, sdstream
from tests.support.jobs import begin, look, wait_for
from tests.support.servers import ServerProcess, free_port, running_server, wait_until

QUICK = ("--size", "64x64", "--steps", "3", "--seed", "5")


def test_begin_watch_and_fetch(tmp_path: Path, fake_server: ServerProcess) -> None:
    """--async prints the id and exits; watch waits for the job and writes the images."""
    server = ("--server", fake_server.url)
    begun = sdstream("generate", "a", *QUICK, "-n", "2", "--async", *server, folder=tmp_path)
    assert begun.returncode == 0, said(begun)
    job = begun.stdout.decode().strip()
    assert re.fullmatch(r"job_[\w-]+", job)
    watched = sdstream("watch", job, "-o", "x.png", *server, folder=tmp_path)
    assert watched.returncode == 0, said(watched)
    assert "seed 5, x-1.png seed 6, x-2.png" in said(watched)
    assert opened(tmp_path / "x-2.png").size == (64, 64)


def test_the_end_of_the_file_chooses_the_format(tmp_path: Path, fake_server: ServerProcess) -> None:
    """The extension of -o sets the format with --async; watch rejects any other extension at
    once."""
    server = ("--server", fake_server.url)
    draw = ("generate", "step=0.1", "--size", "64x64", "--steps", "120", "--async")
    begun = sdstream(*draw, "-o", "nodir/x.jpg", *server, folder=tmp_path)
    assert begun.returncode == 0, said(begun)
    job = begun.stdout.decode().strip()
    refused = sdstream("watch", job, "-o", "w.png", *server, folder=tmp_path)
    assert refused.returncode == 2
    assert "the images are JPEG: -o must end in .jpg or .jpeg." in said(refused)
    assert sdstream("watch", job, "-o", "w.jpg", *server, folder=tmp_path).returncode == 0
    assert opened(tmp_path / "w.jpg").format == "JPEG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "x.txt"), "-o must end in one of"),
        (("-o", "-"), "-o -, --show or --force"),
        (("--show",), "-o -, --show or --force"),
    ],
)
def test_async_takes_nothing_that_it_would_ignore(
    tmp_path: Path, fake_server: ServerProcess, arguments: tuple[str, ...], words: str
) -> None:
    """--async rejects options that only affect finished images."""
    draw = ("generate", "a", *QUICK, "--async", "--server", fake_server.url)
    result = sdstream(*draw, *arguments, folder=tmp_path)
    assert result.returncode == 2
    assert words in said(result)
    assert result.stdout == b""


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("nodir/x.png", "the folder nodir does not exist."),
        ("w.txt", "-o must end in one of"),
        ("-", "-o - writes one image to stdout, not 2."),
        ("x.png", "x-2.png is a folder."),
    ],
)
def test_watch_looks_at_its_output_first(
    tmp_path: Path, fake_server: ServerProcess, output: str, words: str
) -> None:
    """watch reports that -o cannot be written while the job still runs."""
    (tmp_path / "x-2.png").mkdir()
    body = {"prompt": "step=0.1", "size": "64x64", "steps": 150, "n": 2}
    job = begin(fake_server, body)["id"]
    server = ("--server", fake_server.url)
    result = sdstream("watch", job, "-o", output, *server, folder=tmp_path)
    assert result.returncode == 2
    assert words in said(result)
    assert look(fake_server, job)["status"] != "completed"
    sdstream("cancel", job, *server, folder=tmp_path)


def test_watch_writes_to_stdout(tmp_path: Path, fake_server: ServerProcess) -> None:
    """`-o -` writes only the image file to stdout, in the job's format."""
    body = {"prompt": "a", "size": "64x64", "steps": 1, "output_format": "webp"}
    job = begin(fake_server, body)["id"]
    result = sdstream("watch", job, "-o", "-", "--server", fake_server.url, folder=tmp_path)
    assert result.returncode == 0, said(result)
    assert result.stdout[8:12] == b"WEBP"


def test_watch_saves_what_a_cancelled_job_finished(
    tmp_path: Path, fake_server: ServerProcess
) -> None:
    """watch saves a cancelled job's finished images under their numbers and exits with 1."""
    body = {"prompt": "step=0.1", "size": "64x64", "steps": 20, "n": 3, "seed": 5}
    job = begin(fake_server, body)["id"]
    wait_until(lambda: len(look(fake_server, job)["images"]) == 2, 20, "no images")
    httpx2.post(look(fake_server, job)["cancel_url"])
    wait_for(fake_server, job, "cancelled")
    server = ("--server", fake_server.url)
    result = sdstream("watch", job, "-o", "part.png", *server, folder=tmp_path)
    assert result.returncode == 1
    assert "seed 5, part-1.png seed 6, part-2.png Error: " in said(result)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-1.png", "part-2.png"]


def test_watch_shows_without_a_file(tmp_path: Path, fake_server: ServerProcess) -> None:
    """--show without -o downloads the images for the terminal only."""
    job = begin(fake_server, {"prompt": "a", "size": "64x64", "steps": 1})["id"]
    command = ("watch", job, "--server", fake_server.url)
    assert "▀" in in_a_terminal(tmp_path, {}, *command, "--show")
    assert "▀" not in in_a_terminal(tmp_path, {}, *command)
    assert list(tmp_path.iterdir()) == []


def test_async_needs_a_server(tmp_path: Path) -> None:
    """--async is rejected without a server, because the engine ends with the command."""
    result = sdstream("generate", "a", "--async", folder=tmp_path)
    assert result.returncode == 2
    assert "--server" in said(result)


def test_list_of_jobs(tmp_path: Path, fake_server: ServerProcess) -> None:
    """jobs lists the newest first, filtered by status, as a table or as JSON."""
    old = begin(fake_server, {"prompt": "the old one", "size": "64x64", "steps": 1})["id"]
    wait_for(fake_server, old, "completed")
    new = begin(fake_server, {"prompt": "fail=1", "size": "64x64", "steps": 2})["id"]
    wait_for(fake_server, new, "failed")
    server = ("--server", fake_server.url)
    table = sdstream("jobs", *server, folder=tmp_path).stdout.decode()
    assert table.index(new) < table.index(old)
    found = json.loads(sdstream("jobs", "--json", "--limit", "1", *server, folder=tmp_path).stdout)
    assert [job["id"] for job in found] == [new]
    some = sdstream("jobs", "--status", "failed", "--status", "cancelled", *server, folder=tmp_path)
    assert new in some.stdout.decode()
    assert old not in some.stdout.decode()


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("a cat [/] end", "a cat [/] end"),
        ("a [cat:dog:0.5] and [blurry] (nice:1.2)", "a [cat:dog:0.5] and [blurry] (nice:1.2)"),
        ("a :smile:", "a :smile:"),
        ("red \x1b[31m\tor\nblue", "red ?[31m or blue"),
    ],
)
def test_prompts_are_listed_as_they_are(
    tmp_path: Path, fake_server: ServerProcess, prompt: str, shown: str
) -> None:
    """A prompt is listed on one line; markup is shown as text, and control characters are
    replaced."""
    job = begin(fake_server, {"prompt": prompt, "size": "64x64", "steps": 1})["id"]
    result = sdstream("jobs", "--server", fake_server.url, folder=tmp_path)
    assert result.returncode == 0, said(result)
    (line,) = [line for line in result.stdout.decode().split("\n") if job in line]
    assert line.rstrip().endswith(shown)


def test_ids_are_whole_in_a_narrow_terminal(tmp_path: Path, fake_server: ServerProcess) -> None:
    """Ids are never truncated, so that users can copy them; prompts are."""
    job = begin(fake_server, {"prompt": "a red circle " * 4, "size": "64x64", "steps": 1})["id"]
    assert job in in_a_terminal(tmp_path, {}, "jobs", "--server", fake_server.url, columns=80)


def test_watch_tells_how_a_job_failed(tmp_path: Path, fake_server: ServerProcess) -> None:
    """watch reports a failed job in one line and by its exit code."""
    job = begin(fake_server, {"prompt": "fail=1", "size": "64x64", "steps": 2})["id"]
    result = sdstream("watch", job, "--server", fake_server.url, folder=tmp_path)
    assert result.returncode == 1
    assert said(result).endswith("Error: The fake engine failed as requested.")
    unknown = sdstream("watch", "job_nobody", "--server", fake_server.url, folder=tmp_path)
    assert unknown.returncode == 1
    assert "Job not found" in said(unknown)
    assert "Traceback" not in said(unknown)


def test_cancel(tmp_path: Path, fake_server: ServerProcess) -> None:
    """cancel prints the job's state, also for a job that has already ended."""
    body = {"prompt": "step=0.1", "size": "64x64", "steps": 150}
    job = begin(fake_server, body)["id"]
    wait_for(fake_server, job, "running")
    server = ("--server", fake_server.url)
    assert b"cancelled" in (sdstream("cancel", job, *server, folder=tmp_path).stdout) or (
        wait_for(fake_server, job, "cancelled")
    )
    wait_for(fake_server, job, "cancelled")
    again = sdstream("cancel", job, *server, folder=tmp_path)
    assert again.stdout == b"The job had ended already: cancelled.\n"


def is_connected(pid: int) -> bool:
    """Return whether the process has a connection, which it opens after installing its signal
    handlers."""
    return any(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process(pid).net_connections())


def test_ctrl_c_leaves_the_job_running(tmp_path: Path, fake_server: ServerProcess) -> None:
    """Ctrl-C ends watch but not the job."""
    job = begin(fake_server, {"prompt": "step=0.1", "size": "64x64", "steps": 120})["id"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdstream", "watch", job, "--server", fake_server.url],
        stderr=subprocess.PIPE,
        env=environment(),
    )
    wait_for(fake_server, job, "running")
    wait_until(lambda: is_connected(process.pid), 20, "the command never reached the server")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"sdstream watch {job}" in " ".join(errors.decode().split())
    assert look(fake_server, job)["status"] in ("running", "completed")
    assert wait_for(fake_server, job, "completed")["attempts"] == 1


def test_watching_over_a_restart(tmp_path: Path) -> None:
    """watch survives a crash and restart of the server and writes the image."""
    port = free_port()
    with running_server(tmp_path, engine="fake", port=port) as server:
        job = begin(server, {"prompt": "step=0.1", "size": "64x64", "steps": 60})["id"]
        process = subprocess.Popen(
            [sys.executable, "-m", "sdstream", "watch", job, "--server", server.url, "-o", "x.png"],
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=tmp_path,
        )
        wait_for(server, job, "running")
        wait_until(lambda: is_connected(process.pid), 20, "the command never reached the server")
        time.sleep(0.5)  # time for an event or two
        server.stop(signal.SIGKILL)
    with running_server(tmp_path, engine="fake", port=port):
        _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors.decode()
    assert opened(tmp_path / "x.png").size == (64, 64)


@pytest.mark.parametrize(
    ("answers", "sign"),
    [
        ({}, "▀"),
        ({b"\x1b[c": b"\x1b[?62;4;22c"}, "\x1bP"),  # device attributes with Sixel
    ],
    ids=["half blocks", "sixel"],
)
def test_pictures_in_the_terminal(
    tmp_path: Path, fake_server: ServerProcess, answers: dict[bytes, bytes], sign: str
) -> None:
    """A terminal shows the image in the best way it supports; --no-show and pipes show none."""
    command = ("generate", "a", *QUICK, "-o", "x.png", "--force", "--server", fake_server.url)
    assert sign in in_a_terminal(tmp_path, answers, *command)
    assert sign not in in_a_terminal(tmp_path, answers, *command, "--no-show")
    assert sdstream(*command, folder=tmp_path).stdout == b""


def in_a_terminal(
    folder: Path, answers: dict[bytes, bytes], *arguments: str, columns: int = 100
) -> str:
    """Run a command in a pseudo-terminal that answers some queries; return the output."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        termios.tcsetwinsize(0, (40, columns))
        variables = {
            **environment(),
            "TERM": "xterm-256color",
            "COLUMNS": str(columns),
            "LINES": "40",
        }
        os.execve(sys.executable, [sys.executable, "-m", "sdstream", *arguments], variables)
    written = b""
    open_questions = dict(answers)
    while select.select([terminal], [], [], 40)[0]:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the command has closed its side
            break
        written += part
        for question in [q for q in open_questions if q in written]:
            os.write(terminal, open_questions.pop(question))
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, written.decode(errors="replace")
    return written.decode(errors="replace")
