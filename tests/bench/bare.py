"""The yardstick: the native engine alone in a process, without server, sockets or image files.

It is set up as the worker process is: the same load command, the same environment, a thread with
a large stack. Its first line says ``threads``, once the model is loaded. From then on it reads a
JSON object a line from stdin, the fields of work.Work, draws, and answers with a line: ``seconds``
of the draw and ``sha256`` of the pixels. Started by contestants.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from typing import Any, TextIO

from work import Work, load_command, resolved

from sdstream.core.pixels import Inputs
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
    engine.load(load, lambda _event: None)
    _answer(answers, {"threads": load.runtime["threads"] or available_cores()})
    for line in sys.stdin:
        request = resolved(Work(**json.loads(line)), catalog)
        began = time.monotonic()
        image = engine.draw("bare", request, Inputs(), 0, lambda _event: None)
        seconds = time.monotonic() - began
        assert image is not None
        _answer(answers, {"seconds": seconds, "sha256": hashlib.sha256(image.blob).hexdigest()})


def _answer(answers: TextIO, fields: dict[str, Any]) -> None:
    print(json.dumps(fields), file=answers, flush=True)


def _main() -> None:
    # Whatever C code prints must not end up between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.stack_size(_STACK_BYTES)
    thread = threading.Thread(target=_serve, args=(answers,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
