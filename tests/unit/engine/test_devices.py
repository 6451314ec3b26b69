"""The names and the memory of devices, by a stand-in for the library."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from sdstream.engine.native.devices import device_name, free_gpu_bytes, has_gpu


class Library:
    """A library with a processor (device 1) and GPUs (devices 2 and 3)."""

    def __init__(self, kinds: dict[int, int]) -> None:
        def memory(device: int, free: Any, total: Any) -> None:
            ctypes.cast(free, ctypes.POINTER(ctypes.c_size_t))[0] = device * 1000
            ctypes.cast(total, ctypes.POINTER(ctypes.c_size_t))[0] = 9000

        self.ggml_backend_dev_count = lambda: len(kinds)
        self.ggml_backend_dev_get = lambda index: [*kinds][index]
        self.ggml_backend_dev_type = lambda device: kinds[device]
        self.ggml_backend_dev_memory = memory
        self.ggml_backend_dev_description = lambda device: (
            f" Card\N{REGISTERED SIGN} {device}".encode()
        )
        self.ggml_backend_get_device = lambda backend: backend - 100


@pytest.mark.parametrize(
    ("kinds", "free"),
    [({1: 0}, 0), ({1: 0, 2: 1, 3: 1}, 2000), ({1: 0, 3: 2}, 3000), ({1: 0, 2: 3}, 0), ({}, 0)],
)
def test_the_memory_of_the_first_gpu(kinds: dict[int, int], free: int) -> None:
    """A GPU may have its own memory or use the machine's; an accelerator of the CPU is no GPU."""
    lib = Library(kinds)
    assert has_gpu(lib) is bool(free)
    assert free_gpu_bytes(lib) == free


def test_the_name_of_a_device() -> None:
    """It is the driver's name, without spaces around it."""
    lib = Library({1: 0})
    assert device_name(lib, 102) == "Card\N{REGISTERED SIGN} 2"
    assert device_name(lib, None) == ""


def test_a_library_without_these_functions() -> None:
    """Nothing is known about its devices."""
    lib = object()
    assert not has_gpu(lib)
    assert (free_gpu_bytes(lib), device_name(lib, 102)) == (0, "")
