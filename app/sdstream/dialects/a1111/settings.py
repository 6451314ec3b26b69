"""AUTOMATIC1111's settings (options, override_settings): which are read, ignored or fixed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sdstream.core.ask import Handling
from sdstream.core.errors import InvalidRequest
from sdstream.core.lora import FILE_ENDING
from sdstream.dialects.fields import IGNORED, Foreign, Taken, only, take

#: Settings of the whole server that would change images -> the value that is reported.
FIXED: Final[Mapping[str, object]] = {
    "sd_vae": "Automatic",
    "eta_noise_seed_delta": 0,
    "initial_noise_multiplier": 1.0,
    "img2img_color_correction": False,
    "samples_format": "png",
    "forge_additional_modules": [],
}

#: Harmless settings: saving on the server's disk, and how often the original makes previews.
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
#: After the name in a title of the web UI: the beginning of the file's checksum.
_HASH: Final = re.compile(r"\s*\[[0-9a-f]{8,64}\]$", re.IGNORECASE)
CLIP_SKIP: Final = "CLIP_stop_at_last_layers"
_MAX_SKIP: Final = 12


@dataclass(frozen=True, slots=True)
class Settings:
    """What options choose, of one request or of all later ones; None leaves it.

    Attributes:
        model: The checkpoint.
        clip_skip: Layers of CLIP to leave out, from 1 for none.
    """

    model: str | None = None
    clip_skip: int | None = None

    def over(self, earlier: Settings) -> Settings:
        """These where they say something, else the earlier ones."""
        clip_skip = earlier.clip_skip if self.clip_skip is None else self.clip_skip
        return Settings(self.model or earlier.model, clip_skip)


#: What options choose that say nothing.
NO_SETTINGS: Final = Settings()


def settings(
    options: Mapping[str, Any], handling: Handling, where: str = ""
) -> tuple[Settings, Taken]:
    """Return what options choose, and what became of the others.

    Clients post all settings of AUTOMATIC1111, hundreds of them, so their names alone reject none.

    Args:
        options: Name -> value.
        handling: What becomes of unknown ones.
        where: The field that they came in.

    Raises:
        InvalidRequest: An option that would change images and is not supported.
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
    model, clip_skip = taken.fields.get(CHECKPOINT), taken.fields.get(CLIP_SKIP)
    if model is not None and not isinstance(model, str):
        raise InvalidRequest(f"'{prefix}{CHECKPOINT}' must be a string.", param=CHECKPOINT)
    if clip_skip is not None and (type(clip_skip) is not int or not 1 <= clip_skip <= _MAX_SKIP):
        raise InvalidRequest(
            f"'{prefix}{CLIP_SKIP}' must be a whole number from 1 to {_MAX_SKIP}.",
            param=CLIP_SKIP,
        )
    return Settings(model, clip_skip), taken


def checkpoint_names(text: str) -> list[str]:
    """Return the names that a client of the web UI may mean, the text as it is first.

    Its titles have the folder and the ending of a file, and a hash, as in
    ``sub/name.safetensors [6ce0161689]``.
    """
    title = _HASH.sub("", text.strip())
    name = re.split(r"[/\\]", title)[-1]
    return [
        *dict.fromkeys((text, title, FILE_ENDING.sub("", title), name, FILE_ENDING.sub("", name)))
    ]
