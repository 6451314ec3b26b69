"""The frames exchanged by server and worker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdstream.core.lora import LoraChoice
from sdstream.core.messages import (
    HEADER,
    Cancel,
    Cancelled,
    Done,
    Failed,
    Generate,
    ImageDrawn,
    Load,
    Loaded,
    Message,
    Phase,
    Preview,
    Progress,
    RequestPreview,
    Stop,
    decode,
    encode,
)
from sdstream.core.options import Options
from sdstream.core.pixels import Inputs, Pixels
from sdstream.core.request import GenerationRequest
from sdstream.core.size import Size

text = st.text(st.characters(exclude_categories=["Cs"]))
number = st.integers(0, 2**63 - 1)
seconds = st.floats(0, 1e6)
blob = st.binary(max_size=100)
options = st.builds(
    Options,
    guidance=st.none() | st.floats(0, 30),
    sigmas=st.none() | st.tuples(st.floats(0, 1000), st.just(0.0)),
    lora=st.none()
    | st.tuples(st.builds(LoraChoice, id=st.text(max_size=9), scale=st.floats(-1, 1))),
    cache_options=st.none() | st.dictionaries(st.text(max_size=9), st.floats(0, 9), max_size=2),
)
sizes = st.builds(Size, number, number)
requests = st.builds(
    GenerationRequest,
    model=text,
    prompt=text,
    negative_prompt=text,
    sampler=text,
    schedule=text,
    seed=number,
    cfg_scale=seconds,
    width=number,
    height=number,
    steps=number,
    n=number,
    options=options,
    second_pass=st.none() | sizes,
    warnings=st.tuples(text),
)


@st.composite
def pictures(draw: st.DrawFn, channels: int) -> Pixels:
    """Generate an image of a few pixels."""
    width, height = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    size = width * height * channels
    return Pixels(width, height, draw(st.binary(min_size=size, max_size=size)))


inputs = st.builds(
    Inputs,
    st.none() | pictures(3),
    st.none() | pictures(1),
    st.lists(pictures(3), max_size=3).map(tuple),
)
messages = st.one_of(
    st.builds(Load, text, text, st.dictionaries(text, text), text, st.dictionaries(text, number)),
    st.builds(Generate, text, requests, inputs),
    st.builds(Cancel, text),
    st.builds(RequestPreview, text),
    st.just(Stop()),
    st.builds(Loaded, seconds, st.booleans(), st.booleans(), st.booleans()),
    st.builds(Progress, text, number, st.sampled_from(Phase), number, number),
    st.builds(Preview, text, number, number, number, number, blob),
    st.builds(
        ImageDrawn, text, number, number, number, number, number, seconds, seconds, seconds, blob
    ),
    st.builds(Done, text),
    st.builds(Cancelled, text),
    st.builds(Failed, st.none() | text, text, text),
)


@given(messages)
def test_what_goes_in_comes_out(message: Message) -> None:
    """Encoding and decoding keep every message, with seeds of 63 bits and any text."""
    frame = encode(message)
    header, size = HEADER.unpack_from(frame)
    start = HEADER.size
    assert len(frame) == start + header + size
    assert decode(frame[start : start + header], frame[start + header :]) == message


@pytest.mark.parametrize(
    "header", [b"", b"{}", b"[]", b'{"type": "Nobody"}', b'{"type": "Done", "x": 1}', b"\xff"]
)
def test_garbage_is_no_message(header: bytes) -> None:
    """An invalid header raises a ValueError."""
    with pytest.raises(ValueError, match="not a message"):
        decode(header, b"")
