"""sdstream pull, rm and models, with a hub that works and a hub that fails."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import COMMIT, TOKEN, FakeHub, fake_hub
from tests.support.servers import wait_until

Result = subprocess.CompletedProcess[str]

REPO = "somebody/flat-pictures-GGUF"
Q8 = f"{REPO}/flat-Q8_0.gguf"
Q4 = f"{REPO}/flat-Q4_0.gguf"
VAE = "another/vae/inside/ae.safetensors"
PAGE = "https://example.org/flat"

MODELS = f"""
models:
  - id: plain
    family: ovis_image
    files: {{model: "builtin:drawings"}}
  - id: flat
    family: sd1
    page: {PAGE}
    quants: {{Q8_0: 0.5, Q4_0: null}}
    files:
      model: hf:{REPO}/flat-{{quant}}.gguf
      vae: hf:{VAE}
  - id: flatter
    family: sd1
    gated: true
    quants: {{F16: 1}}
    files:
      model: hf:{REPO}/flatter.gguf
      vae: hf:{VAE}
  - id: elsewhere
    family: sd1
    quants: {{F16: 1}}
    files: {{model: "hf:nobody/nothing/x.gguf"}}
  - id: old
    family: sd1
    quants: {{F16: 1}}
    files: {{model: "hf:{REPO}@v1/x.gguf"}}
  - id: lost
    family: sd1
    quants: {{F16: 1}}
    files: {{model: "hf:{REPO}/lost.gguf"}}
"""


def contents(seed: int, size: int = 300_000) -> bytes:
    """Return pseudo-random bytes that depend on the seed."""
    return random.Random(seed).randbytes(size)


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub with two quants and a shared VAE; one file is small enough for git."""
    files = {
        Q8: contents(1),
        Q4: contents(2, 200_000),
        f"{REPO}/flatter.gguf": contents(3, 500),
        VAE: contents(4, 100_000),
    }
    with fake_hub(files) as running:
        yield running


@pytest.fixture
def sdstream(hub: FakeHub, tmp_path: Path) -> Callable[..., Result]:
    """A function that runs a command until it ends."""

    def run(*arguments: str, **variables: str) -> Result:
        return subprocess.run(
            [sys.executable, "-m", "sdstream", *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=environment(hub, tmp_path, **variables),
            timeout=60,
        )

    return run


def environment(hub: FakeHub, folder: Path, **variables: str) -> dict[str, str]:
    """Write models.yaml; return the environment of a user with a new HF_HOME."""
    (folder / "models.yaml").write_text(MODELS)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SDSTREAM_", "HF_"))}
    return {
        **inherited,
        "HF_ENDPOINT": hub.url,
        "MODELSCOPE_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "SDSTREAM_MODELS": str(folder / "models.yaml"),
        "SDSTREAM_DATA_DIR": str(folder / "data"),
        **variables,
    }


def snapshot(folder: Path, name: str) -> Path:
    """Return the path of a file in the hub's cache."""
    owner, repo, path = name.split("/", 2)
    return folder / "hf" / "hub" / f"models--{owner}--{repo}" / "snapshots" / COMMIT / path


def partials(folder: Path) -> list[Path]:
    """Return the partial files."""
    return [path for path in folder.rglob("*") if path.parent.name == ".incomplete"]


def said(result: Result) -> str:
    """Return the text on stderr as one line."""
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


# --- what works ---------------------------------------------------------------------------------


def test_a_model_is_pulled(hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path) -> None:
    """pull stores the first quant and the VAE in the hub's cache, under the hub's names. The token
    is sent to the hub but not to the server of the contents."""
    result = sdstream("pull", "flat", HF_TOKEN=TOKEN)
    assert result.returncode == 0, said(result)
    assert "flat:Q8_0 is downloaded, 400.0 kB" in result.stdout
    assert snapshot(tmp_path, Q8).read_bytes() == hub.files[Q8]
    assert snapshot(tmp_path, VAE).read_bytes() == hub.files[VAE]
    assert snapshot(tmp_path, Q8).readlink().name == hub.checksum(Q8)
    assert not snapshot(tmp_path, Q4).exists()
    assert partials(tmp_path) == []
    assert len(result.stderr.splitlines()) == 2  # one line for each file, without a terminal
    assert f"{Q8}: 300.0 kB" in said(result)
    tokens = {
        (one.path.startswith("/cdn/"), one.headers.get("authorization"))
        for one in hub.asked
        if not one.path.startswith("/api/")  # requests by which the library counts its users
    }
    assert tokens == {(False, f"Bearer {TOKEN}"), (True, None)}


def test_what_is_here_is_not_asked_for(hub: FakeHub, sdstream: Callable[..., Result]) -> None:
    """A second pull sends no request; another quant downloads only the files that differ."""
    assert sdstream("pull", "flat").returncode == 0
    hub.asked.clear()
    assert sdstream("pull", "flat:q8_0").returncode == 0
    assert hub.asked == []
    assert sdstream("pull", "flat:Q4_0").returncode == 0
    assert [one.path for one in hub.downloads()] == [f"/cdn/{Q4}"]


def test_a_file_of_another_tool_is_found(
    hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path
) -> None:
    """pull uses files that huggingface_hub downloaded, and huggingface_hub uses files of pull."""
    fetch = (
        "import sys; from huggingface_hub import hf_hub_download as f; "
        "print(f(sys.argv[1], sys.argv[2]))"
    )

    def library(name: str, **more: str) -> str:
        owner, repo, path = name.split("/", 2)
        return subprocess.run(
            [sys.executable, "-c", fetch, f"{owner}/{repo}", path],
            check=True,
            capture_output=True,
            text=True,
            env=environment(hub, tmp_path, **more),
        ).stdout.strip()

    library(Q8)
    hub.asked.clear()
    assert sdstream("pull", "flat").returncode == 0
    assert [one.path for one in hub.downloads()] == [f"/cdn/{VAE}"]
    assert library(VAE, HF_HUB_OFFLINE="1") == str(snapshot(tmp_path, VAE))


def test_bars_in_a_terminal(hub: FakeHub, tmp_path: Path) -> None:
    """A terminal shows a progress bar for each file and for all, and messages about retries."""
    hub.cuts = [100_000]
    master, slave = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "sdstream", "pull", "flat"],
        env=environment(hub, tmp_path, TERM="xterm", COLUMNS="100"),
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    shown = ""
    with suppress(OSError):  # raised when the process closes the terminal
        while block := os.read(master, 65_536):
            shown += block.decode(errors="replace")
    os.close(master)
    assert process.wait(90) == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    for words in ("flat-Q8_0.gguf ━", "ae.safetensors ━", "all            ━", "400.0/400.0 kB"):
        assert words in shown
    assert "again in 1 s" in shown


def test_another_folder(hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path) -> None:
    """--model-dir overrides the hub's variables."""
    folder = tmp_path / "elsewhere"
    assert sdstream("pull", "flatter", "--model-dir", str(folder)).returncode == 0
    assert (folder / "models--another--vae").is_dir()
    assert not (tmp_path / "hf" / "hub").exists()
    assert "flatter:F16" in sdstream("models", "--model-dir", str(folder)).stdout
    assert "flatter:F16" not in sdstream("models").stdout


def test_a_small_file_is_checked_as_git_does(
    hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path
) -> None:
    """A small file has git's checksum, a SHA-1 over git's header and the contents."""
    name = f"{REPO}/flatter.gguf"
    assert len(hub.checksum(name)) == 40
    assert sdstream("pull", "flatter").returncode == 0
    assert snapshot(tmp_path, name).read_bytes() == hub.files[name]


# --- faults -------------------------------------------------------------------------------------


@pytest.mark.parametrize("resets", [False, True])
def test_a_cut_connection_is_taken_up(
    hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path, resets: bool
) -> None:
    """After each lost connection, the rest of the file is requested with Range."""
    hub.cuts, hub.resets = [100_000, 50_000], resets
    result = sdstream("pull", "flat")
    assert result.returncode == 0, said(result)
    assert "again in 1 s" in said(result)
    ranges = [one.headers.get("range") for one in hub.downloads() if one.path.endswith(Q8)]
    assert ranges[0] is None
    assert all(re.fullmatch(r"bytes=\d+-", str(one)) for one in ranges[1:])
    assert len(ranges) == 3
    assert snapshot(tmp_path, Q8).read_bytes() == hub.files[Q8]


def test_a_killed_pull_is_taken_up(
    hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path
) -> None:
    """SIGKILL leaves a partial file, and the next pull resumes from it."""
    hub.cuts = [150_000]
    hub.statuses["GET", f"cdn/{Q8}"] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "sdstream", "pull", "flat"],
        env=environment(hub, tmp_path),
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: any(p.stat().st_size > 99_000 for p in partials(tmp_path)), 20, "no part")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not snapshot(tmp_path, Q8).exists()
    (part,) = partials(tmp_path)
    size = part.stat().st_size
    hub.asked.clear()
    assert sdstream("pull", "flat").returncode == 0
    assert hub.downloads()[0].headers["range"] == f"bytes={size}-"
    assert snapshot(tmp_path, Q8).read_bytes() == hub.files[Q8]


def test_wrong_contents_are_deleted(
    hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path
) -> None:
    """A file with a wrong checksum is deleted."""
    hub.wrong[Q8] = contents(99)
    result = sdstream("pull", "flat")
    assert result.returncode == 1
    assert f"{Q8} had a wrong checksum and was deleted" in said(result)
    assert not snapshot(tmp_path, Q8).exists()
    assert partials(tmp_path) == []
    hub.wrong.clear()
    assert sdstream("pull", "flat").returncode == 0


def test_verify_finds_damage(hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path) -> None:
    """--verify checks downloaded files, and downloads only the damaged one again."""
    assert sdstream("pull", "flat").returncode == 0
    assert sdstream("pull", "flat", "--verify").returncode == 0
    with snapshot(tmp_path, Q8).open("r+b") as file:
        file.write(b"rust")
    hub.asked.clear()
    assert sdstream("pull", "flat").returncode == 0  # does not check the contents
    result = sdstream("pull", "flat", "--verify")
    assert result.returncode == 0
    assert f"{Q8} is damaged" in said(result)
    assert [one.path for one in hub.downloads()] == [f"/cdn/{Q8}"]
    assert snapshot(tmp_path, Q8).read_bytes() == hub.files[Q8]


def test_a_gated_model(hub: FakeHub, sdstream: Callable[..., Result]) -> None:
    """Without a token that has access, the error names the licence's page and HF_TOKEN; with such a
    token, pull succeeds."""
    hub.gated.add(REPO)
    for variables in ({}, {"HF_TOKEN": "hf_wrong"}):
        result = sdstream("pull", "flat", **variables)
        assert result.returncode == 1
        assert f"accept it at {PAGE}" in said(result)
        assert "HF_TOKEN" in said(result)
        assert "hf_wrong" not in said(result)
    assert sdstream("pull", "flat", HF_TOKEN=TOKEN).returncode == 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("lost", f"The repository {REPO} has no file lost.gguf."),
        ("elsewhere", "The hub has no repository nobody/nothing, or it is private"),
        ("old", f"The repository {REPO} has no revision 'v1'."),
        ("plain", "The model 'plain' has no files on a hub"),
        ("flat:Q2_K", "'flat' has the quants Q8_0, Q4_0."),
        ("nothing", "'nothing' is not in the catalogue; 'sdstream models --all' lists all models."),
        ("FLATER", "'FLATER' is not in the catalogue; did you mean flatter, flat?"),
    ],
)
def test_what_cannot_be_had(sdstream: Callable[..., Result], model: str, words: str) -> None:
    """The error names the model or file that the hub or the catalogue does not contain."""
    result = sdstream("pull", model)
    assert result.returncode == 1
    assert words in said(result)


def test_a_hub_that_stumbles(hub: FakeHub, sdstream: Callable[..., Result]) -> None:
    """Transient errors of the hub and of the server of the contents are retried."""
    hub.statuses["HEAD", Q8] = [(500, {}), (429, {"Retry-After": "2"})]
    hub.statuses["GET", f"cdn/{Q8}"] = [(503, {})]
    result = sdstream("pull", "flat")
    assert result.returncode == 0, said(result)
    assert "the hub answers 500; again in 1 s" in said(result)
    assert "the hub answers 429; again in 2 s" in said(result)
    assert "the hub answers 503; again in 1 s" in said(result)


def test_a_hub_that_wants_an_hour(hub: FakeHub, sdstream: Callable[..., Result]) -> None:
    """A long Retry-After is reported as an error instead of waiting."""
    hub.statuses["HEAD", Q8] = [(429, {"Retry-After": "3600"})]
    result = sdstream("pull", "flat")
    assert result.returncode == 1
    assert "too many requests (429): pull again in 3600 s" in said(result)


def test_offline(hub: FakeHub, sdstream: Callable[..., Result]) -> None:
    """--offline and HF_HUB_OFFLINE send no request, and report the missing files."""
    for more in ({"HF_HUB_OFFLINE": "1"}, {}):
        result = sdstream("pull", "flat", *([] if more else ["--offline"]), **more)
        assert result.returncode == 1
        assert f"Files of 'flat:Q8_0' are missing: {Q8}, {VAE}." in said(result)
    assert hub.asked == []
    assert sdstream("pull", "flat").returncode == 0
    hub.asked.clear()
    result = sdstream("pull", "flat", "--offline")
    assert (result.returncode, result.stdout) == (0, "flat:Q8_0 is downloaded.\n")
    assert hub.asked == []


def test_a_limit_in_the_midst(
    hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path
) -> None:
    """A failed write is reported; the partial file stays, and the next pull resumes from it."""
    limit = 'ulimit -f 100; exec "$@"'  # blocks of 1024 bytes
    result = subprocess.run(
        ["bash", "-c", limit, "bash", sys.executable, "-m", "sdstream", "pull", "flat"],
        check=False,
        capture_output=True,
        text=True,
        env=environment(hub, tmp_path, PYTHONDONTWRITEBYTECODE="1"),
    )
    assert result.returncode == 1
    assert f"{Q8} cannot be written: File too large. The downloaded part is kept" in said(result)
    (part,) = partials(tmp_path)
    assert part.stat().st_size == 100 * 1024
    hub.asked.clear()
    assert sdstream("pull", "flat").returncode == 0
    assert hub.downloads()[0].headers["range"] == f"bytes={100 * 1024}-"


def test_two_at_once(hub: FakeHub, tmp_path: Path) -> None:
    """Two parallel pulls succeed, and each file is downloaded once."""
    hub.gate.clear()
    command = [sys.executable, "-m", "sdstream", "pull", "flat"]
    told: list[str] = []
    both = [
        subprocess.Popen(command, env=environment(hub, tmp_path), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    # One process asks the hub for both files and downloads the first. The other process asks too,
    # and waits for that download.
    wait_until(lambda: _questions(hub) == 4 and hub.downloads(), 20, "they do not come")
    time.sleep(1)
    hub.gate.set()
    for process in both:
        _, error = process.communicate(timeout=90)
        assert process.returncode == 0, error
        told.append(error)
    assert sum("another process is downloading it" in error for error in told) == 1
    assert sorted(one.path for one in hub.downloads()) == [f"/cdn/{VAE}", f"/cdn/{Q8}"]
    assert snapshot(tmp_path, Q8).read_bytes() == hub.files[Q8]


def _questions(hub: FakeHub) -> int:
    return sum(one.method == "HEAD" for one in hub.asked)


# --- rm and models ------------------------------------------------------------------------------


def test_rm(hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path) -> None:
    """rm keeps files that another pulled model needs until that model is removed, and files that do
    not belong to the catalogue."""
    alien = tmp_path / "hf" / "hub" / "models--alien--thing" / "blobs" / "x"
    alien.parent.mkdir(parents=True)
    alien.write_bytes(b"x")
    for model in ("flat", "flat:Q4_0", "flatter"):
        assert sdstream("pull", model).returncode == 0
    result = sdstream("rm", "flat:q8_0")
    assert result.returncode == 0, said(result)
    assert "300.0 kB are free again" in result.stdout
    assert not snapshot(tmp_path, Q8).is_symlink()
    assert snapshot(tmp_path, VAE).exists()
    assert "200.0 kB are free again" in sdstream("rm", "FLAT").stdout
    again = sdstream("rm", "flat")
    assert again.returncode == 1
    assert "Other models (flatter:F16) need all downloaded files of 'flat'." in said(again)
    assert "100.5 kB are free again" in sdstream("rm", "flatter").stdout
    assert "No file of 'flatter' is downloaded." in said(sdstream("rm", "flatter"))
    assert alien.exists()
    assert [p for p in (tmp_path / "hf" / "hub").glob("models--*") if "alien" not in p.name] == []


def test_rm_of_a_part(hub: FakeHub, sdstream: Callable[..., Result], tmp_path: Path) -> None:
    """rm deletes the partial file of an interrupted pull."""
    hub.cuts = [100_000]
    hub.statuses["GET", Q8] = [(302, {"Location": f"{hub.cdn}/cdn/{Q8}"}), (403, {})]
    assert sdstream("pull", "flat").returncode == 1
    assert len(partials(tmp_path)) == 1
    assert "are free again" in sdstream("rm", "flat").stdout
    assert partials(tmp_path) == []


def test_rm_of_what_was_never_pulled(sdstream: Callable[..., Result]) -> None:
    """rm rejects the built-in model and unknown models."""
    assert "has no files on a hub" in said(sdstream("rm", "plain"))
    assert "not in the catalogue" in said(sdstream("rm", "nothing"))


def test_models(sdstream: Callable[..., Result]) -> None:
    """models lists the downloaded models with their sizes and the number of others; --all lists
    all."""
    before = sdstream("models").stdout
    assert re.search(r"plain\s+ovis_image\s+\d+x\d+\s+default", before)
    assert "5 more can be pulled; 'sdstream models --all' shows them." in before
    assert sdstream("pull", "flat").returncode == 0
    after = sdstream("models").stdout
    assert re.search(r"flat:Q8_0\s+sd1\s+512x512\s+400\.0 kB\s+here", after)
    assert "4 more" in after
    everything = sdstream("models", "--all").stdout
    assert re.search(r"flat:Q4_0\s+sd1\s+512x512\s+not pulled\b", everything)
    assert re.search(r"flatter:F16\s+sd1\s+512x512\s+1 GB\s+gated\b", everything)
    assert "more can be pulled" not in everything


@pytest.mark.parametrize("command", ["pull", "rm"])
def test_help_teaches(sdstream: Callable[..., Any], command: str) -> None:
    """--help shows the form of the argument."""
    assert "MODEL[:QUANT]" in sdstream(command, "--help").stdout
