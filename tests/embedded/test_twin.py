"""The PyTorch twin draws what the runtime draws."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("stable_diffusion_cpp")

import torch

from scripts.embedded import codec, model_file, native, text, twin
from scripts.embedded.philox import latent_noise

SMALL = twin.Shape(hidden=128, double_blocks=1, single_blocks=1, text_width=64)
PROMPT, NEGATIVE = "a red circle on a blue background", "green"


def random_weights(vocabulary: text.Vocabulary) -> dict[str, torch.Tensor]:
    """Small random weights, rounded as the GGUF rounds them, and a codec of block means."""
    torch.manual_seed(0)
    encoder = twin.TextEncoder(SMALL, len(vocabulary.tokens), vocabulary.head_rows())
    parts: dict[str, Any] = {
        "dit": twin.ImageNetwork(SMALL),
        "llm": encoder,
        "tae.decoder": twin.Decoder(),
    }
    weights = {}
    for prefix, module in parts.items():
        for name, value in module.state_dict().items():
            weights[f"{prefix}.{name}"] = random_like(name, value).half().float()
    weights["llm.embed_tokens.weight"][-1] = 0
    weights["codec.matrix"] = torch.from_numpy(block_means())
    return weights


def random_like(name: str, value: torch.Tensor) -> torch.Tensor:
    """Random numbers of the size such a parameter has."""
    if value.ndim == 1:
        if name.endswith("bias"):
            return 0.1 * torch.randn_like(value)
        return torch.empty_like(value).uniform_(0.5, 1.5)
    if value.ndim == 2:
        return torch.randn_like(value) * value.shape[1] ** -0.5
    return value


def block_means() -> codec.Floats:
    """A codec whose first three channels are a block's mean colour."""
    matrix = np.zeros((16, 192), np.float32)
    for channel in range(3):
        matrix[channel, channel::3] = 1 / 64
    return matrix


@pytest.fixture(scope="module")
def vocabulary() -> text.Vocabulary:
    """The vocabulary in use."""
    return text.Vocabulary.load()


@pytest.fixture(scope="module")
def weights(vocabulary: text.Vocabulary) -> dict[str, torch.Tensor]:
    """Random weights."""
    return random_weights(vocabulary)


@pytest.fixture(scope="module")
def runtime(
    weights: dict[str, torch.Tensor],
    vocabulary: text.Vocabulary,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[native.Runtime]:
    """The runtime with the same weights."""
    file = Path(tmp_path_factory.mktemp("twin")) / "random.gguf"
    model_file.write(file, model_file.Model(weights, 0), "f16", vocabulary.tokens)
    yield native.Runtime(file)
    file.unlink()


class Twin:
    """The whole road from a prompt to pixels in PyTorch."""

    def __init__(self, weights: dict[str, torch.Tensor], vocabulary: text.Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.network = twin.ImageNetwork(SMALL)
        self.encoder = twin.TextEncoder(SMALL, len(vocabulary.tokens), vocabulary.head_rows())
        self.decoder = twin.Decoder()
        for prefix, module in (
            ("dit.", self.network),
            ("llm.", self.encoder),
            ("tae.decoder.", self.decoder),
        ):
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            )

    def velocity(self, x: torch.Tensor, sigma: float, prompt: str) -> torch.Tensor:
        """The network's answer for one prompt with all of its padding."""
        batch = text.batch([self.vocabulary.rows(prompt)], self.vocabulary.pad_row())
        positions = torch.from_numpy(batch.positions)
        words = self.encoder(torch.from_numpy(batch.ids), positions, torch.from_numpy(batch.counts))
        bias = torch.from_numpy(batch.pad_bias)
        return self.network(x, torch.tensor([sigma]), words, positions, bias)

    def draw(self, seed: int, settings: native.Settings, negative: str) -> np.ndarray:
        """Generate PROMPT with Euler's method."""
        with torch.no_grad():
            return np.asarray(self._pixels(seed, settings, negative))

    def _pixels(self, seed: int, settings: native.Settings, negative: str) -> Any:
        noise = latent_noise(seed, settings.height // 8, settings.width // 8)
        x = torch.from_numpy(noise)[None]
        sigmas = schedule(settings.steps)
        for sigma, following in pairwise(sigmas):
            velocity = self.velocity(x, sigma, PROMPT)
            if settings.cfg != 1:
                without = self.velocity(x, sigma, negative)
                velocity = without + settings.cfg * (velocity - without)
            x = x + (following - sigma) * velocity
        pixels = self.decoder(x).clamp(0, 1)[0].permute(1, 2, 0).numpy()
        return pixels * 255


def schedule(steps: int) -> list[float]:
    """The runtime's discrete schedule for flow models: noise levels from 1 to 0."""
    times = np.linspace(999, 0, steps) if steps > 1 else np.array([999.0])
    levels = np.e / (np.e + 1000 / (times + 1) - 1)
    return [*levels.astype(np.float32).tolist(), 0.0]


@pytest.mark.parametrize(
    ("seed", "settings", "negative"),
    [
        (1, native.Settings(64, 64, steps=1, cfg=1.0), ""),
        (7, native.Settings(96, 64, steps=4, cfg=1.0), ""),
        (3, native.Settings(64, 96, steps=4, cfg=1.0), ""),
        (4, native.Settings(128, 224, steps=2, cfg=1.0), ""),
        (2**40 + 5, native.Settings(64, 64, steps=4, cfg=3.0), NEGATIVE),
    ],
)
def test_twin_draws_what_the_runtime_draws(
    runtime: native.Runtime,
    weights: dict[str, torch.Tensor],
    vocabulary: text.Vocabulary,
    seed: int,
    settings: native.Settings,
    negative: str,
) -> None:
    """With the same weights, prompt and seed, no pixel is further off than 2 of 255."""
    mine = Twin(weights, vocabulary).draw(seed, settings, negative)
    theirs = runtime.draw(PROMPT, seed, settings, negative).astype(np.float32)
    assert mine.std() > 3, "a picture of one colour proves nothing"
    assert np.abs(mine - theirs).max() <= 2


def test_encoder_layers_are_the_matrix() -> None:
    """The hand-placed convolutions compute exactly the linear map of 8x8 blocks."""
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(16, 192)).astype(np.float32) / np.float32(14)
    pictures = rng.integers(0, 256, (2, 32, 48, 3), np.uint8)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    state = {k: torch.from_numpy(v) for k, v in codec.encoder_state(matrix).items()}
    layer = 0
    while f"{layer}.weight" in state or f"{layer}.conv.0.weight" in state:
        if f"{layer}.weight" in state:
            stride = 2 if layer in (2, 6, 10) else 1
            weight, bias = state[f"{layer}.weight"], state.get(f"{layer}.bias")
            x = torch.nn.functional.conv2d(x, weight, bias, stride, padding=1)
        else:
            block = twin.DecoderBlock(64)
            prefix = f"{layer}."
            block.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )
            x = block(x)
        layer += 1
    assert np.abs(x.detach().numpy() - codec.encode(matrix, pictures)).max() < 1e-4


def test_the_matrix_is_read_from_its_layers() -> None:
    """What encoder_state wrote, matrix_of reads."""
    matrix = np.random.default_rng(0).normal(size=(16, 192)).astype(np.float32)
    assert np.array_equal(codec.matrix_of(codec.encoder_state(matrix)), matrix)


def test_expanded_heads_are_the_live_ones() -> None:
    """Query head j goes to place 4j beside key head j, and all the others are zero."""
    encoder = twin.TextEncoder(SMALL, 3, [0, 1])
    full = twin.expand_text_encoder(encoder.state_dict())
    queries = full["layers.0.self_attn.q_proj.weight"].unflatten(0, (32, 128))
    keys = full["layers.0.self_attn.k_proj.weight"].unflatten(0, (8, 128))
    live = encoder.state_dict()["layers.0.self_attn.q_proj.weight"].unflatten(0, (4, 128))
    assert torch.equal(queries[:16:4], live)
    assert [bool(head.any()) for head in queries] == [k % 4 == 0 and k < 16 for k in range(32)]
    assert [bool(head.any()) for head in keys] == [k < 4 for k in range(8)]
    assert full["layers.0.self_attn.o_proj.weight"].shape == (64, 4096)
    back = twin.contract_text_encoder(full, 4)
    assert all(torch.equal(back[name], value) for name, value in encoder.state_dict().items())
