"""AUTOMATIC1111's settings, which clients send as options or as override_settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sdstream.core.ask import Handling
from sdstream.core.errors import InvalidRequest
from sdstream.core.lora import FILE_ENDING
from sdstream.core.option_texts import comparable
from sdstream.dialects.fields import IGNORED, Foreign, Taken, only, take

#: Settings that would change images and are fixed on this server -> their value.
FIXED: Final[Mapping[str, object]] = {
    "sd_vae": "Automatic",
    "eta_noise_seed_delta": 0,
    "initial_noise_multiplier": 1.0,
    "img2img_color_correction": False,
    "samples_format": "png",
    "forge_additional_modules": [],
}

#: Settings that cannot change an image: saving on the server's disk, and the rate of previews.
HARMLESS: Final = frozenset(
    {
        "samples_save", "grid_save", "save_to_dirs", "return_grid", "jpeg_quality",
        "live_previews_enable", "show_progress_every_n_steps", "show_progress_type",
        "do_not_show_images",
    }
)  # fmt: skip

_FOREIGN: Final[Mapping[str, Foreign]] = {
    **{name: only(value) for name, value in FIXED.items()},
    "sd_vae": only("Automatic", "None"),
    # Follows from the checkpoint.
    "sd_checkpoint_hash": IGNORED,
    **dict.fromkeys(HARMLESS, IGNORED),
}

CHECKPOINT: Final = "sd_model_checkpoint"
#: The start of the file's checksum, which the web UI appends to the name of a checkpoint.
_HASH: Final = re.compile(r"\s*\[[0-9a-f]{8,64}\]$", re.IGNORECASE)
CLIP_SKIP: Final = "CLIP_stop_at_last_layers"
_MAX_SKIP: Final = 12
#: Spelling of a layer -> the layer; clients also send it as text or as a fraction.
_LAYERS: Final = {str(layer): layer for layer in range(1, _MAX_SKIP + 1)}


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings for one request, or for all later requests; None means not set.

    Attributes:
        model: The checkpoint.
        clip_skip: The layer of CLIP to stop at, counted from the end; 1 skips none.
    """

    model: str | None = None
    clip_skip: int | None = None

    def over(self, earlier: Settings) -> Settings:
        """Return these settings, with earlier values for settings that are not set."""
        clip_skip = earlier.clip_skip if self.clip_skip is None else self.clip_skip
        return Settings(self.model or earlier.model, clip_skip)


#: Settings of which none is set.
NO_SETTINGS: Final = Settings()


def settings(
    options: Mapping[str, Any], handling: Handling, where: str = ""
) -> tuple[Settings, Taken]:
    """Return the settings in a client's options, and all options after ``take``.

    Clients send hundreds of AUTOMATIC1111's settings. An unknown setting is therefore not rejected
    when only its name suggests an image.

    Args:
        options: Name -> value.
        handling: How unknown options are handled.
        where: Name of the field that contains the options, for errors.

    Raises:
        InvalidRequest: An option would change images and is not supported, or is not valid.
    """
    prefix = f"{where}." if where else ""
    taken = take(
        options,
        (CHECKPOINT, CLIP_SKIP),
        foreign=_FOREIGN,
        handling=handling,
        where=prefix,
        by_name=False,
    )
    model, layer = taken.fields.get(CHECKPOINT), taken.fields.get(CLIP_SKIP)
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"'{prefix}{CHECKPOINT}' must be a string.", param=CHECKPOINT)
    clip_skip = None if layer is None else _LAYERS.get(comparable(layer))
    if layer is not None and (clip_skip is None or isinstance(layer, bool)):
        raise InvalidRequest(
            f"'{prefix}{CLIP_SKIP}' must be a whole number from 1 to {_MAX_SKIP}.",
            param=CLIP_SKIP,
        )
    return Settings(model, clip_skip), taken


def checkpoint_names(text: str) -> list[str]:
    """Return the model names that a client's text may stand for; the unchanged text comes first.

    A title in the web UI contains the folder, the file's ending and a hash, as in
    ``sub/name.safetensors [6ce0161689]``.
    """
    title = _HASH.sub("", text.strip())
    name = re.split(r"[/\\]", title)[-1]
    return [
        *dict.fromkeys((text, title, FILE_ENDING.sub("", title), name, FILE_ENDING.sub("", name)))
    ]
