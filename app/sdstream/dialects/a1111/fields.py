"""What becomes of the fields that AUTOMATIC1111's clients send, wherever in its API they stand."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from sdstream.core.errors import InvalidRequest, Reason
from sdstream.dialects.fields import unknown
from sdstream.dialects.rendering import JsonObject


def own_fields(
    given: Mapping[str, Any],
    own: Collection[str],
    *,
    neutral: Mapping[str, tuple[object, ...]],
    ignored: Collection[str],
    where: str = "",
) -> JsonObject:
    """The fields that say something, of all that were sent.

    Args:
        given: Name -> value; null is not given.
        own: Names that say something.
        neutral: Names that would change the picture -> the values that do not, the usual one first.
        ignored: Names that are harmless.
        where: What stands before the names in errors.

    Raises:
        InvalidRequest: A field is unknown, or has another value than its neutral ones.
    """
    found = {name: value for name, value in given.items() if value is not None}
    for name, value in found.items():
        if name in neutral:
            if value not in neutral[name]:
                raise _only(where + name, neutral[name][0])
        elif name not in own and name not in ignored:
            raise unknown(where + name)
    return {name: value for name, value in found.items() if name in own}


def _only(name: str, value: object) -> InvalidRequest:
    return InvalidRequest(
        f"'{name[:64]}' must be {json.dumps(value)}; other values are not supported.",
        reason=Reason.NOT_SUPPORTED,
        param=name[:64],
    )
