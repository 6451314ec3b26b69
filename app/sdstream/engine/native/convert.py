"""The process that converts weights; only weights/convert.py starts it.

``python -m sdstream.engine.native.convert ORDER`` takes the order as a JSON object. The process
writes reports to stdout, one JSON object on each line. It reads no data from stdin: the end of
stdin means that the parent has ended, and the process then removes its output file and exits.
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
    """Convert weights to other types; the whole result is held in memory.

    The function replaces the library's callbacks, so the process must not contain an engine.

    Args:
        source: File of weights.
        vae: Second file, whose tensors get the prefix "vae."; empty for none.
        target: Output file, which is overwritten. The ending .safetensors selects that format; all
            other endings select GGUF.
        wtype: Type for all tensors that support it.
        rules: Types of single tensors as "PATTERN=TYPE,…", with ECMAScript patterns. The library
            ignores an unknown type; an invalid pattern aborts the process.
        progress: Called with the number of tensors that are finished and the number of all tensors.

    Returns:
        The reason for a failure; empty on success.
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
    """The thread that runs the conversion; the main thread reads its ``state``."""

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
    """Convert weights, and report the progress until the conversion is finished.

    Args:
        order: The arguments of ``convert`` as JSON.
    """
    words = json.loads(order)
    target = Path(words["target"])
    # The runtime sometimes prints to stdout. Its output goes to stderr, apart from the reports.
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
    except BrokenPipeError:  # the parent has ended
        target.unlink(missing_ok=True)
        os._exit(1)


def _report(reports: IO[str], work: _Conversion, target: Path) -> None:
    written = target.stat().st_size if target.exists() else 0
    reports.write(json.dumps({**work.state, "written": written}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
