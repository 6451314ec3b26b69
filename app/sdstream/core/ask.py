"""A parsed request: the parameters of the image and the form of the answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from sdstream.core.errors import InvalidRequest, Reason
from sdstream.core.options import ImageParams
from sdstream.core.pixels import SourceFiles
from sdstream.core.request import EVERY_STEP
from sdstream.core.validation import no_boolean

_MIN_CHUNK: Final = 1024
_DEFAULT_CHUNK: Final = 4096

StreamDialect = Literal["image.chunk", "openai", "both"]

#: Option -> the value that a missing option means for every model.
_USUAL: Final = {"n": 1, "seed": -1}


class Handling(StrEnum):
    """How the server handles unknown fields of a request.

    Attributes:
        STRICT: It rejects all unknown fields.
        SUGGEST: It rejects misspelled options with a suggestion, and warns about other fields.
        LENIENT: It warns about all unknown fields.
    """

    STRICT = "strict"
    SUGGEST = "suggest"
    LENIENT = "lenient"


class StreamOptions(BaseModel):
    """The object ``stream_options``, as in llama-box and GPUStack."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    include_usage: bool = Field(True, description="Add usage to the frame of the last image.")
    chunk_result: bool = Field(False, description="Split the final base64 over several frames.")
    chunk_size: Annotated[int, AfterValidator(lambda size: max(size, _MIN_CHUNK))] = Field(
        _DEFAULT_CHUNK, ge=0, description="Characters in each frame; less than 1024 means 1024."
    )
    preview: bool = Field(False, description="A small preview with every step.")
    dialect: StreamDialect | None = Field(
        None, description="Form of the stream: image.chunk, openai, or both in one."
    )


class ReplyOptions(BaseModel):
    """The options of the answer, which do not affect the image."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    response_format: Literal["b64_json", "url", "both", "base64", "B64Json", "Url"] | None = Field(
        None,
        description="The form of images: base64 (b64_json, base64), a link (url, Url), or both. "
        "B64Json is base64 with a data: prefix (mistral.rs). Default: base64 in streams, "
        "otherwise the value of --default-response-format (by default both).",
    )
    stream: bool = Field(False, description="Progress and images as server-sent events.")
    partial_images: Annotated[int | None, BeforeValidator(no_boolean)] = Field(
        None, ge=0, le=3, description="Number of previews during generation, in OpenAI's stream."
    )
    stream_options: Annotated[StreamOptions, Field(default_factory=StreamOptions)]
    background: Literal["auto", "opaque", "transparent"] = "auto"
    priority: Literal["low", "normal", "high"] = Field(
        "normal", description="Jobs with a higher priority start first."
    )
    on_disconnect: Literal["cancel", "continue"] | None = Field(
        None, description="What happens to the job if its client disconnects before the response."
    )
    request_id: str | None = Field(
        None, max_length=128, description="Id that the client gives to the request (Xinference)."
    )
    group: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="Name of a group of jobs, which can be listed and cancelled together.",
    )
    webhook_url: str | None = Field(
        None,
        max_length=2048,
        description="URL to which the server posts the ended job; --webhook-host must allow it.",
    )

    @field_validator("background")
    @classmethod
    def _opaque_only(cls, value: str) -> str:
        if value == "transparent":
            raise ValueError("must be auto or opaque; the runtime generates opaque images only")
        return value

    @property
    def previews(self) -> int:
        """Number of previews of one image that the request asks for; EVERY_STEP for all steps."""
        if self.stream_options.preview:
            return EVERY_STEP  # even without a stream, for readers of the job's events
        return (self.partial_images or 0) if self.stream else 0


@dataclass(frozen=True, slots=True)
class Hints:
    """Settings for the parsing of a request that are not in its body.

    Attributes:
        dialect: Form of the stream that the query names; it overrides the body.
        library: Form of the stream that the client's library reads; used if neither the query nor
            the body names a form.
        handling: How the server handles unknown fields.
        options_in_prompt: Options in ``<sd_cpp_extra_args>`` in a prompt are read.
    """

    dialect: StreamDialect | None = None
    library: StreamDialect | None = None
    handling: Handling = Handling.SUGGEST
    options_in_prompt: bool = False


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """A client's request in the same form for all dialects.

    Attributes:
        params: What to generate.
        reply: Options of the answer.
        files: The input images.
        operation: Kind of the request; OpenAI's events are named after it.
        only_upscale: The request only upscales the input image.
        any_size: If the model cannot generate the size, it generates a larger image, which is
            cropped.
        blank_flagged: A flagged image is replaced by a blank one (Fireworks) instead of failing the
            job.
        client_names: Canonical name -> the client's spelling, for error messages.
        warnings: A sentence for each field that was accepted and has no effect.
        unknown: Names of the unknown fields among those, as the client spelled them.
    """

    params: ImageParams
    reply: ReplyOptions = field(default_factory=lambda: ReplyOptions.model_validate({}))
    files: SourceFiles | None = None
    operation: Literal["generation", "edit"] = "generation"
    only_upscale: bool = False
    any_size: bool = False
    blank_flagged: bool = False
    client_names: Mapping[str, str] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def previews(self) -> int:
        """Number of previews of one image; 0 with a safety check, which does not check previews."""
        return 0 if self.params.safety_check else self.reply.previews

    @property
    def fingerprint(self) -> str:
        """Digest of the request; it does not depend on how the client spelled the options."""
        hidden = (self.only_upscale, self.blank_flagged, self.any_size)
        values = self.params.model_dump(mode="json")
        # One image and a random seed are the same request whether the client sends them or not.
        values |= {name: None for name, usual in _USUAL.items() if values[name] == usual}
        parts = [values, hidden, self.reply.model_dump()]
        text = json.dumps([*parts, self.operation], sort_keys=True)
        digest = hashlib.sha256(text.encode())
        if self.files is not None:
            self._digest_files(self.files, digest)
        return digest.hexdigest()

    def _digest_files(self, files: SourceFiles, digest: hashlib._Hash) -> None:
        others = tuple(file for file in (files.mask, files.control) if file)
        marks = (files.own_alpha, files.inverted_mask, bool(files.mask), bool(files.control))
        digest.update(repr(marks).encode())
        for file in (*files.images, *others):
            digest.update(hashlib.sha256(file.data).digest())

    def noting(self, warnings: Iterable[str], unknown: Iterable[str] = ()) -> ParsedRequest:
        """Return the same request with more warnings and names of unknown fields."""
        return replace(
            self,
            warnings=(*self.warnings, *warnings),
            unknown=(*self.unknown, *unknown),
        )

    def client_name(self, option: str) -> str:
        """Return how the client spelled an option."""
        return self.client_names.get(option, option)

    def rejected(
        self, option: str, problem: str, reason: Reason = Reason.INVALID_VALUE
    ) -> InvalidRequest:
        """Return the error for an option, named as the client spelled it.

        Args:
            option: Canonical name.
            problem: Text after the quoted name, for example " needs a mask." or ": no such file.".
            reason: Code of the error.
        """
        name = self.client_name(option)
        return InvalidRequest(f"'{name}'{problem}", reason=reason, param=name)
