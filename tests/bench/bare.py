"""The baseline: the native engine alone in a process, without server, sockets or image files.

It is set up like the worker process: the same load command, the same environment, and a thread
with a large stack. Once the model is loaded it prints a first line with ``threads``,
``kernels`` and ``peak``, which is the multiply-adds per CPU second that one thread of the kernels
reaches (0 without kernels). Then it reads lines from stdin, each a JSON object with the fields of
work.Work. It generates the image and prints a line with these fields:

- ``seconds``: duration of the generation
- ``cpu`` and ``phases``: CPU seconds of the process, in total and by phase
- ``work``: multiply-adds of the kernels by phase
- ``sha256``: hash of the pixels, which are also written to the file BENCH_PIXELS if it is set

contestants.py and speed.py start this program.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from work import Work, load_command, resolved

from sdstream.core.messages import Event, Phase, Progress
from sdstream.core.pixels import Inputs
from sdstream.core.runtime_options import KERNELS_OFF
from sdstream.engine.native import kernels
from sdstream.engine.native.bindings import lib
from sdstream.engine.native.engine import NativeEngine
from sdstream.settings import Settings
from sdstream.system import available_cores
from sdstream.weights.discovery import load_catalog

#: As in the worker (engine/child.py).
_STACK_BYTES = 512 * 2**20


def _serve(answers: TextIO) -> None:
    settings = Settings()
    catalog = load_catalog(settings)
    load = load_command(settings, catalog)
    engine = NativeEngine()
    pixels = os.environ.get("BENCH_PIXELS")
    loaded = engine.load(load, lambda _event: None)
    threads = load.runtime["threads"] or available_cores()
    peak, multiply_adds = _meters(loaded.kernels)
    _answer(answers, {"threads": threads, "kernels": loaded.kernels, "peak": peak})
    for line in sys.stdin:
        request = resolved(Work(**json.loads(line)), catalog)
        clock, work = _PhaseMeter(time.process_time), _PhaseMeter(multiply_adds)

        def heard(event: Event, meters: tuple[_PhaseMeter, ...] = (clock, work)) -> None:
            for meter in meters:
                meter.heard(event)

        began, cpu = time.monotonic(), time.process_time()
        image = engine.draw("bare", request, Inputs(), 0, heard)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        assert image is not None
        if pixels:
            Path(pixels).write_bytes(image.blob)
        phases = {"phases": clock.ended(), "work": work.ended()}
        fields = {"seconds": seconds, "cpu": cpu, **phases}
        _answer(answers, {**fields, "sha256": hashlib.sha256(image.blob).hexdigest()})


def _meters(name: str) -> tuple[float, Callable[[], int]]:
    """Return the peak of the kernels in use, and a function that counts their multiply-adds."""
    if name == KERNELS_OFF:
        return 0.0, lambda: 0
    library = kernels.load(name.split()[0], Path(lib._name).parent)
    library.sdk_peak.restype = ctypes.c_double
    library.sdk_multiply_adds.restype = ctypes.c_int64
    return library.sdk_peak(), library.sdk_multiply_adds


class _PhaseMeter:
    """How much a counter rises in each phase of one image."""

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read
        self._phase, self._began = Phase.ENCODING, read()
        self._risen: dict[str, float] = {}

    def heard(self, event: Event) -> None:
        """Process an event of the engine."""
        if isinstance(event, Progress) and event.phase is not self._phase:
            self._close()
            self._phase = event.phase

    def ended(self) -> dict[str, float]:
        """Return phase -> difference."""
        self._close()
        return self._risen

    def _close(self) -> None:
        now = self._read()
        self._risen[self._phase] = self._risen.get(self._phase, 0.0) + now - self._began
        self._began = now


def _answer(answers: TextIO, fields: dict[str, Any]) -> None:
    print(json.dumps(fields), file=answers, flush=True)


def _main() -> None:
    # Output of C code must not appear between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(answers,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
