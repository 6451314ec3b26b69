"""The process that converts weights; started by weights/convert.py and by nothing else.

``python -m sdstream.engine.native.convert ORDER``, ORDER being a JSON object. It reports on stdout,
one JSON object a line, and reads nothing from stdin, whose end means that the parent is gone: then
it removes what it has written and leaves.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from stable_diffusion_cpp import stable_diffusion_cpp as sd  # noqa: TID251

from sdstream.engine.native.bindings import LOG_LEVELS, lib

_REPORT_SECONDS: Final = 0.2


def convert(
    source: str, vae: str, target: str, wtype: str, rules: str, progress: Callable[[int, int], None]
) -> str:
    """Write weights in other types; the whole result is held in memory.

    It takes over the process' callbacks, so no engine may be in it.

    Args:
        source: A file of weights.
        vae: Another one, whose tensors get the prefix "vae."; empty for none.
        target: Is overwritten; .safetensors decides for that format, all else is GGUF.
        wtype: For all tensors that can have it.
        rules: "PATTERN=TYPE,…" (ECMAScript); an unknown type is ignored, a wrong pattern aborts.
        progress: Called with the tensors that are read and quantised, and their number.

    Returns:
        What went wrong, empty when nothing did.
    """
    errors: list[str] = []

    def on_log(level: int, text: bytes, _data: Any) -> None:
        if 0 <= level < len(LOG_LEVELS) and LOG_LEVELS[level] >= logging.ERROR:
            errors.append(text.decode("utf-8", "replace").strip().rpartition(" - ")[2][:200])

    def on_progress(step: int, steps: int, _seconds: float, _data: Any) -> None:
        progress(step, steps)

    callbacks = sd.sd_log_callback(on_log), sd.sd_progress_callback(on_progress)
    sd.sd_set_log_callback(callbacks[0], None)
    sd.sd_set_progress_callback(callbacks[1], None)
    number = lib.str_to_sd_type(wtype.encode())
    paths = (source.encode(), vae.encode(), target.encode())
    done = sd.convert(*paths, number, rules.encode(), False)
    return "" if done else (errors or ["no reason was given"])[0]


class _Conversion(threading.Thread):
    """Run the converter; the main thread reads its log."""

    def __init__(self, order: dict[str, str]) -> None:
        super().__init__(daemon=True)
        self.state: dict[str, Any] = {}
        self._order = order

    def run(self) -> None:
        failed = convert(**self._order, progress=self._count)
        if failed:
            self.state["failed"] = f"The runtime could not convert it: {failed}."

    def _count(self, done: int, count: int) -> None:
        self.state |= {"done": done, "of": count}


def main(order: str) -> None:
    """Convert, and report until it is done.

    Args:
        order: JSON of the arguments of ``convert``.
    """
    words = json.loads(order)
    target = Path(words["target"])
    # The runtime prints a line now and then, which must not come between the reports.
    reports = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    work = _Conversion(words)
    work.start()
    try:
        while work.is_alive():
            ended, _, _ = select.select([sys.stdin], [], [], _REPORT_SECONDS)
            if ended:
                raise BrokenPipeError
            _report(reports, work, target)
        _report(reports, work, target)
    except BrokenPipeError:  # the parent is gone
        target.unlink(missing_ok=True)
        os._exit(1)


def _report(reports: IO[str], work: _Conversion, target: Path) -> None:
    written = target.stat().st_size if target.exists() else 0
    reports.write(json.dumps({**work.state, "written": written}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
