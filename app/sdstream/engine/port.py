"""The interface between a worker process and its engine: the native runtime or a fake for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sdstream.core.messages import Event, ImageDrawn, Load, Loaded, Share
from sdstream.core.pixels import Inputs
from sdstream.core.request import GenerationRequest

Emit = Callable[[Event], None]


class Engine(Protocol):
    """Generates one image at a time. All calls but the last three come from one thread."""

    def load(self, command: Load, emit: Emit) -> Loaded:
        """Load the model of the command; raise EngineError when that fails."""

    def draw(
        self, job: str, request: GenerationRequest, inputs: Inputs, index: int, emit: Emit
    ) -> ImageDrawn | None:
        """Generate image ``index``; None if it was aborted; raise EngineError if it failed."""

    def clear_abort(self) -> None:
        """Forget an earlier ``abort``: another image begins."""

    def abort(self) -> None:
        """Stop the image being generated; any thread may call this at any time."""

    def peek(self) -> None:
        """Have the image's next step give a preview; from any thread, as ``abort``."""

    def share(self, share: Share) -> None:
        """Use a share of the cores from the next step on; from any thread, as ``abort``."""
