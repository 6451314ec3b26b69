"""The functions that the project's patches (engine/patches) add to the runtime's library."""

from __future__ import annotations

import ctypes
from typing import Any


class Patches:
    """The added functions; each does nothing if the library was built without the patches."""

    def __init__(self, lib: Any) -> None:
        pointer, integer = ctypes.c_void_p, ctypes.c_uint64
        counts = [pointer, ctypes.POINTER(integer), ctypes.POINTER(integer)]
        signatures = {
            "sdstream_cancel": [pointer, ctypes.c_int],
            "sdstream_set_condition_cache": [pointer, integer],
            "sdstream_condition_counts": counts,
            "sdstream_set_threads": [pointer, ctypes.c_int],
        }
        #: True if the library was built with the patches.
        self.present = all(hasattr(lib, name) for name in signatures)
        if self.present:
            self._lib = lib
            for name, arguments in signatures.items():
                function = getattr(lib, name)
                function.restype, function.argtypes = None, arguments

    def cancel(self, context: Any, *, cancelled: bool) -> None:
        """Stop sampling before its next step, or allow it again; any thread may call this."""
        if self.present:
            self._lib.sdstream_cancel(context, int(cancelled))

    def set_threads(self, context: Any, threads: int) -> None:
        """Set the CPU threads from the next computation on; any thread may call this."""
        if self.present:
            self._lib.sdstream_set_threads(context, threads)

    def keep_conditions(self, context: Any, limit: int) -> None:
        """Cache the conditions (encoded prompts) of the last prompts, up to ``limit`` bytes."""
        if self.present:
            self._lib.sdstream_set_condition_cache(context, limit)

    def condition_counts(self, context: Any) -> tuple[int, int]:
        """Return the numbers of conditions computed and reused since the model was loaded."""
        computed, reused = ctypes.c_uint64(), ctypes.c_uint64()
        if self.present:
            self._lib.sdstream_condition_counts(
                context, ctypes.byref(computed), ctypes.byref(reused)
            )
        return computed.value, reused.value
