"""The LoRAs of a request, which come as an option or as tags in the prompt."""

from __future__ import annotations

import re
from typing import Final

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

MAX_LORA_SCALE: Final = 10.0

#: A LoRA tag in AUTOMATIC1111's syntax; ``lyco`` is an older name for LyCORIS files.
LORA_TAG: Final = re.compile(r"<(?:lora|lyco):([^:<>]+)(?::([^:<>]*))?>")
HYPERNETWORK_TAG: Final = re.compile(r"<hypernet:")
#: Endings of weight files, which requests may leave out of names.
FILE_ENDING: Final = re.compile(r"\.(?:safetensors|gguf|ckpt|pth|pt|bin)$")


class LoraChoice(BaseModel):
    """One LoRA from the operator's folder, with its strength.

    The name is neither changed nor limited here: this type is validated again when a worker or a
    store reads the request, which then contains the full name of the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    id: str = Field(
        validation_alias=AliasChoices("id", "name", "path"),
        description="Name of the file; its ending may be left out.",
    )
    scale: float = Field(
        1.0,
        ge=-MAX_LORA_SCALE,
        le=MAX_LORA_SCALE,
        validation_alias=AliasChoices("scale", "multiplier", "strength", "weight"),
        description="Strength; a negative one has the opposite effect.",
    )
