"""What every contestant is asked to draw, and the model it is drawn with."""

from __future__ import annotations

from dataclasses import dataclass

from sdstream.core.ask import ParsedRequest
from sdstream.core.catalog import Catalog
from sdstream.core.messages import Load
from sdstream.core.options import ImageParams
from sdstream.core.request import GenerationRequest, Limits
from sdstream.core.resolve import resolve
from sdstream.service import assembly
from sdstream.settings import Settings

PROMPT = "a red circle on a white table"


@dataclass(frozen=True)
class Work:
    """One picture; ``size`` is WIDTHxHEIGHT in pixels."""

    size: str
    steps: int
    seed: int = 0
    prompt: str = PROMPT

    @property
    def title(self) -> str:
        """How tables call it."""
        return f"{self.size}, {self.steps} steps"


def resolved(work: Work, catalog: Catalog) -> GenerationRequest:
    """The work as the server makes it of the same options, every default concrete."""
    params = ImageParams(
        prompt=work.prompt, size=work.size, sample_steps=work.steps, seed=work.seed
    )
    return resolve(ParsedRequest(params), catalog, random_seed=lambda: 0, limits=Limits())


def load_command(settings: Settings, catalog: Catalog) -> Load:
    """Return the server's own command to its worker: same files, same threads, same options."""
    return assembly.load_command(settings, catalog.models[catalog.default])
