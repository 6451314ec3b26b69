"""Tensor names in complete models that llama-box has written; GPUStack publishes such models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

#: Family -> llama-box's prefix of a text encoder -> the runtime's prefix. A runtime with the
#: project's patches renames the tensors in the same way (engine/patches).
_NAMES: Final[Mapping[str, Mapping[str, str]]] = {
    "sd3": {
        "cond_stage_model.transformer.": "text_encoders.clip_l.transformer.",
        "cond_stage_model.1.transformer.": "text_encoders.clip_g.transformer.",
        "cond_stage_model.2.transformer.": "text_encoders.t5xxl.transformer.",
    },
    "flux": {
        "cond_stage_model.transformer.": "text_encoders.clip_l.transformer.",
        "cond_stage_model.1.transformer.": "text_encoders.t5xxl.transformer.",
    },
}


def own_name(name: str, families: Sequence[str]) -> str:
    """Return the runtime's name of a tensor that llama-box may have named.

    Other names are returned unchanged.

    Args:
        name: Name of the tensor in the file.
        families: Families of the file's diffusion model.
    """
    names = _NAMES.get(families[0], {}) if families else {}
    for prefix, own in names.items():
        if name.startswith(prefix):
            return own + name.removeprefix(prefix)
    return name
