"""Training: the same command continues a run exactly, and what it keeps is what it goes on from."""

import lzma
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from scripts.embedded import export, model_file, text, train, twin
from scripts.embedded.optimiser import orthogonalise

SMALL = twin.Shape(hidden=128, double_blocks=1, single_blocks=1, text_width=64)
CPU = torch.device("cpu")
NEW_WORDS = 5
"""Words of the vocabulary that the starting model does not know."""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> train.Options:
    """A run of a small network from random weights, one step long."""
    monkeypatch.setattr(train, "Shape", lambda: SMALL)
    vocabulary = text.Vocabulary.load()
    torch.manual_seed(0)
    encoder = twin.TextEncoder(SMALL, len(vocabulary.tokens), vocabulary.head_rows())
    torch.nn.init.zeros_(encoder.embed_tokens.weight[-NEW_WORDS - 1 :])
    parts: dict[str, Any] = {
        "dit": twin.ImageNetwork(SMALL),
        "llm": encoder,
        "tae.decoder": twin.Decoder(),
    }
    weights = {
        f"{prefix}.{name}": value
        for prefix, module in parts.items()
        for name, value in module.state_dict().items()
    }
    weights["codec.matrix"] = torch.randn(16, 192) / 14
    start = model_file.Model({k: v.detach() for k, v in weights.items()}, 1000)
    model_file.write(tmp_path / "start.gguf", start, "f16", vocabulary.tokens)
    return train.Options(
        task="network",
        checkpoint=tmp_path / "run.pt",
        start=tmp_path / "start.gguf",
        batch=4,
        sizes=train.parse_sizes("32x32,32x48:2"),
        text_length=30,
        noise=0.7,
        rate=0.01,
        adam_rate=1e-3,
        limit=0,
        until=1000 + 1,
        anneal=0,
        save_every=1e9,
        processes=1,
        threads=1,
        workers=0,
        compile=False,
    )


def run(options: train.Options) -> train.Trainer:
    """Run until the number of pictures is reached."""
    trainer = train.Trainer(options, 0, CPU)
    trainer.run()
    return trainer


def test_a_run_continues_exactly(options: train.Options, tmp_path: Path) -> None:
    """Two runs, one after the other, end with the weights of one run as long as both."""
    first = run(options)
    longer = replace(options, until=first.seen + 1)
    continued = run(longer)
    straight = run(replace(longer, checkpoint=tmp_path / "other.pt"))
    assert continued.step == straight.step == 2
    for mine, theirs in zip(continued.parameters, straight.parameters, strict=True):
        assert torch.equal(mine, theirs)


def test_decoder_trains(options: train.Options) -> None:
    """The decoder's run goes through the same loop, and touches no other weight."""
    small = replace(options, task="decoder", sizes=train.parse_sizes("64x64"), batch=2, until=1)
    trainer = run(small)
    assert trainer.step == 1
    assert all(name.startswith("tae.") for name in trainer.module.state_dict())


def test_another_run_starts_from_what_was_exported(options: train.Options, tmp_path: Path) -> None:
    """An export has the average of a run in place of its start; the other parts stay."""
    trainer = run(options)
    start = train.starting_model(options)
    merged = export.merge(start, [options.checkpoint])
    assert merged.pictures == trainer.seen
    average = trainer.average.state_dict()
    assert all(torch.equal(merged.weights[name], value) for name, value in average.items())
    kept = [name for name in start.weights if name not in average]
    assert "codec.matrix" in kept
    assert all(torch.equal(merged.weights[name], start.weights[name]) for name in kept)
    exported = tmp_path / "model.gguf"
    model_file.write(exported, merged, "q8_0", text.Vocabulary.load().tokens)
    following = replace(
        options, start=exported, checkpoint=tmp_path / "next.pt", until=trainer.seen + 1
    )
    assert run(following).seen > trainer.seen


def test_the_shipped_model_is_read_back(tmp_path: Path) -> None:
    """Training goes on from exactly what was shipped: read and written again, no byte changes."""
    vocabulary, shape = text.Vocabulary.load(), twin.Shape()
    model = model_file.read(train.START, vocabulary.tokens, shape)
    network = twin.ImageNetwork(shape)
    network.load_state_dict(
        {k.removeprefix("dit."): v for k, v in model.weights.items() if k.startswith("dit.")}
    )
    again = tmp_path / "again.gguf"
    model_file.write(again, model, "q8_0", vocabulary.tokens)
    assert again.read_bytes() == lzma.decompress(train.START.read_bytes())


def test_new_words_start_random(options: train.Options) -> None:
    """Words that the model does not have get random rows; the others and the unknown row stay."""
    weights = train.starting_model(options).weights
    old = weights["llm.embed_tokens.weight"]
    task = train.NetworkTask(options, weights, 0)
    new = task.module.state_dict()["llm.embed_tokens.weight"]
    assert torch.equal(new[: -NEW_WORDS - 1], old[: -NEW_WORDS - 1])
    assert new[-NEW_WORDS - 1 : -1].any(1).all()
    assert not new[-1].any()


def test_pictures_are_seen_once(options: train.Options) -> None:
    """No two steps or processes share a picture, and none is one of the judge's."""
    two = replace(options, processes=2)
    seeds = [train.first_seed(two, step, rank) for step in range(50) for rank in range(2)]
    assert len(set(seeds)) == 100
    assert min(b - a for a, b in zip(sorted(seeds), sorted(seeds)[1:], strict=False)) > 10_000
    assert min(seeds) >= train.FIRST_SEED


def test_learning_rate(options: train.Options) -> None:
    """The rate warms up, stays, and falls to its last share before the end."""
    trainer = train.Trainer(replace(options, until=10_000, anneal=0.1), 0, CPU)
    assert trainer.rate_factor() == pytest.approx(0.01)
    trainer.step = 500
    assert trainer.rate_factor() == 1
    trainer.seen = 9_500
    assert trainer.rate_factor() == pytest.approx(0.5)
    trainer.seen = 10_000
    assert trainer.rate_factor() == train.LAST_RATE


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 96, 32), (1, 32, 80)])
def test_orthogonalise(shape: tuple[int, int, int]) -> None:
    """Singular values come out near one, whatever the matrix's form."""
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)).float())
    assert values.max() < 1.3
    assert values.median() > 0.6
