"""Images per second of the built-in model over HTTP, by the number of clients, in one run.

``one`` has one worker, and ``auto`` has as many as ``replicas: auto`` allows. Each client sends its
next request when it has received the answer to the previous one. The cells are measured in turn, in
an order that is shuffled every round, so that other load on the machine affects all of them alike.
Figures are medians of the rounds. Clients, server and workers share the cores of this machine.

The second table is for requests of one image and of four images with one prompt, to a single
worker. It shows the seconds of each phase and the number of prompts that were encoded or reused,
from the server's metrics. Linux only.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console
from rich.table import Table

_ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(_ROOT))

from sdstream.system import available_cores  # noqa: E402
from tests.support.servers import GENERATIONS, ServerProcess, running_server  # noqa: E402

#: Model -> its replicas.
FORMS: Final = {"one": 1, "auto": "auto"}
CLIENTS: Final = (1, 4, 16)
COUNTS: Final = (1, 4)

#: Makes every prompt unique, so that none was encoded before.
_NUMBERS: Final = count()


def _catalogue(folder: Path) -> Path:
    """Write a catalogue with the built-in model in each form."""
    built_in = yaml.safe_load((_ROOT / "models.yaml").read_text())["models"][0]
    entries = [{**built_in, "id": name, "replicas": many} for name, many in FORMS.items()]
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"models": entries}))
    return path


def _ask(connection: http.client.HTTPConnection, model: str, n: int = 1) -> float:
    """Generate images with the model's defaults; return the seconds until the answer."""
    body = {"model": model, "prompt": f"a red cup {next(_NUMBERS)}", "n": n}
    began = time.perf_counter()
    connection.request("POST", GENERATIONS, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{answer.status}: {content[:500]!r}")
    return time.perf_counter() - began


def throughput(
    server: ServerProcess, model: str, clients: int, seconds: float
) -> tuple[float, float]:
    """Return the images per second and the median seconds of a request."""
    until = time.perf_counter() + seconds

    def client(_number: int) -> list[float]:
        connection = http.client.HTTPConnection(*server.address, timeout=120)
        taken = [_ask(connection, model)]
        while time.perf_counter() < until:
            taken.append(_ask(connection, model))
        connection.close()
        return taken

    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        taken = [one for each in pool.map(client, range(clients)) for one in each]
    return len(taken) / (time.perf_counter() - began), statistics.median(taken)


def of_one_prompt(server: ServerProcess, n: int) -> dict[str, float]:
    """Return the seconds and counts of one request of n images."""

    def seen() -> dict[str, float]:
        spent = {
            phase: server.metric("sdstream_phase_seconds_sum", model="one", phase=phase)
            for phase in ("encoding", "sampling", "decoding")
        }
        counts = {
            how: server.metric("sdstream_conditions_total", model="one", source=how)
            for how in ("computed", "reused")
        }
        return spent | counts

    before = seen()
    connection = http.client.HTTPConnection(*server.address, timeout=120)
    _ask(connection, "one", n)
    connection.close()
    return {name: value - before[name] for name, value in seen().items()}


def measured(server: ServerProcess, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures of both tables."""
    for form in FORMS:  # until all workers of the form are loaded
        for _ in range(2):
            throughput(server, form, available_cores() + 1, 0)
    rates: dict[tuple[str, int], list[tuple[float, float]]] = {
        (form, clients): [] for form in FORMS for clients in CLIENTS
    }
    prompts: dict[int, list[dict[str, float]]] = {n: [] for n in COUNTS}
    for number in range(rounds):
        for form, clients in random.sample([*rates], len(rates)):
            rates[form, clients].append(throughput(server, form, clients, seconds))
        for n in COUNTS:
            prompts[n].append(of_one_prompt(server, n))
        print(f"round {number + 1}", file=sys.stderr)
    return {
        "workers": {form: server.metric("sdstream_worker_up", model=form) for form in FORMS},
        "rates": [
            {
                "model": form,
                "clients": clients,
                "images_per_second": statistics.median(rate for rate, _ in found),
                "seconds": statistics.median(taken for _, taken in found),
            }
            for (form, clients), found in rates.items()
        ],
        "prompts": [
            {"n": n, **{key: statistics.median(one[key] for one in found) for key in found[0]}}
            for n, found in prompts.items()
        ],
    }


def tables(figures: dict[str, Any]) -> tuple[Table, Table]:
    """Return the figures as tables."""
    rates = Table("model", "workers", "clients", "images/s", "s a request", box=None)
    for row in figures["rates"]:
        workers = f"{figures['workers'][row['model']]:.0f}"
        rates.add_row(
            *(row["model"], workers, str(row["clients"])),
            *(f"{row['images_per_second']:.2f}", f"{row['seconds']:.2f}"),
        )
    names = ("encoding", "sampling", "decoding", "computed", "reused")
    prompts = Table("images of a prompt", *names, box=None)
    for row in figures["prompts"]:
        cells = [f"{row[name]:.3f}" for name in names[:3]] + [
            f"{row[name]:.0f}" for name in names[3:]
        ]
        prompts.add_row(str(row["n"]), *cells)
    return rates, prompts


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="of all cells")
    parser.add_argument("--seconds", type=float, default=4.0, help="for which clients ask")
    parser.add_argument("--json", type=Path, help="write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with running_server(folder, models=_catalogue(folder)) as server:
            figures = measured(server, options.rounds, options.seconds)
    console = Console(width=100)
    for table in tables(figures):
        console.print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
