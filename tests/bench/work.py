"""The work for the contestants, and the model that they use."""

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
    """One image; ``size`` is WIDTHxHEIGHT in pixels."""

    size: str
    steps: int
    seed: int = 0
    prompt: str = PROMPT

    @property
    def title(self) -> str:
        """The name of the work in tables."""
        return f"{self.size}, {self.steps} steps"


def resolved(work: Work, catalog: Catalog) -> GenerationRequest:
    """Resolve the work as the server does, with a value for every default."""
    params = ImageParams(
        prompt=work.prompt, size=work.size, sample_steps=work.steps, seed=work.seed
    )
    return resolve(ParsedRequest(params), catalog, random_seed=lambda: 0, limits=Limits())


def load_command(settings: Settings, catalog: Catalog) -> Load:
    """Return the load command that the server sends to its worker."""
    return assembly.load_command(settings, catalog.models[catalog.default])
