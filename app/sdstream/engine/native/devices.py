"""The devices that ggml, the runtime's tensor library, can compute on: their names and memory."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, Final

#: Values of ggml_backend_dev_type: a GPU with its own memory, and a GPU that uses main memory.
_GPU_KINDS: Final = {1, 2}


def _declare(lib: Any) -> bool:
    """Declare the C signatures; return False if the library does not export the functions."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures = {
        "ggml_backend_dev_count": (size, []),
        "ggml_backend_dev_get": (pointer, [size]),
        "ggml_backend_dev_type": (ctypes.c_int, [pointer]),
        "ggml_backend_dev_memory": (None, [pointer, ctypes.POINTER(size), ctypes.POINTER(size)]),
        "ggml_backend_dev_description": (ctypes.c_char_p, [pointer]),
        "ggml_backend_get_device": (pointer, [pointer]),
    }
    if not all(hasattr(lib, name) for name in signatures):
        return False
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return True


def has_gpu(lib: Any) -> bool:
    """Return True if the runtime finds a GPU that this process may use."""
    return any(_gpus(lib))


def free_gpu_bytes(lib: Any) -> int:
    """Return the free memory of the first GPU, by its driver; 0 without a GPU.

    The runtime uses the first GPU that the process may use.
    """
    for gpu in _gpus(lib):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        lib.ggml_backend_dev_memory(gpu, ctypes.byref(free), ctypes.byref(total))
        return free.value
    return 0


def device_name(lib: Any, backend: int | None) -> str:
    """Return the name of a backend's processor or GPU, such as "NVIDIA L4"; empty if unknown."""
    device = lib.ggml_backend_get_device(backend) if backend and _declare(lib) else None
    name: bytes | None = lib.ggml_backend_dev_description(device) if device else None
    return (name or b"").decode("utf-8", "replace").strip()


def _gpus(lib: Any) -> Iterator[int]:
    if _declare(lib):
        devices = map(lib.ggml_backend_dev_get, range(lib.ggml_backend_dev_count()))
        yield from (device for device in devices if lib.ggml_backend_dev_type(device) in _GPU_KINDS)
