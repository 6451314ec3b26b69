"""Prompts as the runtime processes them: template, tokens, padding.

The runtime puts a prompt into a template and splits it with the Qwen2 tokeniser, whose 151,387
merge rules are in the runtime's library. Training needs only a few hundred words, so
`vocabulary.json` holds the tokens of these words. `python -m scripts.embedded.text LIBRARY` writes
this file from the library. It only appends new words, since the order of the rows is the order of
the trained weights.

Peculiarities of the runtime that this module reproduces:
 1. The runtime tokenises head, prompt and tail separately, and puts a space before the prompt.
 2. The text encoder reads the head's first 28 tokens but drops them from its output, so the head's
    ":" is the first token that the image network sees.
 3. The prompt is padded to 256 tokens, and the image network attends to the padding as well.
"""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCABULARY_FILE = Path(__file__).with_name("vocabulary.json")

HEAD = (
    "<|im_start|>user\nDescribe the image by detailing the color, quantity, text, shape, size, "
    "texture, spatial relationships of the objects and background:"
)
HEAD_DROPPED = 28
"""Number of the head's tokens that the image network does not see."""
TAIL_IDS = (151645, 198, 151644, 77091, 198, 151667, 271, 151668, 271)
PAD_ID = 151643
EMPTY_IDS = (220,)
"""Tokens of the empty prompt, which is only the space before it."""
TABLE_ROWS = 151936
"""Rows of the embedding table in the GGUF, used or not."""
NATIVE_LENGTH = 256
"""Minimum number of text positions that the image network sees."""

_WORD = re.compile(
    r"""'(?:[sStTmM]|[rR][eE]|[vV][eE]|[lL][lL])|\d|[^\r\nA-Za-z0-9]?[A-Za-z]+"""
    r"""| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
"""Pattern by which the tokeniser cuts text before it merges bytes (ASCII; digits one by one)."""

Ids = NDArray[np.int64]


def pieces(prompt: str) -> list[str]:
    """Cut a prompt, with a space before it, into the pieces that the tokeniser processes."""
    return _WORD.findall(" " + prompt)


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that the text encoder knows."""

    tokens: tuple[int, ...]
    """Row -> token id. One more row follows, of zeros, for unknown tokens."""
    words: dict[str, tuple[int, ...]]
    """Piece of text -> its token ids."""
    head: tuple[int, ...]
    """Token ids of the template's head."""
    strangers: tuple[int, ...]
    """Token ids that no drawing's caption uses; training teaches that they mean nothing."""

    @classmethod
    def load(cls, file: Path = VOCABULARY_FILE) -> Vocabulary:
        """Read a vocabulary file."""
        data = json.loads(file.read_text())
        words = {piece: tuple(ids) for piece, ids in data["words"].items()}
        return cls(tuple(data["tokens"]), words, tuple(data["head"]), tuple(data["strangers"]))

    @property
    def unknown_row(self) -> int:
        """The row for every token that has no row."""
        return len(self.tokens)

    def rows(self, prompt: str) -> list[int]:
        """Return the embedding rows of the tokens that the image network sees, without padding.

        A word that is not in the table becomes one unknown token; in the runtime it may be several.
        """
        lookup = self._row_of
        ids: list[int] = [self.head[-1]]
        for piece in pieces(prompt) if prompt else ():
            ids.extend(self.words.get(piece, (-1,)))
        if not prompt:
            ids.extend(EMPTY_IDS)
        ids.extend(TAIL_IDS)
        return [lookup.get(token, self.unknown_row) for token in ids]

    def head_rows(self) -> list[int]:
        """Return the rows of the head's dropped tokens."""
        lookup = self._row_of
        return [lookup[token] for token in self.head[:HEAD_DROPPED]]

    def pad_row(self) -> int:
        """Return the padding token's row."""
        return self._row_of[PAD_ID]

    def stranger_rows(self) -> list[int]:
        """Return the rows of the words that no caption uses, and the unknown token's."""
        lookup = self._row_of
        return [*(lookup[token] for token in self.strangers), self.unknown_row]

    @cached_property
    def _row_of(self) -> dict[int, int]:
        return {token: row for row, token in enumerate(self.tokens)}


@dataclass(frozen=True)
class TextBatch:
    """Tokens of a batch of prompts, [batch, length] each, for the text encoder of `twin`."""

    ids: Ids
    """Embedding rows."""
    positions: Ids
    """Position of each token among the runtime's 256; sampled padding keeps its position."""
    counts: Ids
    """Number of real tokens of each prompt, [batch]; the rest of a row is padding."""
    pad_bias: NDArray[np.float32]
    """Bias of the attention logits of each token as a key: 0, or more for sampled padding."""


def batch(
    rows: list[list[int]],
    pad_row: int,
    length: int = NATIVE_LENGTH,
    rng: np.random.Generator | None = None,
) -> TextBatch:
    """Pad prompts to `length` tokens.

    If `length` is shorter than the runtime's, a random sample of the padding stands for all of it:
    the attention logit of each sampled pad rises by log(pads / sampled pads). The error is 0.5 to
    0.8 %, and the cost is a third. Every prompt needs room for at least one pad.
    """
    size = len(rows)
    ids = np.full((size, length), pad_row, np.int64)
    positions = np.zeros((size, length), np.int64)
    bias = np.zeros((size, length), np.float32)
    for k, row in enumerate(rows):
        count = len(row)
        pads, kept = max(NATIVE_LENGTH, length) - count, length - count
        ids[k, :count] = row
        positions[k, :count] = np.arange(count)
        if kept >= pads or rng is None:
            positions[k, count:] = count + np.arange(kept)
        else:
            positions[k, count:] = count + np.sort(rng.choice(pads, kept, replace=False))
            bias[k, count:] = np.log(pads / kept)
    counts = np.array([len(row) for row in rows], np.int64)
    return TextBatch(ids, positions, counts, bias)


# --- making the vocabulary file ------------------------------------------------------------------

FIRST_MERGES = "Ġ Ġ\nĠĠ ĠĠ\ni n\n".encode()
MERGE_COUNT = 151387
SPECIALS = {"<|im_start|>": 151644}

COMMON_WORDS_FILE = Path(__file__).with_name("common_words.txt")
"""Words that users are likely to type; they get rows even if no drawing's caption uses them."""


def read_merges(library: bytes) -> dict[tuple[str, str], int]:
    """Return the tokeniser's merge rules, found in the runtime's shared library, with ranks."""
    start = library.index(FIRST_MERGES)
    lines = library[start : library.index(b"\0", start)].decode().split("\n")[:MERGE_COUNT]
    merges = [tuple(line.split(" ", 1)) for line in lines]
    return {(left, right): rank for rank, (left, right) in enumerate(merges)}


def byte_letters() -> dict[int, str]:
    """Return the printable letter that stands for each byte, in the order of the token ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + k) for k, byte in enumerate(others)}


class Tokeniser:
    """The runtime's complete byte pair encoding."""

    def __init__(self, library: bytes) -> None:
        self.merges = read_merges(library)
        self.letters = byte_letters()
        tokens = [*self.letters.values(), *(a + b for a, b in self.merges)]
        self.ids = {token: number for number, token in enumerate(tokens)}

    def encode(self, piece: str) -> list[int]:
        """Return the token ids of one piece of text."""
        parts = [self.letters[byte] for byte in piece.encode()]
        while len(parts) > 1:
            ranks = [self.merges.get(pair, MERGE_COUNT) for pair in pairwise(parts)]
            best = min(ranks)
            if best == MERGE_COUNT:
                break
            parts = self._merge(parts, parts[ranks.index(best)], parts[ranks.index(best) + 1])
        return [self.ids[part] for part in parts]

    @staticmethod
    def _merge(parts: list[str], left: str, right: str) -> list[str]:
        merged, k = [], 0
        while k < len(parts):
            if parts[k : k + 2] == [left, right]:
                merged.append(left + right)
                k += 2
            else:
                merged.append(parts[k])
                k += 1
        return merged


def caption_pieces(samples: int) -> list[str]:
    """Return every piece of many drawn captions, sorted."""
    from scripts.embedded.draw import draw  # noqa: PLC0415 - only this command needs to draw

    return sorted({p for seed in range(samples) for p in pieces(draw(seed, 16, 16).caption)})


def common_pieces() -> list[str]:
    """Return the pieces of the other words and signs that users may type, sorted."""
    words = COMMON_WORDS_FILE.read_text().split()
    found = {f" {word}" for word in words} | {f" {word.capitalize()}" for word in words}
    found |= {f" {k}" for k in range(10)} | {str(k) for k in range(10)} | {" ", ",", ".", "!", "?"}
    return sorted(found)


def build(library: Path, samples: int, start_tokens: list[int]) -> dict[str, object]:
    """Return the vocabulary file's content; rows that are in use keep their place."""
    tokeniser = Tokeniser(library.read_bytes())
    start, _, rest = HEAD.partition("<|im_start|>")
    assert not start
    head = [SPECIALS["<|im_start|>"]]
    for piece in _WORD.findall(rest):
        head.extend(tokeniser.encode(piece))
    captions, common = caption_pieces(samples), common_pieces()
    words = {piece: tokeniser.encode(piece) for piece in [*captions, *common]}
    special = [*head, PAD_ID, *EMPTY_IDS, *TAIL_IDS]
    drawn = {token for piece in captions for token in words[piece]}.union(special)
    tokens = dict.fromkeys([*start_tokens, *special])
    for ids in words.values():
        tokens.update(dict.fromkeys(ids))
    strangers = [token for token in tokens if token not in drawn]
    return {"tokens": list(tokens), "head": head, "strangers": strangers, "words": words}


def main() -> None:
    """Write vocabulary.json from the runtime's shared library."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("library", type=Path, help="libstable-diffusion.so")
    parser.add_argument("--samples", type=int, default=200_000, help="captions to take words from")
    parser.add_argument("--start", type=Path, help="JSON list of token ids whose rows come first")
    options = parser.parse_args()
    start: list[int] = []
    if options.start:
        start = json.loads(options.start.read_text())
    elif VOCABULARY_FILE.exists():
        start = list(Vocabulary.load().tokens)
    content = build(options.library, options.samples, start)
    VOCABULARY_FILE.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")))


if __name__ == "__main__":
    main()
