"""The LoRAs of the operator's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ENDINGS: Final = (".safetensors", ".gguf")


def lora_files(folder: Path) -> dict[str, Path]:
    """Name -> file of every LoRA right in the folder; empty when there is no such folder.

    Requests choose by these names alone: what a client sends never becomes a path.
    """
    try:
        files = sorted(folder.iterdir())
    except OSError:
        return {}
    return {path.stem: path for path in files if path.suffix in _ENDINGS and path.is_file()}
