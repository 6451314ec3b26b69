"""Translation of the names of tensors in weight files to the runtime's own names.

Weight files name the same tensor in a dozen ways. The runtime translates all of these names to its
own names, and it uses its own names to match a LoRA with the model. The function that translates
them is not part of the C API, but the library exports it:
``std::string convert_tensor_name(std::string name, SDVersion version)``.

This module calls it with the C++ calling convention of x86-64 and libstdc++: an argument of a class
type is passed as a pointer to the caller's copy, and the result is written to the address in the
first argument. A call with a known result verifies this. ``runtime_name`` is ``None`` on other
processors, and if the library does not export the function or the verification fails.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable
from typing import Any, ClassVar, Final

from sdstream.engine.native.bindings import free, lib, malloc

#: Names of the kinds of models in the runtime's log, in the order of its enumeration SDVersion
#: (src/model.h and model_version_to_str of stable-diffusion-cpp-python 0.4.7).
_VERSIONS: Final = (
    "SD 1.x", "SD 1.x Inpaint", "Instruct-Pix2Pix", "SD 1.x Tiny UNet", "SD 2.x",
    "SD 2.x Inpaint", "SD 2.x Tiny UNet", "SDXS (512-DS)", "SDXS (09)", "SDXL", "SDXL Inpaint",
    "SDXL Instruct-Pix2Pix", "SDXL (Vega)", "SDXL (SSD1B)", "SVD", "SD3.x", "Flux", "Flux Fill",
    "Flux Control", "Flex.2", "Chroma Radiance", "Wan 2.x", "Wan 2.2 I2V", "Wan 2.2 TI2V",
    "Qwen Image", "Anima", "Flux.2", "Flux.2 klein", "Z-Image", "Ovis Image", "Ernie Image",
)  # fmt: skip
_SYMBOL: Final = (
    "_Z19convert_tensor_nameNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE9SDVersion"
)
_KNOWN: Final = (
    "lora.lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight",
    "lora.model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight.lora_up",
)


class _String(ctypes.Structure):
    """``std::string`` of libstdc++.

    The structure itself contains a short text; a longer text is allocated on the heap.
    """

    data: int | None
    length: int

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("inside", ctypes.c_char * 16),
    )
    #: Offset of ``inside``.
    _INSIDE: ClassVar = 16

    @classmethod
    def of(cls, text: bytes) -> _String:
        """Return a string whose text is on the heap; the runtime may free or replace it."""
        memory = malloc(len(text) + 1)
        ctypes.memmove(memory, text + b"\0", len(text) + 1)
        capacity = len(text).to_bytes(8, "little").ljust(16, b"\0")
        string = cls(memory, len(text))
        ctypes.memmove(ctypes.addressof(string) + cls._INSIDE, capacity, 16)
        return string

    def take(self) -> bytes:
        """Return the text and free its memory."""
        text = ctypes.string_at(self.data, self.length) if self.data else b""
        if self.data not in (None, ctypes.addressof(self) + self._INSIDE):
            free(self.data)
        self.data = None
        return text


def version_number(words: str) -> int | None:
    """Return the runtime's number for a kind of model; None if the name is unknown."""
    return _VERSIONS.index(words) if words in _VERSIONS else None


def _bound() -> Callable[[str, int], str] | None:
    function: Any = getattr(lib, _SYMBOL, None)
    if function is None or platform.machine() not in ("x86_64", "AMD64"):
        return None
    string = ctypes.POINTER(_String)
    function.argtypes = [string, string, ctypes.c_int]
    function.restype = None

    def convert(name: str, version: int) -> str:
        given, result = _String.of(name.encode()), _String()
        function(ctypes.byref(result), ctypes.byref(given), version)
        given.take()
        return result.take().decode("utf-8", "replace")

    given, wanted = _KNOWN
    return convert if convert(given, 0) == wanted else None


#: Returns the runtime's name of a tensor. Its arguments are the name in the file and the number of
#: the kind of model. The value is ``None`` if the library's function cannot be used.
runtime_name: Final = _bound()
