"""The check of a request's LoRAs against the loaded model."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from sdstream.core.errors import EngineError, Reason
from sdstream.core.text import shown
from sdstream.engine.native.names import runtime_name, version_number
from sdstream.weights import headers, inspection
from sdstream.weights.loras import LoraUnfit, Weight, check_fit, is_quantised

#: Component -> the prefixes that the runtime adds to its tensors' names, in models with a UNet and
#: in others (new_sd_ctx in src/stable-diffusion.cpp). LoRAs do not change other components.
_PREFIXES: Final = {
    "model": ("", ""),
    "diffusion_model": ("model.diffusion_model.", "model.diffusion_model."),
    "clip_l": ("cond_stage_model.transformer.", "text_encoders.clip_l.transformer."),
    "clip_g": ("cond_stage_model.1.transformer.", "text_encoders.clip_g.transformer."),
    "t5xxl": ("text_encoders.t5xxl.transformer.", "text_encoders.t5xxl.transformer."),
    "llm": ("text_encoders.llm.", "text_encoders.llm."),
    "vae": ("vae.", "vae."),
}
_NOT_FINITE: Final = (
    "The LoRA '{name}' is damaged: its tensor '{tensor}' contains NaN or infinite values, so the "
    "image may have a single colour or no content."
)
#: Name of a type of floats -> unsigned integers of the same size, and the bits of the exponent.
_EXPONENTS: Final = {
    "f16": ("<u2", 0x7C00),
    "bf16": ("<u2", 0x7F80),
    "f32": ("<u4", 0x7F80_0000),
    "f64": ("<u8", 0x7FF0_0000_0000_0000),
}


class LoraCheck:
    """The check, before an image, that its LoRAs can be applied, completely or in part."""

    def __init__(
        self, files: Mapping[str, Path], *, unet: bool, wtype: str, mode: str, version: str
    ) -> None:
        """Store the description of the model; the first check reads the headers of its files.

        Args:
            files: Component of models.yaml -> file.
            unet: The model has a UNet.
            wtype: Type that the weights were converted to; empty if they were not converted.
            mode: The runtime option ``lora_mode``.
            version: Name of the kind of model in the runtime's log.
        """
        self._files = files
        self._unet = unet
        self._wtype = wtype
        self._mode = mode
        self._version = version_number(version)
        self._model: dict[str, Weight] | None = None

    def check(self, name: str, path: Path) -> tuple[str, ...]:
        """Return a warning for each part of a LoRA that is not applied, and for NaN values.

        Raises:
            EngineError: The LoRA would crash the runtime, or have no effect.
        """
        found = inspection.read_lora(name, path)
        status = path.stat()
        broken = _not_finite(path, status.st_mtime_ns, status.st_size)
        damaged = (_NOT_FINITE.format(name=name, tensor=shown(broken)),) if broken else ()
        if runtime_name is None or self._version is None:
            unchecked = f"The LoRA '{name}' was not checked against the model on this system."
            return (*damaged, unchecked)
        if self._model is None:
            self._model = self._weights(self._version)
        tensors = {
            runtime_name(f"lora.{tensor}", self._version): shape
            for tensor, shape in found.shapes.items()
        }
        try:
            left_out = check_fit(tensors, found.shapes, self._model, self._mode)
        except LoraUnfit as error:
            message = f"The LoRA '{name}' {error}."
            raise EngineError(Reason.LORA_UNUSABLE, message) from None
        return (*damaged, *(f"The LoRA '{name}' {predicate}." for predicate in left_out))

    def _weights(self, version: int) -> dict[str, Weight]:
        assert runtime_name is not None
        weights = {}
        for component, path in self._files.items():
            if component not in _PREFIXES:
                continue
            prefix = _PREFIXES[component][0 if self._unet else 1]
            for tensor in headers.read(path).tensors:
                whole = tensor.name if tensor.name.startswith(prefix) else prefix + tensor.name
                kept = self._wtype if self._wtype and len(tensor.shape) > 1 else tensor.type
                weight = Weight(tensor.shape, is_quantised(kept))
                weights[runtime_name(whole, version)] = weight
        return weights


@lru_cache(maxsize=64)
def _not_finite(path: Path, _modified: int, _size: int) -> str | None:
    """Return the name of a tensor with NaN or infinite values; None if all values are finite.

    The result is cached, because it depends on all bytes of the file.
    """
    with path.open("rb") as file:
        for tensor in headers.read(path).tensors:
            if tensor.type not in _EXPONENTS:
                continue
            kind, exponent = _EXPONENTS[tensor.type]
            file.seek(tensor.offset)
            bits = np.fromfile(file, kind, tensor.elements)
            if np.any((bits & exponent) == exponent):
                return tensor.name
    return None
