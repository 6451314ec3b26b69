"""Each architecture once through the whole service, on weights out of a random generator.

    scripts/conformance [--only WORD] [--keep]

Writes full-shape weights of one model after the other, serves them, draws one step at the smallest
size by text, over an image and through a mask, and prints a table in Markdown. The pictures are
noise: what is tried is that the runtime loads and draws each architecture through the catalogue and
the worker, and what that takes.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx2
import yaml
from PIL import Image

from sdstream.core.model_families import FAMILIES
from sdstream.weights.architectures import recognise
from tests.conformance.shapes import Shape, lora
from tests.conformance.subjects import SUBJECTS, Parts, Subject
from tests.conformance.write import write_gguf
from tests.support.servers import ServerProcess, running_server

_NICE: Final = 10
_PATIENCE: Final = 900.0
_SIZE: Final = "64x64"
_HEADINGS: Final = (
    "model", "family", "as tried", "file", "loads", "t2i", "i2i", "inpaint", "references",
    "LoRA", "ControlNet", "memory",
)  # fmt: skip


@dataclass
class Outcome:
    """What came of one model; a column that has a word instead of seconds says why."""

    subject: Subject
    file_bytes: int = 0
    memory_bytes: int = 0
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """True when it was loaded and everything was drawn."""
        return all(_SECONDS.fullmatch(text) or text == "–" for text in self.columns.values())

    def row(self) -> str:
        """A line of the table."""
        cells = (
            self.subject.title,
            f"`{self.subject.family}`",
            self.subject.shape or "full shape",
            f"{self.file_bytes / 1e9:.2f} GB",
            *(self.columns.get(name, "") for name in _HEADINGS[4:-1]),
            f"{self.memory_bytes / 1e9:.2f} GB",
        )
        return f"| {' | '.join(cells)} |"


_SECONDS: Final = re.compile(r"[\d.]+ s")


def try_subject(subject: Subject, folder: Path) -> Outcome:
    """Write one model into a folder, draw with it, and leave the folder to be deleted."""
    outcome = Outcome(subject)
    files = {}
    parts = subject.parts()
    for component, shapes in parts.items():
        path = folder / f"{component}.gguf"
        outcome.file_bytes += write_gguf(path, shapes)
        files[component] = str(path)
    loras = folder / "loras"
    loras.mkdir()
    write_gguf(loras / "tried.gguf", lora(_diffusion_model(parts)).tensors)
    models = folder / "models.yaml"
    entry = {
        "id": "tried",
        "family": subject.family,
        "files": files,
        "defaults": {"size": _SIZE, "steps": 1},
        "runtime": dict(subject.runtime),
    }
    models.write_text(yaml.safe_dump({"models": [entry]}))
    began = time.monotonic()
    with running_server(
        folder, models=models, lora_dir=loras, hang_seconds=_PATIENCE, wait=False
    ) as server:
        why = _wait(server)
        outcome.columns["loads"] = why or f"{time.monotonic() - began:.0f} s"
        if not why:
            _draw(server, outcome)
            outcome.memory_bytes = _peak_memory(server)
    return outcome


def _diffusion_model(parts: Parts) -> dict[str, Shape]:
    """Its tensors by their inner names, out of a file of its own or a whole model."""
    whole = parts.get("diffusion_model") or parts["model"]
    inner = recognise(whole).parts["diffusion_model"]
    return dict(inner)


def _wait(server: ServerProcess) -> str:
    """Wait until the model is loaded; returns why it never will be."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if server.process.poll() is not None:
            return server.log.read_text()[-300:]
        try:
            answer = httpx2.get(f"{server.url}/readyz", timeout=5)
        except httpx2.HTTPError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return ""
        if answer is not None and answer.json().get("status") == "failed":
            return str(answer.json()["message"])
        time.sleep(0.2)
    return "it takes too long"


def _draw(server: ServerProcess, outcome: Outcome) -> None:
    family = FAMILIES[outcome.subject.family]
    picture, mask = _pictures()
    body = {"prompt": "a red circle", "size": _SIZE, "sample_steps": 1, "seed": 7}
    form = {name: str(value) for name, value in body.items()}
    columns = outcome.columns
    columns["t2i"] = _time(server, "generations", json=body)
    one = [("image", ("input.png", picture, "image/png"))]
    masked = [*one, ("mask", ("mask.png", mask, "image/png"))]
    columns["inpaint"] = _time(server, "edits", data=form, files=masked)
    # An image without a mask is drawn over, or looked at by those families that can.
    drawn_over, looked_at = ("–", "") if family.references else ("", "–")
    columns["i2i"] = drawn_over or _time(server, "edits", data=form, files=one)
    columns["references"] = looked_at or _time(server, "edits", data=form, files=one * 2)

    chosen = {**body, "lora": [{"id": "tried", "scale": 0.5}]}
    columns["LoRA"] = _time(server, "generations", json=chosen)
    columns["ControlNet"] = "–"
    if "control_net" in outcome.subject.parts():
        followed = [("control", ("control.png", picture, "image/png"))]
        columns["ControlNet"] = _time(server, "generations", data=form, files=followed)


def _time(server: ServerProcess, route: str, **request: Any) -> str:
    """Seconds until the picture, or what went wrong."""
    began = time.monotonic()
    answer = httpx2.post(f"{server.url}/v1/images/{route}", timeout=_PATIENCE, **request)
    if answer.status_code != 200:
        return str(answer.json()["error"]["message"])
    raw = base64.b64decode(answer.json()["data"][0]["b64_json"])
    with Image.open(BytesIO(raw)) as picture:
        picture.load()
        assert picture.size == (64, 64)
    return f"{time.monotonic() - began:.1f} s"


def _pictures() -> tuple[bytes, bytes]:
    """An image, and a mask whose middle is transparent."""
    image = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (16, 16, 48, 48))
    files = BytesIO(), BytesIO()
    image.save(files[0], "PNG")
    mask.save(files[1], "PNG")
    return files[0].getvalue(), files[1].getvalue()


def _peak_memory(server: ServerProcess) -> int:
    """The most that the worker has held."""
    status = Path(f"/proc/{server.worker_pid()}/status").read_text()
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kilobytes) * 1024


@contextmanager
def scratch(*, keep: bool = False) -> Iterator[Path]:
    """A folder for gigabytes that nobody wants afterwards."""
    path = Path(tempfile.mkdtemp(prefix="conformance-"))
    try:
        yield path
    finally:
        if not keep:
            shutil.rmtree(path)


def main() -> int:
    """Try the models; 1 when one of them did not do all it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--keep", action="store_true", help="keep weights and logs")
    options = parser.parse_args()
    os.nice(_NICE)
    print(f"| {' | '.join(_HEADINGS)} |\n|{'-|' * len(_HEADINGS)}", flush=True)
    passed = True
    for subject in SUBJECTS:
        if options.only.lower() not in subject.title.lower():
            continue
        with scratch(keep=options.keep) as folder:
            outcome = try_subject(subject, folder)
            if options.keep:
                print(folder, file=sys.stderr)
        print(outcome.row(), flush=True)
        passed = passed and outcome.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
