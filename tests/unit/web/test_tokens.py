"""Tokens for URLs."""

from __future__ import annotations

import pytest

from sdstream.web.tokens import LIFETIME_SECONDS, Tokens


class Clock:
    """Unix seconds that change only when a test sets them."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_token_stands_for_its_owner_for_an_hour() -> None:
    """A token is valid for its owner for an hour, and not a second longer."""
    clock = Clock()
    tokens = Tokens(lambda: b"secret", clock)
    token, expires = tokens.issue("me")
    assert expires == clock.now + LIFETIME_SECONDS
    assert tokens.owner(token) == "me"
    assert Tokens(lambda: b"secret", clock).issue("")[0] != token
    clock.now = expires
    assert tokens.owner(token) == "me"
    clock.now += 1
    assert tokens.owner(token) is None


def test_another_life_of_the_server_knows_none() -> None:
    """A token is invalid after a restart, as the secret is generated at the start."""
    token, _ = Tokens(lambda: b"one", Clock()).issue("me")
    assert Tokens(lambda: b"two", Clock()).owner(token) is None


@pytest.mark.parametrize("text", ["", "a", "!!!!", "ä", "A" * 44, "A" * 4000, "-_-_"])
def test_what_is_no_token(text: str) -> None:
    """Any other text has no owner."""
    assert Tokens(lambda: b"secret", Clock()).owner(text) is None


def test_every_character_counts() -> None:
    """A token with any changed character is invalid."""
    tokens = Tokens(lambda: b"secret", Clock())
    token, _ = tokens.issue("me")
    for place in range(len(token) - 1):
        other = "A" if token[place] != "A" else "B"
        assert tokens.owner(token[:place] + other + token[place + 1 :]) is None
