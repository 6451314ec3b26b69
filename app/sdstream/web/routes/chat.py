"""OpenAI's chat completions, answered by the handler of image requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sdstream.dialects.openai import chat
from sdstream.web import bodies, respond
from sdstream.web.route import ApiRoute, Operation
from sdstream.web.routes.images import JOB_ERRORS, JOB_HEADERS, ImageRoutes
from sdstream.web.schemas import EVENTS, INTEGER, OBJECT, STRING, json_of, listing, record, ref

#: The second path is GPUStack's.
PATHS: Final = ("/v1/chat/completions", "/v1-openai/chat/completions")

_COMPLETION: Final = record(
    {
        "id": STRING,
        "object": STRING,
        "created": INTEGER,
        "model": STRING,
        "choices": listing(OBJECT),
        "usage": OBJECT,
    }
)
_OPERATION: Final = Operation(
    "Generate or edit an image in a chat",
    {200: {**json_of(_COMPLETION), **EVENTS}, 202: json_of(ref("Job"))},
    json_of(
        {
            **record({"model": STRING, "messages": listing(OBJECT)}, ("messages",)),
            "example": {
                "messages": [{"role": "user", "content": "a red circle"}],
                "sample_steps": 4,
            },
        }
    ),
    JOB_ERRORS,
    JOB_HEADERS,
)


@dataclass(frozen=True)
class ChatRoutes:
    """POST /v1/chat/completions."""

    draw: ImageRoutes

    def routes(self) -> list[ApiRoute]:
        """Return the routes of this class."""
        return [ApiRoute(path, self.complete, _OPERATION, method="POST") for path in PATHS]

    async def complete(self, request: Request) -> Response:
        """POST /v1/chat/completions: return an image, or a short text for a title or tags."""
        body = await bodies.read_json(request, self.draw.max_form_bytes)
        agent = request.headers.get("User-Agent", "")
        # In a thread: decoding many megabytes of base64 would block the event loop.
        in_prompt: bool = request.app.state.options_in_prompt
        asked = await asyncio.to_thread(chat.parse_chat, body, agent, options_in_prompt=in_prompt)
        if asked.ask is not None:
            render = partial(
                chat.ChatStream, include_usage=asked.include_usage, markdown=asked.markdown
            )
            return await self.draw.deliver(request, asked.ask, None, chat.completion, render)
        now = int(time.time())
        if asked.stream:
            return respond.stream(_each(chat.text_frames(asked, now)), {})
        return respond.json_bytes(chat.text_completion(asked, now))


async def _each(frames: Iterable[bytes]) -> AsyncIterator[bytes]:
    for frame in frames:
        yield frame
