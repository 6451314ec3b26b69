"""Records in the worker process when the engine generated and when it emitted each step's event.

Python imports a module of this name at its start if the module's folder is on PYTHONPATH. The
benchmark sets that variable for the server, whose worker inherits the environment. So the
benchmark measures the unchanged ``sdstream serve``. This module acts in the worker only.

It appends one JSON line per image to the file that BENCH_PROBE_LOG names:

    job           id of the job
    pid           process id of the worker
    began, ended  times before and after Engine.draw, in seconds of CLOCK_MONOTONIC, which all
                  processes of a machine share
    steps         [[index of the image, finished steps, seconds at which its event was emitted], …]

The clock is read before the event is encoded and sent, a few microseconds after the runtime's
callback. The line is written by one system call after the generation. It takes about ten
microseconds per image, which count as overhead of the service.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def _install(log: int) -> None:
    # Imported here because every Python process with this folder on its path runs this module.
    from sdstream.core.messages import Event, Phase, Progress
    from sdstream.engine.native.engine import NativeEngine

    drawn = NativeEngine.draw

    def draw(self: NativeEngine, job: str, request: Any, inputs: Any, index: int, emit: Any) -> Any:
        steps: list[tuple[int, int, float]] = []

        def emit_and_note(event: Event) -> None:
            if isinstance(event, Progress) and event.phase is Phase.SAMPLING and event.step:
                steps.append((event.index, event.step, time.monotonic()))
            emit(event)

        began = time.monotonic()
        image = drawn(self, job, request, inputs, index, emit_and_note)
        ended = time.monotonic()
        note = {"job": job, "pid": os.getpid(), "began": began, "ended": ended, "steps": steps}
        os.write(log, json.dumps(note).encode() + b"\n")
        return image

    NativeEngine.draw = draw  # type: ignore[method-assign]


_path = os.environ.get("BENCH_PROBE_LOG")
if _path and sys.orig_argv[1:3] == ["-m", "sdstream.engine.child"]:
    _install(os.open(_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
