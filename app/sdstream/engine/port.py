"""The interface between a worker process and its engine: the native runtime or a fake for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sdstream.core.messages import Event, ImageDrawn, Load, Loaded, Share
from sdstream.core.pixels import Inputs
from sdstream.core.request import GenerationRequest

Emit = Callable[[Event], None]


class Engine(Protocol):
    """Interface of an engine, which generates one image at a time.

    One thread makes all calls except ``abort``, ``peek`` and ``share``.
    """

    def load(self, command: Load, emit: Emit) -> Loaded:
        """Load the model that the command names; raise EngineError if loading fails."""

    def draw(
        self, job: str, request: GenerationRequest, inputs: Inputs, index: int, emit: Emit
    ) -> ImageDrawn | None:
        """Return image ``index``, or None if it was aborted; raise EngineError on failure."""

    def clear_abort(self) -> None:
        """Clear an earlier ``abort``, because the next image begins."""

    def abort(self) -> None:
        """Stop generating the current image; any thread may call this at any time."""

    def peek(self) -> None:
        """Make the next step emit a preview; any thread may call this, like ``abort``."""

    def share(self, share: Share) -> None:
        """Use a share of the cores from the next step on; any thread may call this."""
