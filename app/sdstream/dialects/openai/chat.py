"""OpenAI's chat completions: the user's last message is the prompt, and the answer is an image.

Chat programs also ask the chosen model for titles, tags and follow-up questions. The answer to such
a task is a short text without an image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from sdstream.core.ask import Handling, Hints, ParsedRequest
from sdstream.core.errors import ImageServiceError, InvalidRequest, Reason
from sdstream.core.job import (
    Completed,
    Entry,
    ImageReady,
    ImageResult,
    Job,
    JobCancelled,
    JobFailed,
)
from sdstream.core.messages import Progress, counted_phase
from sdstream.core.options import MAX_PROMPT_CHARACTERS
from sdstream.core.pixels import SourceFile, SourceFiles
from sdstream.dialects.fields import Foreign, Taken, is_nothing, take
from sdstream.dialects.openai.request import parse
from sdstream.dialects.pictures import MAX_INPUT_IMAGES, image_of, too_many
from sdstream.dialects.rendering import (
    DONE,
    KEEP_ALIVE,
    JsonObject,
    ResponseFormat,
    answer_fields,
    compact,
    failure_frames,
    with_base64,
)

#: Fields of a chat completion that do not concern the image.
_OF_CHATS: Final = frozenset(
    {
        "audio", "chat_id", "frequency_penalty", "function_call", "functions", "id", "image_config",
        "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "messages", "metadata",
        "min_p", "modalities", "parallel_tool_calls", "prediction", "presence_penalty",
        "prompt_cache_key", "prompt_cache_retention", "reasoning", "reasoning_effort",
        "repetition_penalty", "response_format", "safety_identifier", "service_tier", "session_id",
        "stop", "store", "stream", "stream_options", "temperature", "tool_choice", "tools", "top_k",
        "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip

#: OpenRouter's options of the image that have no effect. Its sizes are 1K, 2K and 4K.
_CONFIG_FOREIGN: Final = {"image_size": Foreign(note=" has no effect; send 'size'.")}

#: Characters at the start of a prompt that are searched for a task.
_TASK_BEGINS: Final = 400

#: What follows the word "conversation" in a task. A noun makes it part of a prompt, such as
#: "a conversation piece".
_NO_NOUN: Final = (
    r"(?=[ \t]*(?:$|\n|[^\w\s])|\s+(?:history|above|below|so far|in|into|using|with|without|by"
    r"|between|based|from|to|and|that)\b)"
)
#: The start of a task of Open WebUI, LibreChat or LobeChat.
_TASK: Final = re.compile(
    r"(?:#+ *Task:|(?:Provide|(?:Please )?(?:generate|provide|write)) a (?:concise|short|brief)"
    r".{0,60}\b(?:title|summary|name|phrase|topic)\b.{0,80}\b(?:conversation|chat|discussion)"
    + _NO_NOUN
    + r"|Detect user language and write .{0,80}\btitle\b"
    r"|Summarize (?:the|this) conversation"
    + _NO_NOUN
    + r"|Based on the chat history, give this conversation"
    r"|Analyze this conversation and provide"
    r"|Your task is to reflect the speaker's likely facial expression through a fitting emoji)",
    re.IGNORECASE,
)
#: The start of the system's message when LobeChat asks for a title.
_SUMMARY: Final = re.compile(
    r"You are an? .{0,60}(?:conversation summari[sz]er|summari[sz]e user conversations into titles)"
    r"|你是一名擅长会话的助理",
    re.IGNORECASE,
)
#: The label of the user's first message, when a task quotes the conversation.
_SPEAKER: Final = re.compile(r"(?:<chat_history>)? *(?:USER|Human) *: *", re.IGNORECASE)
_TITLE_WORDS: Final = 5
#: A key of the JSON that a task asks for. LibreChat's tasks also quote the word "title".
_KEY: Final = re.compile(r'"(\w+)" *:')
#: Keys of the JSON that Open WebUI reads; the answer to each task is an empty list.
_TASK_LISTS: Final = ("tags", "follow_ups", "queries")

#: The HTTP client of Open WebUI, whose requests do not name the program. Open WebUI stores the
#: images of the field ``images``, and would show a Markdown image beside them.
_READS_IMAGES: Final = re.compile(r"Python/\S+ aiohttp/")

#: Percent between two reports of progress.
_STRIDE: Final = 20


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A parsed chat completion.

    Attributes:
        ask: The request for an image; None for a task, which is answered with text.
        text: The answer to a task.
        stream: The answer is a stream.
        include_usage: The stream ends with a frame that contains the usage.
        markdown: The text of the stream contains the image; otherwise only ``images`` does.
        model: The client's name of the model.
    """

    ask: ParsedRequest | None
    text: str
    stream: bool
    include_usage: bool
    markdown: bool
    model: str


def parse_chat(
    body: Mapping[str, Any], user_agent: str = "", *, options_in_prompt: bool = False
) -> ChatRequest:
    """Parse a chat completion.

    Args:
        body: The JSON of the request.
        user_agent: The client's User-Agent.
        options_in_prompt: As in ``Hints``.

    Raises:
        InvalidRequest: A field is rejected; the error names it.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest(
            "'messages' must be a list with at least one message.", param="messages"
        )
    stream_options = body.get("stream_options")
    usage = isinstance(stream_options, Mapping) and stream_options.get("include_usage") is True
    number, message = _last_of_user(messages)
    where = f"messages[{number}].content"
    prompt, files = _content(where, message.get("content"))
    stream = not is_nothing(body.get("stream"))
    text = None if files else _task_answer(body, _of_system(messages), prompt)
    hints = Hints(handling=Handling.LENIENT, options_in_prompt=options_in_prompt)
    told = {"prompt": prompt, "stream": stream}
    ask = _ask({**body, **told}, files, hints, where) if text is None else None
    model = body.get("model")
    return ChatRequest(
        ask,
        text or "",
        stream,
        usage,
        not (_wants_images(body) or _READS_IMAGES.match(user_agent)),
        model if isinstance(model, str) else "",
    )


def _ask(
    body: Mapping[str, Any], files: tuple[SourceFile, ...], hints: Hints, where: str
) -> ParsedRequest:
    """Parse the options of an image.

    Args:
        body: The JSON of the request, with the message's text as ``prompt``.
        files: The message's images.
        hints: Settings that are not in the body.
        where: Name of the message's content, for errors.
    """
    if not body["prompt"]:
        raise InvalidRequest(
            "The last user message contains no text to use as a prompt.",
            reason=Reason.MISSING_FIELD,
            param="messages",
        )
    config = _config(body.get("image_config"), hints)
    # The text needs a link for its Markdown image, and the message's ``images`` needs the bytes.
    options = {
        **{name: value for name, value in body.items() if name not in _OF_CHATS},
        **{name: value for name, value in config.fields.items() if value},
        "stream": body["stream"],
        "response_format": "both",
    }
    ask = parse(options, hints, client_names={"prompt": where})
    ask = ask.noting(config.warnings, config.unknown)
    if not files:
        return ask
    return replace(ask, files=SourceFiles(files), operation="edit")


def _config(config: Any, hints: Hints) -> Taken:
    """Return the fields of ``image_config``, OpenRouter's options of the image."""
    if config is not None and not isinstance(config, Mapping):
        raise InvalidRequest("'image_config' must be an object.", param="image_config")
    return take(
        config or {},
        ("aspect_ratio",),
        foreign=_CONFIG_FOREIGN,
        handling=hints.handling,
        where="image_config.",
    )


def _wants_images(body: Mapping[str, Any]) -> bool:
    """Return whether the client asks for images as OpenRouter's clients do."""
    modalities = body.get("modalities")
    return isinstance(modalities, list) and "image" in modalities


def _last_of_user(messages: list[Any]) -> tuple[int, Mapping[str, Any]]:
    for number in range(len(messages) - 1, -1, -1):
        message = messages[number]
        if isinstance(message, Mapping) and message.get("role") == "user":
            return number, message
    raise InvalidRequest("'messages' contains no user message.", param="messages")


def _of_system(messages: list[Any]) -> str:
    """Return the beginning of the first message if it is the system's."""
    match messages[0]:
        case {"role": "system" | "developer", "content": str(text)}:
            return text
        case {"role": "system" | "developer", "content": [{"text": str(text)}, *_]}:
            return text
        case _:
            return ""


def _content(param: str, content: Any) -> tuple[str, tuple[SourceFile, ...]]:
    """Return the text and the images of a message."""
    if isinstance(content, str):
        return content.strip(), ()
    if not isinstance(content, list):
        raise InvalidRequest(f"'{param}' must be a string or a list of parts.", param=param)
    texts, files = [], []
    for number, part in enumerate(content):
        where = f"{param}[{number}]"
        match part:
            case {"type": "text" | "input_text", "text": str(text)}:
                texts.append(text)
            case {"type": "image_url" | "input_image", "image_url": image}:
                files.append(image_of(where, image))
            case _:
                raise InvalidRequest(
                    f"'{where}' must be a part of type text or image_url.",
                    reason=Reason.NOT_SUPPORTED,
                    param=where,
                )
    if len(files) > MAX_INPUT_IMAGES:
        raise too_many(param)
    return "\n".join(texts).strip(), tuple(files)


# --- tasks ----------------------------------------------------------------------------------------


def _task_answer(body: Mapping[str, Any], system: str, prompt: str) -> str | None:
    """Return the answer to a chat program's task; None if the message asks for an image.

    Args:
        body: The JSON of the request.
        system: The beginning of the system's message.
        prompt: The user's last message.
    """
    wanted = body.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    is_json = kind in ("json_object", "json_schema")
    is_task = _TASK.match(prompt.lstrip()[:_TASK_BEGINS]) or _SUMMARY.match(system.lstrip())
    if not (is_json or is_task):
        return None
    title = _title(prompt)
    keys = {key.lower() for key in _KEY.findall(prompt)}
    for name in _TASK_LISTS:
        if name in keys:
            return json.dumps({name: []})
    if is_json or "title" in keys:
        return json.dumps({"title": title}, ensure_ascii=False)
    return title


def _title(prompt: str) -> str:
    """Return the first few words of the conversation that a task quotes, or "Image"."""
    for line in prompt[:MAX_PROMPT_CHARACTERS].splitlines():
        found = _SPEAKER.match(line)
        if found and found.end() < len(line):
            words = line[found.end() :].split()[:_TITLE_WORDS]
            return " ".join(words).strip("\"'.,:;!?") or "Image"
    return "Image"


# --- answers --------------------------------------------------------------------------------------


def completion(job: Job, form: ResponseFormat, created: int) -> bytes:
    """Return the JSON of a finished job, with one choice for each image."""
    choices = []
    for index in sorted(job.images):
        image = job.images[index]
        message = {"role": "assistant", "content": _markdown(job, image, form), "refusal": None}
        choices.append(
            b'{"index":%d,"finish_reason":"stop","logprobs":null,"message":%b}'
            % (index, _with_image(message, job, image))
        )
    head = compact(_head(job.id, job.request.model, created, "chat.completion"))
    tail = compact({"usage": _usage(job), **_aside(job)})
    return b"".join((head[:-1], b',"choices":[', b",".join(choices), b"],", tail[1:]))


def text_completion(chat: ChatRequest, created: int) -> bytes:
    """Return the JSON of the answer to a task."""
    message = {"role": "assistant", "content": chat.text, "refusal": None}
    choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}
    head = _head("task", chat.model, created, "chat.completion")
    return compact({**head, "choices": [choice], "usage": _no_usage(chat)})


def text_frames(chat: ChatRequest, created: int) -> Iterator[bytes]:
    """Yield the frames of the answer to a task."""
    head = _head("task", chat.model, created, "chat.completion.chunk")
    yield _frame(head, {"role": "assistant", "content": chat.text}, None)
    yield _frame(head, {}, "stop")
    if chat.include_usage:
        yield b"data: " + compact({**head, "choices": [], "usage": _no_usage(chat)}) + b"\n\n"
    yield DONE


class ChatStream:
    """Renders the entries of one job as chunks of a chat completion.

    The text of the message consists of percentages while the job runs, and then of the images.

    Args:
        job: The job.
        form: Response format of the images.
        include_usage: End with a frame that contains the usage.
        markdown: Add the images to the text, for clients that do not read ``images``.
    """

    def __init__(
        self, job: Job, form: ResponseFormat, *, include_usage: bool, markdown: bool
    ) -> None:
        self._job = job
        self._form = form
        self._markdown = markdown
        self._include_usage = include_usage
        self._head = _head(job.id, job.request.model, int(job.created), "chat.completion.chunk")
        self._counted = counted_phase(job.request)
        self._begun = False
        self._told = 0

    def frames(self, entry: Entry) -> list[bytes]:
        """Return the frames of one entry; each is sent separately."""
        first = [] if self._begun else [self._delta({"role": "assistant", "content": ""})]
        self._begun = True
        return [*first, *self._frames(entry)]

    def _frames(self, entry: Entry) -> list[bytes]:
        match entry.event:
            case Progress(phase=self._counted) as progress if progress.step:
                return self._progress(progress)
            case ImageReady(image):
                return [self._image(image)]
            case Completed():
                return self._end()
            case JobFailed() | JobCancelled():
                error = self._job.error()
                assert error is not None
                return self.failure(error)
            case _:
                return []

    def keep_alive(self) -> list[bytes]:
        """Return the frames that keep a silent stream open."""
        return [KEEP_ALIVE]

    def failure(self, error: ImageServiceError) -> list[bytes]:
        """Return the last frames of a stream that failed."""
        return failure_frames(error)

    def _progress(self, progress: Progress) -> list[bytes]:
        done = (progress.index + progress.share) / self._job.request.n
        percent = int(100 * done) // _STRIDE * _STRIDE
        if percent <= self._told:
            return []
        self._told = percent
        return [self._delta({"content": f"{percent} % "})]

    def _image(self, image: ImageResult) -> bytes:
        text = f"\n\n{_markdown(self._job, image, self._form)}" if self._markdown else ""
        delta = {"content": text}
        choice = b'{"index":0,"finish_reason":null,"delta":%b}' % _with_image(
            delta, self._job, image
        )
        return b'data: %b,"choices":[%b]}\n\n' % (compact(self._head)[:-1], choice)

    def _end(self) -> list[bytes]:
        head = {**self._head, **_aside(self._job)}
        frames = [_frame(head, {}, "stop")]
        if self._include_usage:
            usage = {**self._head, "choices": [], "usage": _usage(self._job)}
            frames.append(b"data: " + compact(usage) + b"\n\n")
        return [*frames, DONE]

    def _delta(self, delta: JsonObject) -> bytes:
        return _frame(self._head, delta, None)


def _head(name: str, model: str, created: int, kind: str) -> JsonObject:
    return {"id": f"chatcmpl-{name}", "object": kind, "created": created, "model": model}


def _frame(head: JsonObject, delta: JsonObject, finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + compact({**head, "choices": [choice]}) + b"\n\n"


def _markdown(job: Job, image: ImageResult, form: ResponseFormat) -> str:
    """Return a Markdown image with a link, or an empty text if the image was not stored.

    The image is not embedded, because chat programs send the text back with every message.
    """
    words = re.sub(r"[\[\]\s]+", " ", job.request.prompt[:80]).strip().replace("\\", "\\\\")
    return f"![{words}]({form.link(image)})" if image.id else ""


def _with_image(fields: JsonObject, job: Job, image: ImageResult) -> bytes:
    """Return the fields of a message as JSON, with the image as a data URL under ``images``."""
    prefix = f"data:image/{job.request.output_format};base64,"
    url = with_base64({}, "url", prefix, image.content)
    item = b'{"type":"image_url","index":0,"image_url":%b}' % url
    return b'%b,"images":[%b]}' % (compact(fields)[:-1], item)


def _usage(job: Job) -> JsonObject:
    usage = job.usage()
    prompt = usage.text_tokens + usage.image_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output_tokens,
        "total_tokens": prompt + usage.output_tokens,
        "generation_per_second": usage.generation_per_second,
    }


def _no_usage(chat: ChatRequest) -> JsonObject:
    words = len(chat.text.split())
    return {"prompt_tokens": 0, "completion_tokens": words, "total_tokens": words}


def _aside(job: Job) -> JsonObject:
    """Return the fields of the answer that OpenAI's chat completions do not have."""
    fields = answer_fields(job)
    return {name: fields[name] for name in ("parameters", "warnings") if name in fields}
