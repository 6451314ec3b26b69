"""The contestants: the bare process, the service (plain and streamed) and upstream's sd-server.

Each is a separate process with the same model, options and threads. All times are seconds of
CLOCK_MONOTONIC, which the processes of a machine share.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from work import Work, load_command, resolved

from sdstream.settings import Settings
from sdstream.weights.discovery import load_catalog
from sdstream.weights.embedded import materialise

_HERE = Path(__file__).parent
_ROOT = _HERE.parent.parent
_START_SECONDS = 120.0
_ANSWER_SECONDS = 600.0

#: Component of models.yaml -> flag of sd-server.
_UPSTREAM_FLAGS = {
    "model": "--model",
    "diffusion_model": "--diffusion-model",
    "clip_l": "--clip_l",
    "clip_g": "--clip_g",
    "t5xxl": "--t5xxl",
    "llm": "--llm",
    "vae": "--vae",
    "tae": "--taesd",
}


@dataclass(frozen=True)
class Sample:
    """Measurements of one image from the view of its client, in seconds.

    Attributes:
        wall: Time from before the connection opens to the last byte; for the bare process, the
            time of the generation alone.
        native: The runtime's part of ``wall``, measured in the process that generated.
        sha256: Hash of the RGB pixels.
        before: Time from before the connection opens to the start of the generation.
        after: Time from the end of the generation to the last byte.
        first_frame: Time from before the connection opens to the first frame of a stream.
        frames: For each step of a stream, time from the runtime's callback to the frame.
        final_frame: Time from the end of the generation to the frame with the image.
        server_waited, client_waited: Total time in which the server's event loop and this client
            were ready to run but had no core, which is the part of a busy machine in the delays.
    """

    wall: float
    native: float
    sha256: str
    before: float | None = None
    after: float | None = None
    first_frame: float | None = None
    frames: tuple[float, ...] = ()
    final_frame: float | None = None
    server_waited: float | None = None
    client_waited: float | None = None


Draw = Callable[[Work], Sample]


class ContestantFailed(Exception):
    """A contestant did not start or did not generate an image."""


class _Process:
    """A process under test, which is started, measured and ended."""

    def __init__(
        self, command: list[str], environment: dict[str, str], log: Path, *, piped: bool = False
    ) -> None:
        self.began = time.monotonic()
        self.ready_seconds = 0.0
        self._log = log
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=environment,
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else stderr,
                stderr=stderr,
                text=True,
            )

    def check(self) -> None:
        """Raise ContestantFailed, with the end of its log, if the process has ended."""
        if self.popen.poll() is not None:
            lines = self._log.read_text(errors="replace").splitlines()[-20:]
            raise ContestantFailed("\n".join([f"{self._log.stem} ended:", *lines]))

    def wait_for(self, ready: Callable[[], bool]) -> None:
        """Poll until the process can generate, and record how long that took."""
        while not ready():
            self.check()
            if time.monotonic() > self.began + _START_SECONDS:
                raise ContestantFailed(f"{self._log.stem} was not ready in {_START_SECONDS} s")
            time.sleep(0.02)
        self.ready_seconds = time.monotonic() - self.began

    def close(self) -> None:
        """End the process: with SIGTERM and, after 10 seconds, with SIGKILL."""
        self.popen.terminate()
        try:
            self.popen.wait(10)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Bare:
    """NativeEngine in a separate process (bare.py), or another runtime in its place (peer.py).

    Attributes:
        threads: Number of threads that compute.
        title: The kernels in use or, for another runtime, its name and release.
        peak: Multiply-adds per CPU second of one thread of the kernels, 0 without kernels.
        ready_seconds: Time from the start of the process until its model was loaded.
    """

    def __init__(
        self, environment: dict[str, str], folder: Path, command: list[str] | None = None
    ) -> None:
        command = command or [sys.executable, str(_HERE / "bare.py")]
        self._process = _Process(command, environment, folder / "bare.log", piped=True)
        first = self._read()
        self.threads = int(first["threads"])
        self.title = str(first["kernels"])
        self.peak = float(first.get("peak", 0))
        self.ready_seconds = time.monotonic() - self._process.began

    def answer(self, work: Work) -> dict[str, Any]:
        """Generate an image and return the answer of the process."""
        assert self._process.popen.stdin is not None
        print(json.dumps(asdict(work)), file=self._process.popen.stdin, flush=True)
        return self._read()

    def draw(self, work: Work) -> Sample:
        """Generate an image."""
        answer = self.answer(work)
        return Sample(answer["seconds"], answer["seconds"], answer["sha256"])

    def resident(self) -> dict[str, int]:
        """Return the memory in bytes by process."""
        return {"bare process": resident_bytes(self._process.popen.pid)}

    def peak_bytes(self) -> int:
        """Return the peak memory of the process."""
        status = Path(f"/proc/{self._process.popen.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) * 1024

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.popen.stdout is not None
        line = self._process.popen.stdout.readline()
        if not line:
            self._process.popen.wait()
            self._process.check()
        answer: dict[str, Any] = json.loads(line)
        return answer


class Service:
    """``sdstream serve`` with the probe in its worker (probe/sitecustomize.py)."""

    def __init__(self, environment: dict[str, str], folder: Path, port: int) -> None:
        self.port = port
        self._probe = folder / "probe.jsonl"
        self._probe.touch()
        self._notes = self._probe.open()
        self._noted: dict[str, Any] = {}
        self._worker = 0
        path = os.pathsep.join(filter(None, (str(_HERE / "probe"), environment.get("PYTHONPATH"))))
        self._process = _Process(
            [sys.executable, "-m", "sdstream", "serve", "--host", "127.0.0.1", "--port", str(port)],
            {
                **environment,
                "PYTHONPATH": path,
                "BENCH_PROBE_LOG": str(self._probe),
                "SDSTREAM_DATA_DIR": str(folder / "data"),
                "SDSTREAM_API_KEYS": "",
            },
            folder / "sdstream.log",
        )
        self._process.wait_for(lambda: answers(port, "/readyz"))
        self.ready_seconds = self._process.ready_seconds

    def plain(self, work: Work) -> Sample:
        """Generate an image with a single JSON object as the answer."""
        with _post(self.port, self._body(work)) as (sent, response):
            body = response.read()
            done = time.monotonic()
            job = response.headers["X-Job-Id"]
        note = self._note(job)
        return Sample(
            wall=done - sent,
            native=note["ended"] - note["began"],
            sha256=_pixels(json.loads(body)["data"][0]["b64_json"]),
            before=note["began"] - sent,
            after=done - note["ended"],
        )

    def streamed(self, work: Work) -> Sample:
        """Generate an image with a stream of frames as the answer."""
        lines: list[tuple[float, bytes]] = []
        server = self._process.popen.pid
        waits = _waited(server), _waited(os.getpid())
        with _post(self.port, {**self._body(work), "stream": True}) as (sent, response):
            # Frames are parsed after the end, because parsing would delay the following frames.
            while line := response.readline():
                lines.append((time.monotonic(), line))
            job = response.headers["X-Job-Id"]
        waited = _waited(server) - waits[0], _waited(os.getpid()) - waits[1]
        note = self._note(job)
        frames = list(_frames(lines))
        done = next(at for at, line in lines if line == b"data: [DONE]\n")
        final_at, final = next((at, item) for at, item in frames if item["finish_reason"])
        return Sample(
            wall=done - sent,
            native=note["ended"] - note["began"],
            sha256=_pixels(final["b64_json"]),
            before=note["began"] - sent,
            after=done - note["ended"],
            first_frame=frames[0][0] - sent,
            frames=tuple(_frame_delays(frames, note["steps"])),
            final_frame=final_at - note["ended"],
            server_waited=waited[0],
            client_waited=waited[1],
        )

    def resident(self) -> dict[str, int]:
        """Return the memory in bytes by process; the worker's is known after its first image."""
        server = {"sdstream server": resident_bytes(self._process.popen.pid)}
        return server | ({"sdstream worker": resident_bytes(self._worker)} if self._worker else {})

    def close(self) -> None:
        """End the server, and with it the worker."""
        self._process.close()
        self._notes.close()

    def _body(self, work: Work) -> dict[str, Any]:
        return {
            "prompt": work.prompt,
            "size": work.size,
            "sample_steps": work.steps,
            "seed": work.seed,
        }

    def _note(self, job: str) -> Any:
        """Return the probe's record of a job, which it writes before the answer is sent."""
        for line in self._notes:
            note = json.loads(line)
            self._noted[note["job"]] = note
            self._worker = note["pid"]
        if job not in self._noted:
            raise ContestantFailed("the probe in the worker wrote nothing")
        return self._noted.pop(job)


class Upstream:
    """stable-diffusion.cpp's own HTTP server."""

    def __init__(
        self, binary: str, environment: dict[str, str], folder: Path, port: int, threads: int
    ) -> None:
        self.port = port
        settings = Settings()
        self._catalog = load_catalog(settings)
        self._log = folder / "sd-server.log"
        command = [
            *(binary, "--listen-ip", "127.0.0.1", "--listen-port", str(port)),
            *("--threads", str(threads), *_model_flags(settings)),
        ]
        self._process = _Process(command, environment, self._log)
        self._process.wait_for(lambda: answers(port, "/v1/models"))
        self.ready_seconds = self._process.ready_seconds

    def plain(self, work: Work) -> Sample:
        """Generate an image; the native time comes from the log, to the nearest 10 ms."""
        with _post(self.port, self._body(work)) as (sent, response):
            body = response.read()
            done = time.monotonic()
        took = re.findall(r"generate_image completed in ([\d.]+)s", self._log.read_text())
        if not took:
            raise ContestantFailed("sd-server logged no time of its picture")
        return Sample(
            wall=done - sent,
            native=float(took[-1]),
            sha256=_pixels(json.loads(body)["data"][0]["b64_json"]),
        )

    def resident(self) -> dict[str, int]:
        """Return the memory in bytes by process."""
        return {"sd-server": resident_bytes(self._process.popen.pid)}

    def close(self) -> None:
        """End the process."""
        self._process.close()

    def _body(self, work: Work) -> dict[str, Any]:
        request = resolved(work, self._catalog)
        guidance: dict[str, float] = {"txt_cfg": request.cfg_scale}
        if request.options.guidance is not None:
            guidance["distilled_guidance"] = request.options.guidance
        options = {
            "seed": request.seed,
            "sample_params": {
                "sample_steps": request.steps,
                "sample_method": request.sampler,
                "scheduler": request.schedule,
                "guidance": guidance,
            },
        }
        extra = f"<sd_cpp_extra_args>{json.dumps(options)}</sd_cpp_extra_args>"
        return {"prompt": work.prompt + extra, "size": work.size}


def answers(port: int, path: str) -> bool:
    """Return True if a server answers a path with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def _waited(pid: int) -> float:
    """Return the seconds that a process's main thread has waited for a core (Linux)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


@contextmanager
def _post(port: int, body: dict[str, Any]) -> Iterator[tuple[float, http.client.HTTPResponse]]:
    """POST a generation on a separate connection, as a first call of curl does.

    This uses the standard library's blocking client. Only one system call and no event loop lies
    between the arrival of a byte and the reading of the clock, so the figures show the server.
    """
    data = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_SECONDS)
    try:
        sent = time.monotonic()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/images/generations", data, headers)
        response = connection.getresponse()
        if response.status != 200:
            raise ContestantFailed(f"{response.status}: {response.read(1000)!r}")
        yield sent, response
    finally:
        connection.close()


def _frames(lines: list[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Yield (arrival, item) for each frame of an image.chunk stream."""
    for at, line in lines:
        if line.startswith(b"data: {"):
            frame = json.loads(line[6:])
            if "error" in frame:
                raise ContestantFailed(str(frame["error"]))
            yield at, frame["data"][0]


def _frame_delays(
    frames: list[tuple[float, dict[str, Any]]], steps: list[list[Any]]
) -> Iterator[float]:
    """Yield the seconds from the runtime's callback to the frame, for steps with a frame."""
    called = {(index, step): at for index, step, at in steps}
    for at, item in frames:
        key = (item["index"], item["progressed_steps"])
        if key in called and not item["finish_reason"]:
            yield at - called[key]


def _pixels(b64: str) -> str:
    """Return the SHA-256 of an image's RGB pixels."""
    picture = Image.open(io.BytesIO(base64.b64decode(b64)))
    return hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()


def _model_flags(settings: Settings) -> Iterator[str]:
    """Yield the model's files and options as flags of sd-server."""
    load = load_command(settings, load_catalog(settings))
    for component, location in load.files.items():
        yield from (_UPSTREAM_FLAGS[component], str(materialise(location, settings.cache_dir)))
    if load.runtime["tae"] and "tae" not in load.files:
        # The value does not matter: the model file contains the autoencoder
        # (engine/native/engine.py).
        yield from ("--taesd", "inside-the-model-file")
    switches = {"flash_attn": "--fa", "offload": "--offload-to-cpu", "vae_tiling": "--vae-tiling"}
    yield from (flag for option, flag in switches.items() if load.runtime[option])
    if load.runtime["conv_direct"]:
        yield from ("--diffusion-conv-direct", "--vae-conv-direct")
    if load.runtime["wtype"]:
        yield from ("--type", load.runtime["wtype"])
