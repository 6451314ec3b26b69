"""Cancellation inside the native CPU backend, without Python code and without the GIL.

ggml calls an abort callback before every node of a graph. This module installs libc's ``strlen`` as
the callback. Its argument is a buffer of two bytes: an empty string means "continue", and a string
of one character means "stop". No Python code runs on the compute threads.

Two choices are unusual and intentional:

1. The backends are found through the layout of a private struct. The first pointer behind
   ``sd_ctx_t *`` is the implementation, whose first fields are backend, clip_backend,
   control_net_backend and vae_backend. This layout is known for the pinned release only, so
   ``attach`` tests the flag with a small graph before anything relies on it.
2. An abort while the text encoder runs triggers a GGML_ASSERT, which ends the process. A request to
   abort is therefore stored until ``arm`` is called at the image's first step.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, Final

_BACKEND_FIELDS: Final = 4
_STATUS_ABORTED: Final = 1
_STATUS_SUCCESS: Final = 0
_TYPE_F32: Final = 0


class _InitParams(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = (
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    )


def _declare(lib: Any) -> None:
    """Declare the C signatures of the ggml functions that this module uses."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures = {
        "ggml_backend_is_cpu": (ctypes.c_bool, [pointer]),
        "ggml_backend_cpu_set_abort_callback": (None, [pointer, pointer, pointer]),
        "ggml_init": (pointer, [_InitParams]),
        "ggml_free": (None, [pointer]),
        "ggml_new_tensor_1d": (pointer, [pointer, ctypes.c_int, ctypes.c_int64]),
        "ggml_add": (pointer, [pointer, pointer, pointer]),
        "ggml_new_graph": (pointer, [pointer]),
        "ggml_build_forward_expand": (None, [pointer, pointer]),
        "ggml_backend_alloc_ctx_tensors": (pointer, [pointer, pointer]),
        "ggml_backend_buffer_free": (None, [pointer]),
        "ggml_backend_graph_compute": (ctypes.c_int, [pointer, pointer]),
        "ggml_tensor_overhead": (size, []),
        "ggml_graph_overhead": (size, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


class AbortFlag:
    """A flag that stops the computation of one native context on the CPU.

    Any thread may call ``request``. The generating thread calls ``reset`` before each image and
    ``arm`` at its first sampling step.
    """

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self._flag = ctypes.create_string_buffer(2)
        # This reference keeps the callback alive: the backend stores only the raw pointer.
        self._strlen = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p)
        self._lock = threading.Lock()
        self._requested = False
        self._armed = False
        #: True if all backends that ``attach`` found compute on the CPU.
        self.on_cpu = False
        #: The ``ggml_backend_t`` that samples; None before ``attach`` or if it is unknown.
        self.backend: int | None = None

    def attach(self, context: Any) -> bool:
        """Install the flag in the backends of a context; return whether the flag works.

        Args:
            context: The ``sd_ctx_t *`` of a loaded model.
        """
        works = self._attach(context, _BACKEND_FIELDS)
        self.backend = next(iter(self._backends(context, 1)), None)
        return works

    def attach_upscaler(self, context: Any) -> bool:
        """Install the flag in an ``upscaler_ctx_t *``, whose first field is its only backend."""
        return self._attach(context, 1)

    def _attach(self, context: Any, fields: int) -> bool:
        try:
            _declare(self._lib)
        except AttributeError:  # another build of the library does not export them
            return False
        backends = self._backends(context, fields)
        self.on_cpu = all(self._lib.ggml_backend_is_cpu(b) for b in backends)
        if not backends or not self.on_cpu:
            return False
        data = ctypes.cast(self._flag, ctypes.c_void_p)
        for backend in backends:
            self._lib.ggml_backend_cpu_set_abort_callback(backend, self._strlen, data)
        return all(self._obeys(backend) for backend in backends)

    def reset(self) -> None:
        """Clear an earlier request, because a new image begins."""
        with self._lock:
            self._requested = self._armed = False
            self._set()

    def request(self) -> None:
        """Stop the image as soon as it is safe to do so."""
        with self._lock:
            self._requested = True
            self._set()

    def arm(self) -> None:
        """Allow stopping from now on, because it is safe."""
        with self._lock:
            self._armed = True
            self._set()

    @property
    def address(self) -> int:
        """Address of a byte that is not zero while computations must stop."""
        return ctypes.addressof(self._flag)

    @property
    def stopped(self) -> bool:
        """True if computations were stopped, so that their results may be incomplete."""
        return self._armed and self._requested

    @property
    def requested(self) -> bool:
        """True if an abort of this image was requested."""
        return self._requested

    def _set(self) -> None:
        """Set or clear the flag; the caller holds the lock."""
        self._flag[0] = b"\1" if self.stopped else b"\0"

    def _backends(self, context: Any, count: int) -> set[int]:
        implementation = ctypes.cast(context, ctypes.POINTER(ctypes.c_void_p))[0]
        if not implementation:
            return set()
        fields = ctypes.cast(implementation, ctypes.POINTER(ctypes.c_void_p))
        found = (fields[index] for index in range(count))
        return {backend for backend in found if backend is not None}

    def _obeys(self, backend: int) -> bool:
        """Return whether the flag stops a small graph when set, and lets it run when cleared.

        A request that comes meanwhile waits for the lock, and is not lost.
        """
        lib = self._lib
        size = 8 * lib.ggml_tensor_overhead() + lib.ggml_graph_overhead()
        context = lib.ggml_init(_InitParams(size, None, True))
        tensor = lib.ggml_new_tensor_1d(context, _TYPE_F32, 16)
        graph = lib.ggml_new_graph(context)
        lib.ggml_build_forward_expand(graph, lib.ggml_add(context, tensor, tensor))
        buffer = lib.ggml_backend_alloc_ctx_tensors(context, backend)
        try:
            with self._lock:
                self._flag[0] = b"\1"
                while_up: int = lib.ggml_backend_graph_compute(backend, graph)
                self._flag[0] = b"\0"
                while_down: int = lib.ggml_backend_graph_compute(backend, graph)
                self._set()
            return while_up == _STATUS_ABORTED and while_down == _STATUS_SUCCESS
        finally:
            lib.ggml_backend_buffer_free(buffer)
            lib.ggml_free(context)
