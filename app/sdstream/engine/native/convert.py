"""The process that converts weights; started by weights/convert.py and by nothing else.

``python -m sdstream.engine.native.convert ORDER``, ORDER being a JSON object. It reports on stdout,
one JSON object a line, and reads nothing from stdin, whose end means that the parent is gone: then
it removes what it has written and leaves.
"""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from pathlib import Path
from typing import IO, Any, Final

from sdstream.engine.native.engine import convert

_REPORT_SECONDS: Final = 0.2


class _Conversion(threading.Thread):
    """The runtime at work; what it says is read by the main thread."""

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
        order: JSON of the arguments of ``native.convert``.
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
