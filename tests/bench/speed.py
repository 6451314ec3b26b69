"""How quick the CPU kernels are: the same images from four runtimes, in one run.

Rows are works of a model, columns are contestants: the runtime built without our flags (``plain``),
as scripts/install builds it (``llamafile``), and that one with the kernels ``exact`` and ``auto``.
Each is a process of its own (bare.py). They draw in turn, in an order that is shuffled every round,
so that whatever else the machine does hits all alike. Figures are CPU seconds of the process, the
median of the rounds; "x" is how many times fewer than the first column's. Differences are of pixels
to the runtime's own kernels, of 255.

Stable Diffusion 1.5 has random weights of its full shape, from the conformance tests. The SDSTREAM_
variables count, but for the models and the kernels. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from contestants import Bare
from rich.console import Console
from rich.table import Table
from work import Work

from sdstream.settings import worker_environment

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT))

from tests.conformance.subjects import SUBJECTS  # noqa: E402
from tests.conformance.write import write_gguf  # noqa: E402

#: Contestant -> the setting of its kernels.
CONTESTANTS = {"plain": "off", "llamafile": "off", "exact": "exact", "auto": "auto"}

EMBEDDED = (Work("128x128", 12), Work("256x256", 12))
SD15 = (Work("256x256", 2),)
SD15_LONG = (*SD15, Work("512x512", 2))

#: Phase -> how the table calls its row; the one of sampling is divided by the steps.
_PHASES = {"encoding": "text encoder", "sampling": "step", "decoding": "autoencoder"}


@dataclass(frozen=True)
class Model:
    """What is drawn with.

    Attributes:
        title: For the table.
        variables: Settings of the contestants.
        works: What each draws.
    """

    title: str
    variables: dict[str, str]
    works: tuple[Work, ...]


def _builtin(folder: Path) -> dict[str, str]:
    """Return the settings that choose the built-in model without its upscaler."""
    entry = {
        "id": "drawings",
        "family": "ovis_image",
        "files": {"model": "builtin:drawings"},
        "defaults": {"steps": 12, "cfg_scale": 3.0, "size": "128x128"},
        "size": {"min": 64, "max": 256},
        "runtime": {"tae": True},
    }
    models = folder / "builtin.yaml"
    models.write_text(yaml.safe_dump({"models": [entry]}))
    return {"SDSTREAM_MODELS": str(models)}


def _random_sd15(folder: Path) -> dict[str, str]:
    """Write Stable Diffusion 1.5 of random weights; return the settings that choose it."""
    subject = SUBJECTS[0]
    weights = folder / "sd15.gguf"
    write_gguf(weights, subject.parts()["model"])
    models = folder / "models.yaml"
    entry = {"id": "sd15", "family": subject.family, "files": {"model": str(weights)}}
    models.write_text(yaml.safe_dump({"models": [entry]}))
    return {"SDSTREAM_MODELS": str(models)}


def _measure(
    model: Model, names: list[str], plain: str, rounds: int, folder: Path
) -> dict[str, dict[Work, list[dict[str, Any]]]]:
    """Return contestant -> work -> its answers, one a round."""
    results: dict[str, dict[Work, list[dict[str, Any]]]] = {
        name: {work: [] for work in model.works} for name in names
    }
    with ExitStack() as stack:
        drawers = {}
        for name in names:
            place = folder / name
            place.mkdir(exist_ok=True)
            variables = {"SDSTREAM_KERNELS": CONTESTANTS[name], "BENCH_PIXELS": f"{place}/pixels"}
            if name == "plain":
                variables["STABLE_DIFFUSION_CPP_LIB"] = plain
            drawers[name] = Bare({**worker_environment(), **model.variables, **variables}, place)
            stack.callback(drawers[name].close)
        for number in range(rounds):
            for work in model.works:
                for name in random.sample(names, len(names)):
                    answer = drawers[name].answer(replace(work, seed=number))
                    pixels = Path(folder, name, "pixels").read_bytes()
                    answer["pixels"] = np.frombuffer(pixels, np.uint8).astype(int)
                    results[name][work].append(answer)
                print(f"{model.title}, {work.title}: round {number + 1}", file=sys.stderr)
    return results


def _rows(model: Model, results: dict[str, dict[Work, list[dict[str, Any]]]]) -> list[list[str]]:
    """Return the table's rows of one model."""
    names = list(results)
    rows = []
    for work in model.works:
        phases = [p for p in _PHASES if all(p in a["phases"] for a in results[names[0]][work])]
        for what in ("image", *phases):
            median = {}
            for name in names:
                answers = results[name][work]
                seconds = [a["cpu"] if what == "image" else a["phases"][what] for a in answers]
                share = work.steps if what == "sampling" else 1
                median[name] = statistics.median(seconds) / share
            base = median[names[0]]
            title = work.title if what == "image" else _PHASES[what]
            cells = [f"{median[n]:.3f} ({base / median[n]:.2f}x)" for n in names]
            rows.append([f"{model.title}, {title}" if what == "image" else f"  {title}", *cells])
        rows.append(["  pixels, mean and largest", *(_difference(results, n, work) for n in names)])
    return rows


def _difference(results: dict[str, dict[Work, list[dict[str, Any]]]], name: str, work: Work) -> str:
    pairs = zip(results[name][work], results["llamafile"][work], strict=True)
    apart = [abs(one["pixels"] - other["pixels"]) for one, other in pairs]
    mean = statistics.mean(float(pixels.mean()) for pixels in apart)
    return f"{mean:.2f}, {max(int(pixels.max()) for pixels in apart)}"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plain", default="", help="libstable-diffusion.so built without flags")
    parser.add_argument("--rounds", type=int, default=5, help="of each work")
    parser.add_argument("--only", default="", help="part of a model's name")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest work")
    parser.add_argument("--long", action="store_true", help="SD1.5 at 512x512 too: minutes a round")
    parser.add_argument("--json", type=Path, help="write the answers, without pixels")
    options = parser.parse_args()
    names = [name for name in CONTESTANTS if name != "plain" or options.plain]
    table = Table("CPU seconds", *names)
    written = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = [Model("built-in model", _builtin(folder), EMBEDDED)]
        if options.quick:
            models = [Model("built-in model", _builtin(folder), (Work("64x64", 2),))]
        elif options.only in "SD1.5":
            works = SD15_LONG if options.long else SD15
            models.append(Model("SD1.5", _random_sd15(folder), works))
        for model in (one for one in models if options.only in one.title):
            results = _measure(model, names, options.plain, options.rounds, folder)
            for row in _rows(model, results):
                table.add_row(*row)
            written[model.title] = {
                name: {
                    work.title: [{k: v for k, v in a.items() if k != "pixels"} for a in answers]
                    for work, answers in works.items()
                }
                for name, works in results.items()
            }
    Console(width=140).print(table)
    if options.json:
        options.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    os.nice(10)
    main()
