"""Chat completions for image models, with openai-python and with requests of chat programs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support.pictures import from_base64, png
from tests.support.servers import ServerProcess

PATH = "/v1/chat/completions"
OPTIONS = {"size": "64x64", "sample_steps": 2}
PICTURE = "data:image/png;base64," + base64.b64encode(png(64, 64, "red")).decode()


@pytest.fixture
def client(fake_server: ServerProcess) -> Iterator[openai.OpenAI]:
    """OpenAI's own client."""
    with openai.OpenAI(base_url=f"{fake_server.url}/v1", api_key="-", max_retries=0) as found:
        yield found


def test_an_image_in_a_chat(client: openai.OpenAI) -> None:
    """The answer contains the image as a Markdown link, and as a data URL under ``images``."""
    messages: Any = [
        {"role": "system", "content": "You draw."},
        {"role": "user", "content": "a cat"},
        {"role": "assistant", "content": "![a cat](http://x.example/1)"},
        {"role": "user", "content": "a [red] circle"},
    ]
    answer = client.chat.completions.create(
        model="default", messages=messages, temperature=0.5, max_tokens=5, extra_body=OPTIONS
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert choice.message.content is not None
    assert choice.message.content.startswith("![a red circle](http://127.0.0.1:")
    link = choice.message.content.partition("](")[2].removesuffix(")")
    (image,) = choice.message.images  # type: ignore[attr-defined]
    kind, _, text = image["image_url"]["url"].partition(";base64,")
    assert kind == "data:image/png"
    assert httpx2.get(link).content == base64.b64decode(text)
    assert from_base64(text).size == (64, 64)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 16
    assert answer.parameters["prompt"] == "a [red] circle"  # type: ignore[attr-defined]


def test_a_prompt_that_ends_in_a_backslash(client: openai.OpenAI) -> None:
    """A backslash of the prompt does not escape the bracket of the Markdown image."""
    answer = client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": "a cat \\"}], extra_body=OPTIONS
    )
    assert (answer.choices[0].message.content or "").startswith("![a cat \\\\](http://")


def test_streamed(client: openai.OpenAI) -> None:
    """A stream contains growing percentages, the image, and the usage if requested."""
    chunks = list(
        client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "a circle"}],
            stream=True,
            stream_options={"include_usage": True},
            extra_body={**OPTIONS, "sample_steps": 9},
        )
    )
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    whole = "".join(texts)
    assert whole.startswith("20 % 40 % 60 % 80 % \n\n![a circle](http://")
    images = [
        c.choices[0].delta.images
        for c in chunks
        if c.choices and hasattr(c.choices[0].delta, "images")
    ]
    assert len(images) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 16


@pytest.mark.parametrize(
    ("headers", "more"),
    [
        ({"User-Agent": "Python/3.11 aiohttp/3.14.5"}, {}),  # Open WebUI's
        ({}, {"modalities": ["image", "text"]}),  # OpenRouter's clients
    ],
)
def test_clients_that_read_images_get_no_markdown(
    client: openai.OpenAI, headers: dict[str, str], more: dict[str, Any]
) -> None:
    """Clients that read ``images`` get no Markdown link, which would show the image twice."""
    deltas = [
        chunk.choices[0].delta
        for chunk in client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": "a circle"}],
            stream=True,
            extra_headers=headers,
            extra_body={**OPTIONS, "sample_steps": 9, **more},
        )
    ]
    assert "".join(delta.content or "" for delta in deltas) == "20 % 40 % 60 % 80 % "
    images = [image for delta in deltas for image in getattr(delta, "images", [])]
    assert len(images) == 1
    assert from_base64(images[0]["image_url"]["url"].partition(",")[2]).size == (64, 64)


def test_an_image_in_the_message_is_edited(client: openai.OpenAI) -> None:
    """Parts of type image_url are input images."""
    parts: Any = [
        {"type": "text", "text": "make it blue"},
        {"type": "image_url", "image_url": {"url": PICTURE, "detail": "high"}},
    ]
    messages: Any = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(
        model="default", messages=messages, extra_body={"sample_steps": 2, "strength": 0.4}
    )
    assert answer.parameters["strength"] == 0.4  # type: ignore[attr-defined]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 3 + 16


#: Name of a request that asks for no image -> its message and the expected text.
TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "Open WebUI's title": (
        {
            "content": "### Task:\nGenerate a concise, 3-5 word title with an emoji summarizing "
            'the chat history.\n### Output:\nJSON format: { "title": "your concise title here" }\n'
            "### Chat History:\n<chat_history>\nUSER: a red circle on a blue sea at night\n"
            "ASSISTANT: ![a](http://x)\n</chat_history>"
        },
        '{"title": "a red circle on a"}',
    ),
    "Open WebUI's tags": (
        {"content": '### Task:\nGenerate 1-3 broad tags … { "tags": ["tag1"] }'},
        '{"tags": []}',
    ),
    "Open WebUI's follow-ups": (
        {"content": '### Task:\nSuggest 3-5 relevant follow-ups … { "follow_ups": ["Q"] }'},
        '{"follow_ups": []}',
    ),
    "LibreChat's title": (
        {
            "content": "Provide a concise, 5-word-or-less title for the conversation, using title "
            "case conventions. Only return the title itself.\n\nConversation:\nUser: a cat\nAI: x"
        },
        "a cat",
    ),
    "a title on a line of its own": (
        {"content": "Write a short title for this conversation\n\nUser: a cat\nAI: x"},
        "a cat",
    ),
    "LibreChat's older title": (
        {
            "content": "Please generate a concise, 5-word-or-less title for the conversation, using"
            ' its same language, with no punctuation. Never directly mention the word "title"\n\n'
            "User: a cat\nAI: x"
        },
        "a cat",
    ),
    "LibreChat's structured title": (
        {
            "content": "Analyze this conversation and provide:\n1. The detected language of the "
            "conversation\n2. A concise title in the detected language\n\nUser: a cat\nAI: x"
        },
        "a cat",
    ),
    "Open WebUI's emoji": (
        {
            "content": "Your task is to reflect the speaker's likely facial expression through a "
            'fitting emoji.\n\nMessage: """a cat"""'
        },
        "Image",
    ),
}


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("stream", [False, True])
def test_tasks_get_a_text(
    client: openai.OpenAI, fake_server: ServerProcess, name: str, stream: bool
) -> None:
    """Requests for titles, tags and follow-ups get a text and start no job."""
    message, expected = TASKS[name]
    accepted = fake_server.metric("sdstream_accepted_jobs_total")
    messages: Any = [{"role": "user", **message}]
    answer: Any = client.chat.completions.create(model="m", messages=messages, stream=stream)
    if stream:
        text = "".join(c.choices[0].delta.content or "" for c in answer if c.choices)
    else:
        text = answer.choices[0].message.content
    assert text == expected
    assert fake_server.metric("sdstream_accepted_jobs_total") == accepted


@pytest.mark.parametrize(
    "system",
    [
        "You are a professional conversation summarizer. Generate a concise title that captures "
        "the essence of the conversation.",
        "You are an assistant skilled in conversation who needs to summarize user conversations "
        "into titles within 10 characters.",
    ],
)
def test_lobechats_title(client: openai.OpenAI, fake_server: ServerProcess, system: str) -> None:
    """A system's message that asks for a title gets a text; another one does not affect images."""
    accepted = fake_server.metric("sdstream_accepted_jobs_total")
    told: Any = {"role": "user", "content": "user: a cat on a boat\nassistant: ![x](y)"}
    messages: Any = [{"role": "system", "content": system}, told]
    answer = client.chat.completions.create(model="m", messages=messages)
    assert answer.choices[0].message.content == "a cat on a boat"
    assert fake_server.metric("sdstream_accepted_jobs_total") == accepted
    messages[0]["content"] = [{"type": "text", "text": system}]
    answer = client.chat.completions.create(model="m", messages=messages)
    assert answer.choices[0].message.content == "a cat on a boat"
    messages[0]["content"] = "You are an artist in conversation with a poet."
    client.chat.completions.create(model="default", messages=messages)
    assert fake_server.metric("sdstream_accepted_jobs_total") == accepted + 1


def test_json_mode_gets_json(client: openai.OpenAI) -> None:
    """A request for JSON gets JSON instead of an image."""
    answer = client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "Name this chat"}],
        response_format={"type": "json_object"},
    )
    assert json.loads(answer.choices[0].message.content or "") == {"title": "Image"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio"}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url":
                {"url": "https://x.example/a.png"}}]}]},
            "messages[0].content[0]",
        ),
        ({"messages": [{"role": "user", "content": "a"}], "sample_steps": 0}, "sample_steps"),
        ({"messages": [{"role": "user", "content": "a"}], "model": "gpt-4"}, "model"),
        ({"messages": [{"role": "user", "content": "a"}], "image_config": "4K"}, "image_config"),
        ({"messages": [{"role": "user", "content": "a" * 20_001}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": "a <sd_cpp_extra_args>{}"}]},
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] + 2 * [
                {"type": "image_url", "image_url": {"url": PICTURE}}]}]},
            "messages[0].content[2]",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_rejections(
    fake_server: ServerProcess, body: dict[str, Any], param: str, stream: bool
) -> None:
    """An invalid request gets a 4xx that names the field, even if it asks for a stream."""
    answer = httpx2.post(fake_server.url + PATH, json={**body, "stream": stream})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"] == param


def test_unknown_fields_are_warned_of(fake_server: ServerProcess, tmp_path: Path) -> None:
    """An unknown field causes a warning, but an image in an unknown field is rejected."""
    messages = [{"role": "user", "content": "a"}]
    body = {"messages": messages, **OPTIONS, "sampel_steps": 1, "chat_id": "x"}
    answer = httpx2.post(fake_server.url + PATH, json=body).json()
    assert answer["warnings"] == [
        "Unknown field 'sampel_steps' has no effect. Did you mean 'sample_steps'?"
    ]
    config = {"image_size": "4K", "aspect_ratio": "1:1", "foo": 1}
    body = {"messages": messages, "sample_steps": 2, "image_config": config}
    answer = httpx2.post(fake_server.url + PATH, json=body).json()
    assert answer["warnings"] == [
        "'image_config.image_size' has no effect; send 'size'.",
        "Unknown field 'image_config.foo' has no effect.",
    ]
    body = {"messages": messages, "reference": PICTURE}
    assert httpx2.post(fake_server.url + PATH, json=body).status_code == 400


@pytest.mark.parametrize(
    "prompt",
    [
        "Please generate a short-haired cat",
        "Please write a short word on a wall",
        "Generate a brief name tag design for a chat app icon",
        "Summarize this conversation piece as a sculpture",
    ],
)
def test_prompts_that_begin_like_tasks(fake_server: ServerProcess, prompt: str) -> None:
    """Prompts that begin like a chat program's task get an image."""
    body = {"messages": [{"role": "user", "content": prompt}], **OPTIONS, "stream": "false"}
    answer = httpx2.post(fake_server.url + PATH, json=body).json()
    assert answer["choices"][0]["message"]["images"]
