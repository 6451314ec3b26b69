"""Files that the operator puts beside the models: LoRAs, embeddings, upscalers."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_ENDINGS: Final = (".safetensors", ".gguf")


def weight_files(folder: Path | str | None) -> dict[str, Path]:
    """Name -> file of all weights right in the folder; empty when there is no such folder.

    Requests choose by these names alone: what a client sends never becomes a path.
    """
    try:
        files = sorted(Path(folder).iterdir()) if folder is not None else []
    except OSError:
        return {}
    return {path.stem: path for path in files if path.suffix in _ENDINGS and path.is_file()}
