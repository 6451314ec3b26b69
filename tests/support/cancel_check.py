"""Cancels a job of each sampler by the runtime's own flag, as on a GPU: ``CACHE [SAMPLER ...]``.

The abort callback of ggml's CPU backend is disabled, so that only the flag can stop a job. Prints a
JSON object: sampler -> [whether no image came, steps seen, whether the next image was right].
"""

from __future__ import annotations

import json
import os
import sys
import threading
from dataclasses import replace
from unittest import mock

from sdstream.core.messages import Event, Load, Phase, Progress
from sdstream.core.pixels import Inputs
from sdstream.core.request import GenerationRequest
from sdstream.core.runtime_options import RuntimeOptions
from sdstream.engine.native.abort import AbortFlag
from sdstream.engine.native.engine import NativeEngine

_STEPS = 5
_CANCELLED_AT = 3


def _check(samplers: list[str], cache: str) -> dict[str, list[object]]:
    mock.patch.object(AbortFlag, "attach", return_value=False).start()
    engine = NativeEngine()
    runtime = RuntimeOptions(tae=True, preview="decode").model_dump() | {"kernels": "auto"}
    files = {"model": "builtin:drawings"}
    loaded = engine.load(Load("m", "ovis_image", files, cache, runtime), lambda _event: None)
    assert loaded.can_abort
    request = GenerationRequest(
        model="m", prompt="a red circle", negative_prompt="", width=64, height=64, seed=7,
        n=1, steps=_STEPS, sampler="euler", schedule="discrete", cfg_scale=1.0,
    )  # fmt: skip
    results: dict[str, list[object]] = {}
    for name in samplers:
        this = replace(request, sampler=name)
        whole = engine.draw("whole", this, Inputs(), 0, lambda _event: None)
        seen: list[int] = []

        def hear(event: Event, seen: list[int] = seen) -> None:
            if isinstance(event, Progress) and event.phase is Phase.SAMPLING:
                seen.append(event.step)
                if event.step == _CANCELLED_AT:
                    engine.abort()

        cancelled = engine.draw("cancelled", this, Inputs(), 0, hear)
        engine.clear_abort()
        again = engine.draw("again", this, Inputs(), 0, lambda _event: None)
        assert whole is not None
        right = again is not None and again.blob == whole.blob
        results[name] = [cancelled is None, max(seen), right]
    return results


def main(cache: str, *samplers: str) -> None:
    """Check on a thread with the stack size of a worker, and print the results."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the C code may print to stdout
    results: dict[str, list[object]] = {}
    threading.stack_size(512 * 2**20)
    thread = threading.Thread(target=lambda: results.update(_check(list(samplers), cache)))
    thread.start()
    thread.join()
    print(json.dumps(results), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
