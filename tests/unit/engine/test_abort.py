"""The flag that cancels computations, without the native library."""

from __future__ import annotations

import ctypes
import threading
from unittest.mock import MagicMock

from sdstream.engine.native.abort import AbortFlag

STOPPED, DONE = 1, 0


def test_a_cancel_while_the_flag_is_tested() -> None:
    """A cancel during the test of an upscaler's backend disturbs nothing and is not lost."""
    lib = MagicMock()
    lib.ggml_tensor_overhead.return_value = lib.ggml_graph_overhead.return_value = 1
    lib.ggml_backend_is_cpu.return_value = True
    flag = AbortFlag(lib)
    cancels: list[threading.Thread] = []

    def compute(_backend: int, _graph: object) -> int:
        cancels.append(threading.Thread(target=flag.request))
        cancels[-1].start()
        cancels[-1].join(0.1)
        return STOPPED if ctypes.c_char.from_address(flag.address).value == b"\1" else DONE

    lib.ggml_backend_graph_compute.side_effect = compute
    backend = (ctypes.c_void_p * 1)(1)
    context = (ctypes.c_void_p * 1)(ctypes.addressof(backend))
    flag.arm()
    assert flag.attach_upscaler(ctypes.cast(context, ctypes.c_void_p))
    for cancel in cancels:
        cancel.join()
    assert flag.stopped
    assert ctypes.c_char.from_address(flag.address).value == b"\1"
    flag.reset()
    assert ctypes.c_char.from_address(flag.address).value == b"\0"
