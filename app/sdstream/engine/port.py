"""What a worker process asks of the thing that draws: the native runtime or the fake of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from sdstream.core.messages import Event, ImageDrawn, Load, Loaded
from sdstream.core.pixels import Inputs
from sdstream.core.request import GenerationRequest

Emit = Callable[[Event], None]


class Engine(Protocol):
    """Draws one image at a time. All calls but the last two come from one thread."""

    def load(self, command: Load, emit: Emit) -> Loaded:
        """Load the model of the command; raise EngineError when that fails."""

    def draw(
        self, job: str, request: GenerationRequest, inputs: Inputs, index: int, emit: Emit
    ) -> ImageDrawn | None:
        """Draw image ``index``; None when it was aborted; raise EngineError when it failed."""

    def clear_abort(self) -> None:
        """Forget an earlier ``abort``: another image begins."""

    def abort(self) -> None:
        """Ask the image being drawn to stop; any thread may call this at any time."""

    def peek(self) -> None:
        """Have the image's next step give a preview; from any thread, as ``abort``."""
