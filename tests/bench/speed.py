"""Speed of the CPU kernels: the same images from four runtimes, in one run.

Rows are works of a model, and columns are contestants:

- ``plain``: the runtime built without the project's flags
- ``llamafile``: the runtime as scripts/install builds it
- ``exact`` and ``auto``: the same runtime with these kernels

Each contestant is a separate process (bare.py). They generate in turn, in an order that is shuffled
every round, so that other load on the machine affects all of them alike. Every round has a new
prompt, so that no encoded prompt is reused.

Figures are CPU seconds of the process, as the median of the rounds. "x" is the speed relative to
the first column. "Share of the peak" compares the multiply-adds of a phase per CPU second with the
rate that the micro kernel reaches in the level 1 cache: for ``auto`` in its kind of products, for
all others in f32. Convolutions by Winograd and products in integers can exceed 100 %.

Pixels, from 0 to 255, are compared with those of ``llamafile``. Memory is the peak of the process.

All models except the built-in one have random weights of their full shapes, from the conformance
tests; FLUX.1 has 2 + 2 of its 19 + 38 blocks. With ``--peers``, PyTorch and OpenVINO compute the
steps and the autoencoder of the models that peer.py supports, from random weights of the same
shapes. The SDSTREAM_ variables apply, except those of the models and the kernels. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
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
from sdstream.system import available_cores

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT))

from tests.conformance.subjects import SUBJECTS  # noqa: E402
from tests.conformance.write import write_gguf  # noqa: E402

#: Contestant -> the setting of its kernels.
CONTESTANTS = {"plain": "off", "llamafile": "off", "exact": "exact", "auto": "auto"}
#: Contestants of peer.py.
PEERS = ("pytorch", "openvino", "openvino-int8")

#: Contestant -> work -> its answers.
Results = dict[str, dict[Work, list[dict[str, Any]]]]

#: Phase -> the name of its row; the time of sampling is divided by the number of steps.
_PHASES = {"encoding": "text encoder", "sampling": "step", "decoding": "autoencoder"}


@dataclass(frozen=True)
class Model:
    """A model that the contestants use.

    Attributes:
        title: Its name in the table.
        works: The work for each contestant.
        settings: Writes the model's files to a folder and returns the settings that choose it.
        peer: Its name in peer.py, empty if peer.py does not support it.
        long: Whether a round takes minutes.
    """

    title: str
    works: tuple[Work, ...]
    settings: Callable[[Path], dict[str, str]]
    peer: str = ""
    long: bool = False


def _builtin(folder: Path) -> dict[str, str]:
    """Choose the built-in model without its upscaler."""
    return _only(
        folder,
        {
            "id": "drawings",
            "family": "ovis_image",
            "files": {"model": "builtin:drawings"},
            "defaults": {"steps": 12, "cfg_scale": 3.0, "size": "128x128"},
            "size": {"min": 64, "max": 256},
            "runtime": {"tae": True},
        },
    )


def _random(title: str, weights: str) -> Callable[[Path], dict[str, str]]:
    """Choose a model of the conformance tests, whose weights are converted to a type on loading."""

    def settings(folder: Path) -> dict[str, str]:
        subject = next(one for one in SUBJECTS if one.title == title)
        files = {}
        for component, shapes in subject.parts().items():
            if component == "control_net":
                continue
            path = folder / f"{title} {component}.gguf"
            if not path.exists():
                write_gguf(path, shapes)
            files[component] = str(path)
        entry = {"id": "random", "family": subject.family, "files": files}
        return _only(folder, {**entry, "runtime": {"wtype": weights}})

    return settings


def _only(folder: Path, entry: dict[str, Any]) -> dict[str, str]:
    models = folder / "models.yaml"
    models.write_text(yaml.safe_dump({"models": [entry]}))
    return {"SDSTREAM_MODELS": str(models)}


_SD15 = "Stable Diffusion 1.5"
_SMALL, _LARGE = Work("256x256", 2), Work("512x512", 2)

MODELS = (
    Model("built-in model", (Work("128x128", 12), Work("256x256", 12)), _builtin),
    Model("SD1.5 f16", (_SMALL,), _random(_SD15, "f16"), "sd1"),
    Model("SD1.5 q8_0", (_SMALL,), _random(_SD15, "q8_0")),
    Model("SD3.5 Medium q4_0", (_SMALL,), _random("Stable Diffusion 3.5 Medium", "q4_0")),
    Model("FLUX.1 2+2 q4_0", (_SMALL,), _random("FLUX.1 schnell", "q4_0"), "flux"),
    Model("Z-Image q4_0", (_SMALL,), _random("Z-Image", "q4_0"), long=True),
    Model("SD1.5 f16 at 512x512", (_LARGE,), _random(_SD15, "f16"), "sd1", long=True),
)


def _environment(name: str, options: argparse.Namespace, place: Path) -> dict[str, str]:
    """Return the variables of a contestant's process, except those of its model."""
    variables = {"SDSTREAM_KERNELS": CONTESTANTS[name], "BENCH_PIXELS": f"{place}/pixels"}
    if name == "plain":
        variables["STABLE_DIFFUSION_CPP_LIB"] = options.plain
    return {**worker_environment(), **variables}


def _measure(
    model: Model, options: argparse.Namespace, folder: Path, columns: list[str]
) -> Results:
    """Return contestant -> work -> its answers, one per round."""
    names = [name for name in CONTESTANTS if name in columns]
    peers = [name for name in PEERS if name in columns and model.peer]
    results: Results = {name: {work: [] for work in model.works} for name in (*names, *peers)}
    settings = model.settings(folder)
    with ExitStack() as stack:
        drawers: dict[str, Bare] = {}
        for name in (*peers, *names):  # peers first: they convert networks, which needs much memory
            place = folder / name
            place.mkdir(exist_ok=True)
            if name in peers:
                script = str(Path(__file__).with_name("peer.py"))
                command = [options.peers, script, name, model.peer]
                command += [str(available_cores()), options.peer_files]
                drawer = Bare(worker_environment(), place, command)
            else:
                drawer = Bare({**_environment(name, options, place), **settings}, place)
            stack.callback(drawer.close)
            drawers[name] = drawer
            print(f"{model.title}: {name} is {drawer.title}", file=sys.stderr)
        for number in range(options.rounds):
            for work in model.works:
                asked = replace(work, seed=number, prompt=f"{work.prompt}, number {number}")
                for name in random.sample(list(results), len(results)):
                    answer = drawers[name].answer(asked)
                    if name not in peers:
                        pixels = Path(folder, name, "pixels").read_bytes()
                        answer["pixels"] = np.frombuffer(pixels, np.uint8).astype(int)
                    answer["peak_bytes"] = drawers[name].peak_bytes()
                    answer["peak"] = drawers[name].peak
                    results[name][work].append(answer)
                print(f"{model.title}, {work.title}: round {number + 1}", file=sys.stderr)
    return results


def _columns(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[str]:
    """Return the contestants, in the order of the columns; exits for names that do not exist."""
    possible = [name for name in CONTESTANTS if name != "plain" or options.plain]
    possible += PEERS if options.peers else ()
    wanted = options.columns.split(",") if options.columns else possible
    for name in wanted:
        if name not in possible:
            parser.error(f"--columns: no contestant {name!r}; there are: {', '.join(possible)}")
    if not any(name in CONTESTANTS for name in wanted):
        parser.error("--columns: choose at least one of the runtime's contestants")
    return [name for name in possible if name in wanted]


def _rows(model: Model, results: Results, columns: list[str]) -> list[list[str]]:
    """Return the rows of one model in the table."""
    rows = []
    for work in model.works:
        answers = {name: works[work] for name, works in results.items()}
        ours = {name: them for name, them in answers.items() if name in CONTESTANTS}
        title = f"{model.title}, {work.title}"
        rows.append([title, *_ratios(columns, {n: _median(ours[n], "cpu") for n in ours})])
        for phase, what in _PHASES.items():
            share = work.steps if phase == "sampling" else 1
            seconds = {
                name: statistics.median(one["phases"][phase] for one in them) / share
                for name, them in answers.items()
                if all(phase in one["phases"] for one in them)
            }
            if seconds:
                rows.append([f"  {what}", *_ratios(columns, seconds)])
                shares = _shares(answers, phase)
                rows.append(["    share of the peak", *(shares.get(n, "") for n in columns)])
        base = ours.get("llamafile", [])
        apart = {name: _difference(ours[name], base) for name in ours if base}
        rows.append(["  pixels, mean and largest", *(apart.get(n, "") for n in columns)])
        peaks = {
            name: f"{_median(them, 'peak_bytes') / 2**20:,.0f}" for name, them in answers.items()
        }
        rows.append(["  memory, MiB", *(peaks.get(name, "") for name in columns)])
    return rows


def _median(answers: list[dict[str, Any]], field: str) -> float:
    return statistics.median(float(answer[field]) for answer in answers)


def _ratios(columns: list[str], seconds: dict[str, float]) -> list[str]:
    base = next(iter(seconds.values()))
    return [
        f"{seconds[name]:.3f} ({base / seconds[name]:.2f}x)" if name in seconds else ""
        for name in columns
    ]


def _shares(answers: dict[str, list[dict[str, Any]]], phase: str) -> dict[str, str]:
    """Return contestant -> share of the peak that it reaches in a phase.

    Only the kernels count multiply-adds, so the other contestants have the count and the peak of
    ``exact``. Without kernels there are no shares.
    """
    if not all(name in answers and answers[name][0]["peak"] for name in ("exact", "auto")):
        return {}
    shares = {}
    for name, them in answers.items():
        counted = them if name == "auto" else answers["exact"]
        rates = [
            count["work"][phase] / count["peak"] / one["phases"][phase]
            for one, count in zip(them, counted, strict=True)
            if phase in one["phases"]
        ]
        if rates:
            shares[name] = f"{statistics.median(rates):.0%}"
    return shares


def _difference(answers: list[dict[str, Any]], others: list[dict[str, Any]]) -> str:
    pairs = zip(answers, others, strict=True)
    apart = [abs(one["pixels"] - other["pixels"]) for one, other in pairs]
    mean = statistics.mean(float(pixels.mean()) for pixels in apart)
    return f"{mean:.2f}, {max(int(pixels.max()) for pixels in apart)}"


def _chosen(options: argparse.Namespace) -> list[Model]:
    if options.quick:
        return [replace(MODELS[0], works=(Work("64x64", 2),))]
    words = options.only.split(",")

    def wanted(model: Model) -> bool:
        if model.title in words:
            return True
        return any(word in model.title for word in words) and (options.long or not model.long)

    return [model for model in MODELS if wanted(model)]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--plain", default="", help="libstable-diffusion.so built without flags")
    parser.add_argument("--peers", default="", help="Python that has the dependency group peers")
    parser.add_argument("--peer-files", default="", help="where OpenVINO's networks are kept")
    parser.add_argument("--rounds", type=int, default=5, help="of each work")
    parser.add_argument("--only", default="", help="parts of models' names, separated by commas")
    parser.add_argument(
        "--columns", default="", help="contestants, separated by commas, to need less memory"
    )
    parser.add_argument("--quick", action="store_true", help="one small work")
    parser.add_argument("--long", action="store_true", help="also those that take minutes a round")
    parser.add_argument("--json", type=Path, help="write the answers, without pixels")
    options = parser.parse_args()
    models = _chosen(options)
    if not models:
        parser.error(f"no model's name has {options.only!r}; there are: {_listed()}")
    columns = _columns(options, parser)
    console = Console(width=36 + 18 * len(columns))
    written = {}
    with tempfile.TemporaryDirectory() as temporary:
        for model in models:
            results = _measure(model, options, Path(temporary), columns)
            table = Table("CPU seconds", *columns)
            for row in _rows(model, results, columns):
                table.add_row(*row)
            console.print(table)
            written[model.title] = {
                name: {
                    work.title: [{k: v for k, v in a.items() if k != "pixels"} for a in answers]
                    for work, answers in works.items()
                }
                for name, works in results.items()
            }
    if options.json:
        options.json.write_text(json.dumps(written, indent=1))


def _listed() -> str:
    return ", ".join(model.title for model in MODELS)


if __name__ == "__main__":
    os.nice(10)
    main()
