"""Training: the same command continues a run exactly, and what it keeps is what it goes on from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("safetensors")

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from scripts.embedded import text, train, twin
from scripts.embedded.optimiser import orthogonalise

SMALL = twin.Shape(hidden=128, double_blocks=1, single_blocks=1, text_width=64)
CPU = torch.device("cpu")


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> train.Options:
    """A run of a small network from random weights, one step long."""
    monkeypatch.setattr(train, "Shape", lambda: SMALL)
    vocabulary = text.Vocabulary.load()
    torch.manual_seed(0)
    encoder = twin.TextEncoder(SMALL, len(vocabulary.tokens) - 5, vocabulary.head_rows())
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
    save_file(weights, tmp_path / "start.safetensors", {"pictures": "1000"})
    return train.Options(
        task="network",
        checkpoint=tmp_path / "run.pt",
        start=tmp_path / "start.safetensors",
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


def test_keep(options: train.Options, tmp_path: Path) -> None:
    """The kept file has every weight as bfloat16, and another run starts from it."""
    seen = run(options).seen
    kept = tmp_path / "kept.safetensors"
    train.keep(kept, options.start, [options.checkpoint])
    with safe_open(kept, "pt") as file:
        assert file.metadata()["pictures"] == str(seen)
    average = torch.load(options.checkpoint, weights_only=True)["average"]
    weights = load_file(kept)
    assert set(weights) == {*load_file(options.start), *average}
    assert all(torch.equal(weights[name], value.bfloat16()) for name, value in average.items())
    following = replace(options, start=kept, checkpoint=tmp_path / "next.pt", until=seen + 1)
    assert run(following).seen > seen


@pytest.mark.skipif(not train.WEIGHTS_FILE.exists(), reason="nothing kept")
def test_kept_weights_fit() -> None:
    """The weights in the repository are small enough for it, and fit the network."""
    assert train.WEIGHTS_FILE.stat().st_size <= 20_000_000
    shape, vocabulary = twin.Shape(), text.Vocabulary.load()
    weights = load_file(train.WEIGHTS_FILE)
    assert len(weights["llm.embed_tokens.weight"]) <= len(vocabulary.tokens) + 1
    names = {f"dit.{name}" for name in twin.ImageNetwork(shape).state_dict()}
    assert {name for name in weights if name.startswith("dit.")} == names


def test_new_words_are_appended(options: train.Options) -> None:
    """Rows of words newer than the weights come after theirs; the unknown row stays last."""
    task = train.NetworkTask(options, load_file(options.start), 0)
    old = load_file(options.start)["llm.embed_tokens.weight"]
    new = task.module.state_dict()["llm.embed_tokens.weight"]
    assert torch.equal(new[: len(old) - 1], old[:-1])
    assert torch.equal(new[-1], old[-1])
    assert len(new) == len(old) + 5


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
