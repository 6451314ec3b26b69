"""Train the embedded model: `python -m scripts.embedded.train network|decoder|enlarger`.

A run is stored in a checkpoint file, and the same command continues it. At --limit, at --until or
on SIGTERM, it writes the checkpoint and stops. SIGSTOP pauses it for as long as needed.

  network  the image network and the text encoder, by flow matching on drawn images
  decoder  the autoencoder's decoder, on crops of drawn images
  enlarger the upscaler, on the decoder's output for crops of drawn images

On the CPU several processes share the work (gloo). On a GPU one process trains, and --workers
other processes draw images ahead of it.
"""

from __future__ import annotations

import argparse
import copy
import fcntl
import math
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from scripts.embedded import codec, model_file, text
from scripts.embedded.draw import draw
from scripts.embedded.enlarger import FACTOR, Enlarger
from scripts.embedded.model_file import Model
from scripts.embedded.optimiser import Muon, has_bfloat16, views_like
from scripts.embedded.twin import Decoder, ImageNetwork, Shape, TextEncoder

START = Path(__file__).parents[2] / "app/sdstream/weights/embedded/drawings.gguf.xz"
"""The shipped model, from which a new run starts."""

FIRST_SEED = 1_000_000_000
"""Seeds of training images start here; lower seeds are for judging."""
SEEDS_PER_STEP = 1 << 20

TEXT_LENGTH = 30
"""Number of text tokens per training image: the real ones and a sample of the padding."""
DISTURBED = 0.3
"""Share of the captions that get meaningless words."""
WARM_UP_STEPS = 100
LAST_RATE = 0.03
"""Share of the learning rate that remains at the end of the annealing."""
STATUS_SECONDS = 30
MARGIN = 8
"""Width in pixels of the rim of an upscaler's crop, which is decoded without its surroundings."""
INNER = slice(MARGIN, -MARGIN)
CLIP_NORM = 1.0

Batch = dict[str, Tensor]
Sizes = tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Options:
    """One run's settings; the command line's flags have the same names."""

    task: str
    checkpoint: Path
    start: Path
    batch: int
    sizes: Sizes
    text_length: int
    noise: float
    """Centre of the noise levels of 128x128 images, before the sigmoid; larger is noisier."""
    rate: float
    adam_rate: float
    limit: float
    until: int
    anneal: float
    """The last share of the run, by `limit` or `until`, over which the learning rate falls."""
    save_every: float
    processes: int
    threads: int
    workers: int
    compile: bool
    port: int = 0


# --- the images ----------------------------------------------------------------------------------


def parse_sizes(words: str) -> Sizes:
    """Parse widths and heights in pixels with their weights, such as "128x128:8,64x64:1"."""
    sizes = []
    for word in words.split(","):
        size, _, weight = word.partition(":")
        width, height = (int(side) for side in size.split("x"))
        sizes.append((width, height, float(weight or 1)))
    return tuple(sizes)


def choose_size(sizes: Sizes, step: int) -> tuple[int, int]:
    """Choose a step's image size, the same in all processes."""
    weights = np.array([weight for *_, weight in sizes])
    pick = np.random.default_rng((7, step)).choice(len(sizes), p=weights / weights.sum())
    return sizes[pick][:2]


def batch_size(base: int, width: int, height: int) -> int:
    """Return how many images of a size cost as much as `base` images of 128x128."""
    tokens = width * height // 256
    return max(4, round(base * (64 + TEXT_LENGTH) / (tokens + TEXT_LENGTH)))


def first_seed(options: Options, step: int, rank: int) -> int:
    """Return the seed of the first image of a step's batch; no run repeats an earlier run's."""
    number = step * options.processes + rank
    return FIRST_SEED + (pictures_seen(options) << 40) + number * SEEDS_PER_STEP


@dataclass
class NetworkBatches(Dataset[Batch]):
    """Item k is the batch of step k: latents and tokens."""

    matrix: codec.Floats
    vocabulary: text.Vocabulary
    options: Options
    rank: int

    def __getitem__(self, step: int) -> Batch:
        width, height = choose_size(self.options.sizes, step)
        count = batch_size(self.options.batch, width, height)
        rng = np.random.default_rng((11, step, self.rank))
        seed = first_seed(self.options, step, self.rank)
        pixels: list[NDArray[np.uint8]] = []
        rows: list[list[int]] = []
        while len(rows) < count:
            picture = draw(seed, width, height)
            row = self._disturb(rng, self.vocabulary.rows(picture.caption))
            if len(row) < self.options.text_length:
                pixels.append(picture.pixels)
                rows.append(row)
            seed += 1
        latents = codec.encode(self.matrix, np.stack(pixels))
        words = text.batch(rows, self.vocabulary.pad_row(), self.options.text_length, rng)
        return {
            "latents": torch.from_numpy(latents),
            "ids": torch.from_numpy(words.ids),
            "positions": torch.from_numpy(words.positions),
            "counts": torch.from_numpy(words.counts),
            "pad_bias": torch.from_numpy(words.pad_bias),
        }

    def _disturb(self, rng: np.random.Generator, row: list[int]) -> list[int]:
        """Insert one to three meaningless words into some captions, so that they do no harm.

        Half of them stand at the beginning, as in "we see two red circles".
        """
        last = len(row) - len(text.TAIL_IDS)
        if last <= 2 or rng.random() > DISTURBED:
            return row
        at = 1 if rng.random() < 0.5 else int(rng.integers(1, last + 1))
        strangers = rng.choice(self.vocabulary.stranger_rows(), int(rng.integers(1, 4)))
        # Most words of the language have no row of their own.
        unknown = rng.random(len(strangers)) < 0.5
        words = np.where(unknown, self.vocabulary.unknown_row, strangers)
        return [*row[:at], *map(int, words), *row[at:]]


@dataclass
class DecoderBatches(Dataset[Batch]):
    """Item k is the batch of step k: pixels of 64x64 crops and their latents."""

    matrix: codec.Floats
    options: Options
    rank: int
    crop: int = 64

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((13, step, self.rank))
        width, height = choose_size(self.options.sizes, step)
        seed = first_seed(self.options, step, self.rank)
        crops = []
        for k in range(self.options.batch):
            pixels = draw(seed + k, width, height).pixels
            top = 8 * int(rng.integers(0, (height - self.crop) // 8 + 1))
            left = 8 * int(rng.integers(0, (width - self.crop) // 8 + 1))
            crops.append(pixels[top : top + self.crop, left : left + self.crop])
        pictures = np.stack(crops)
        return {
            "latents": torch.from_numpy(codec.encode(self.matrix, pictures)),
            "pixels": torch.from_numpy(pictures),
        }


@dataclass
class EnlargerBatches(Dataset[Batch]):
    """Item k is the batch of step k: latents of crops, and the same crops painted larger."""

    matrix: codec.Floats
    options: Options
    rank: int
    crop: int = 48
    """Side of a crop in pixels, including the margin that the loss ignores."""

    def __getitem__(self, step: int) -> Batch:
        rng = np.random.default_rng((17, step, self.rank))
        width, height = choose_size(self.options.sizes, step)
        seed = first_seed(self.options, step, self.rank)
        small, large = [], []
        for k in range(self.options.batch):
            picture = draw(seed + k, width, height).pixels
            painted = draw(seed + k, width * FACTOR, height * FACTOR).pixels
            top, left = self._choose(rng, picture)
            small.append(picture[top : top + self.crop, left : left + self.crop])
            inner = np.s_[
                FACTOR * (top + MARGIN) : FACTOR * (top + self.crop - MARGIN),
                FACTOR * (left + MARGIN) : FACTOR * (left + self.crop - MARGIN),
            ]
            large.append(painted[inner])
        pictures = np.stack(small)
        return {
            "latents": torch.from_numpy(codec.encode(self.matrix, pictures)),
            "small": torch.from_numpy(pictures),
            "pixels": torch.from_numpy(np.stack(large)),
        }

    def _choose(self, rng: np.random.Generator, picture: NDArray[np.uint8]) -> tuple[int, int]:
        """Choose the most varied of four places, since most of an image is one colour."""
        height, width = picture.shape[:2]
        places = [
            (8 * int(rng.integers(0, (height - self.crop) // 8 + 1)),
             8 * int(rng.integers(0, (width - self.crop) // 8 + 1)))
            for _ in range(4)
        ]  # fmt: skip
        return max(
            places,
            key=lambda at: picture[at[0] : at[0] + self.crop, at[1] : at[1] + self.crop].std(),
        )


# --- what is trained -----------------------------------------------------------------------------


class Task(Protocol):
    """Something to train: a module, its data and its loss."""

    module: nn.ModuleDict
    """All parameters, by the names of `model_file.Model.weights`."""
    dataset: Dataset[Batch]
    memory: int
    """Number of images over which old weights in the moving average decay to 1 / e."""
    half: bool
    """Whether to compute in bfloat16. A function in its place would end the compiled graph, and
    each step would compile the rest again."""

    def loss(self, batch: Batch, noise: Tensor, levels: Tensor) -> Tensor:
        """Return the mean loss; noise is shaped like the latents, levels [B] are in 0..1."""
        ...


def stratified(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Return uniform numbers, one from each of `count` equal parts of 0..1, in random order."""
    jitter = torch.rand(count, generator=generator, device=device)
    order = torch.randperm(count, generator=generator, device=device)
    return (order + jitter) / count


class NetworkTask:
    """Flow matching: the network predicts noise minus image."""

    memory = 12_000
    half = False

    def __init__(self, options: Options, weights: dict[str, Tensor], rank: int) -> None:
        vocabulary = text.Vocabulary.load()
        self.noise = options.noise
        shape = Shape()
        encoder = TextEncoder(shape, len(vocabulary.tokens), vocabulary.head_rows())
        self.module = nn.ModuleDict({"dit": ImageNetwork(shape), "llm": encoder})
        state = {k: v for k, v in weights.items() if k.startswith(("dit.", "llm."))}
        _start_new_words(state)
        self.module.load_state_dict(state)
        matrix = weights["codec.matrix"].numpy()
        self.dataset = NetworkBatches(matrix, vocabulary, options, rank)

    def loss(self, batch: Batch, noise: Tensor, levels: Tensor) -> Tensor:
        clean = batch["latents"]
        # Larger images keep their shapes under more noise, so the shift depends on the size.
        shift = self.noise + 0.5 * math.log(clean.shape[2] * clean.shape[3] / 256)
        sigma = torch.sigmoid(shift + 1.15 * torch.special.ndtri(levels.clamp(1e-4, 1 - 1e-4)))
        share = sigma[:, None, None, None]
        with torch.autocast(clean.device.type, torch.bfloat16, enabled=self.half):
            words = self.module["llm"](batch["ids"], batch["positions"], batch["counts"])
            velocity = self.module["dit"](
                (1 - share) * clean + share * noise,
                sigma,
                words,
                batch["positions"],
                batch["pad_bias"],
            )
        return (velocity.float() - (noise - clean)).square().mean()


def _start_new_words(state: dict[str, Tensor]) -> None:
    """Give random rows to tokens that are newer than the model; the last row stays zeros."""
    table = state["llm.embed_tokens.weight"].clone()
    new = ~table.any(1)
    new[-1] = False
    generator = torch.Generator().manual_seed(0)
    table[new] = 0.3 * torch.randn(int(new.sum()), table.shape[1], generator=generator)
    state["llm.embed_tokens.weight"] = table


class DecoderTask:
    """Trains the decoder to map slightly noisy latents back to pixels."""

    memory = 12_000
    half = False

    def __init__(self, options: Options, weights: dict[str, Tensor], rank: int) -> None:
        self.module = nn.ModuleDict({"tae": nn.ModuleDict({"decoder": Decoder()})})
        self.module.load_state_dict({k: v for k, v in weights.items() if k.startswith("tae.")})
        self.dataset = DecoderBatches(weights["codec.matrix"].numpy(), options, rank)

    def loss(self, batch: Batch, noise: Tensor, levels: Tensor) -> Tensor:
        latents = batch["latents"] + 0.05 * levels[:, None, None, None] * noise
        with torch.autocast(latents.device.type, torch.bfloat16, enabled=self.half):
            # The layout in which convolutions are fastest.
            latents = latents.contiguous(memory_format=torch.channels_last)
            drawn = self.module["tae"]["decoder"](latents)  # type: ignore[index]
        off = drawn.float() - batch["pixels"].permute(0, 3, 1, 2).float() / 255
        return off.abs().mean() + 2 * off.square().mean()


class EnlargerTask:
    """Trains the upscaler to map a decoded drawing to the same drawing, painted larger."""

    memory = 1_500
    half = False

    def __init__(self, options: Options, weights: dict[str, Tensor], rank: int) -> None:
        torch.manual_seed(0)
        self.module = nn.ModuleDict({"enlarger": Enlarger()})
        self.decoder = Decoder().requires_grad_(False)
        state = {k: v for k, v in weights.items() if k.startswith("tae.decoder.")}
        self.decoder.load_state_dict({k.removeprefix("tae.decoder."): v for k, v in state.items()})
        self.dataset = EnlargerBatches(weights["codec.matrix"].numpy(), options, rank)

    def loss(self, batch: Batch, noise: Tensor, levels: Tensor) -> Tensor:
        """Return the difference of pixels and edges, for latents as noisy as the network's."""
        level = levels[:, None, None, None]
        with torch.no_grad():
            latents = batch["latents"] + 0.15 * level * noise
            decoded = self.decoder.to(latents.device)(latents).clamp(0, 1)
            # A quarter of the inputs are clean drawings, since users may upscale any image.
            clean = batch["small"].permute(0, 3, 1, 2).float() / 255
            small = torch.where(level < 0.25, clean, decoded)[..., INNER, INNER]
        with torch.autocast(small.device.type, torch.bfloat16, enabled=self.half):
            small = small.contiguous(memory_format=torch.channels_last)
            drawn = self.module["enlarger"](small)
        drawn, wanted = drawn.float(), batch["pixels"].permute(0, 3, 1, 2).float() / 255
        across = (drawn.diff(dim=3) - wanted.diff(dim=3)).abs().mean()
        down = (drawn.diff(dim=2) - wanted.diff(dim=2)).abs().mean()
        return (drawn - wanted).abs().mean() + across + down


TASKS: dict[str, type[NetworkTask] | type[DecoderTask] | type[EnlargerTask]] = {
    "network": NetworkTask,
    "decoder": DecoderTask,
    "enlarger": EnlargerTask,
}


def split_parameters(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the matrices of the blocks, for Muon, and all the rest, for AdamW."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in module.named_parameters():
        inside = "blocks." in name or ".layers." in name
        chosen = parameter.ndim == 2 and inside and "mod" not in name
        (matrices if chosen else others).append(parameter)
    return matrices, others


# --- the loop ------------------------------------------------------------------------------------


class Trainer:
    """One process's share of a run."""

    def __init__(self, options: Options, rank: int, device: torch.device) -> None:
        self.options, self.rank, self.device = options, rank, device
        self.task = TASKS[options.task](options, starting_model(options).weights, rank)
        self.task.half = has_bfloat16(device)
        self.module = self.task.module.to(device)
        matrices, others = split_parameters(self.module)
        self.parameters = matrices + others
        self.muon = Muon(matrices, rank, options.processes)
        self.adam = torch.optim.AdamW(
            others, options.adam_rate, (0.9, 0.98), weight_decay=0.0, fused=device.type == "cuda"
        )
        # Gradients are views of one flat tensor, so that processes exchange them without copying.
        views, self.gradients = views_like(self.parameters, torch.float32)
        for parameter, view in zip(self.parameters, views, strict=True):
            parameter.grad = view
        self.average = copy.deepcopy(self.module).requires_grad_(False)
        self.step, self.seen, self.seconds = 0, pictures_seen(options), 0.0
        self.history: list[tuple[int, float]] = []
        if options.checkpoint.exists():
            self._resume(torch.load(options.checkpoint, map_location=device, weights_only=True))
        self.loss = (
            torch.compile(self.task.loss, dynamic=False) if options.compile else self.task.loss
        )
        self.stopping, self.elapsed = False, 0.0

    def _resume(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.average.load_state_dict(state["average"])
        self.muon.load(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.step, self.seen, self.seconds = state["step"], state["seen"], state["seconds"]
        self.history = state["history"]

    def save(self) -> None:
        """Write the checkpoint atomically."""
        if self.rank:
            return
        state = {
            "module": self.module.state_dict(),
            "average": self.average.state_dict(),
            "muon": self.muon.state(),
            "adam": self.adam.state_dict(),
            "step": self.step,
            "seen": self.seen,
            "seconds": self.seconds,
            "history": self.history,
        }
        partial = self.options.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.options.checkpoint)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches of the next steps, on the device."""
        ahead: dict[str, Any] = {}
        if self.options.workers:
            ahead = {"multiprocessing_context": "spawn", "prefetch_factor": 4}
        loader = DataLoader(
            self.task.dataset,
            batch_size=None,
            sampler=range(self.step, 1 << 40),
            num_workers=self.options.workers,
            pin_memory=self.device.type == "cuda",
            **ahead,
        )
        for batch in loader:
            yield {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}

    def rate_factor(self) -> float:
        """Return the current share of the learning rate."""
        factor = min(1.0, (self.step + 1) / WARM_UP_STEPS)
        if self.options.anneal:
            left = self.share_left() / self.options.anneal
            factor *= min(1.0, max(LAST_RATE, left))
        return factor

    def share_left(self) -> float:
        """Return the share of the run that remains, by time or by images."""
        left = 1.0
        if self.options.until:
            left = 1 - self.seen / self.options.until
        if self.options.limit:
            left = min(left, 1 - self.elapsed / self.options.limit)
        return left

    def run(self) -> None:
        """Train until a limit is reached or a signal arrives; then save."""
        begin = saved = shown = time.monotonic()
        before, losses, pictures = self.seconds, [], 0
        for batch in self.batches():
            loss, count = self.advance(batch)
            losses.append(loss)
            pictures += count
            now = time.monotonic()
            self.seconds = before + now - begin
            if now - shown > STATUS_SECONDS:
                self.show(torch.stack(losses).mean().item(), pictures / (now - shown))
                losses, pictures, shown = [], 0, now
            if now - saved > self.options.save_every:
                self.save()
                saved = now
            over = self.options.until and self.seen >= self.options.until
            if self.stopping or over:
                break
        self.save()

    def advance(self, batch: Batch) -> tuple[Tensor, int]:
        """Train one step; return the mean loss and the number of images of all processes."""
        generator = torch.Generator(self.device).manual_seed((self.step << 8) + self.rank)
        clean = batch["latents"]
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        levels = stratified(len(clean), generator, self.device)
        loss = self.loss(batch, noise, levels)
        loss.backward()
        mean = self.exchange(loss.detach())
        factor = self.rate_factor()
        nn.utils.clip_grad_norm_(self.adam.param_groups[0]["params"], CLIP_NORM)
        self.adam.param_groups[0]["lr"] = self.options.adam_rate * factor
        self.adam.step()
        self.muon.step(self.options.rate * factor)
        self.gradients.zero_()
        count = len(clean) * self.options.processes
        self.follow(count)
        self.step, self.seen = self.step + 1, self.seen + count
        return mean, count

    def exchange(self, loss: Tensor) -> Tensor:
        """Average gradients, loss and time over the processes; stop all if one wants to stop."""
        self.elapsed = time.monotonic() - _started
        if self.options.processes == 1:
            self.stopping = self.wants_to_stop()
            return loss
        words = torch.tensor([float(loss), float(self.wants_to_stop()), self.elapsed])
        dist.all_reduce(words)
        dist.all_reduce(self.gradients)
        self.gradients /= self.options.processes
        self.stopping = bool(words[1] > 0)
        self.elapsed = float(words[2]) / self.options.processes
        return words[0] / self.options.processes

    def wants_to_stop(self) -> bool:
        """Return whether this process was asked to stop or has reached the time limit."""
        return _stop_requested or (0 < self.options.limit < self.elapsed)

    @torch.no_grad()
    def follow(self, pictures: int) -> None:
        """Move the average towards the weights."""
        share = 1 - math.exp(-pictures / min(self.task.memory, 100 + self.seen))
        torch._foreach_lerp_(list(self.average.parameters()), self.parameters_in_order(), share)

    def parameters_in_order(self) -> list[Tensor]:
        """Return the parameters in the order of the average's parameters."""
        return [parameter.detach() for parameter in self.module.parameters()]

    def show(self, loss: float, speed: float) -> None:
        """Print the status line and remember the loss."""
        self.history.append((self.seen, loss))
        if self.rank == 0:
            rate = self.options.rate * self.rate_factor()
            words = f"{self.seen:>10,} pictures  {speed:7.1f}/s  loss {loss:.4f}  rate {rate:.5f}"
            print(f"{time.strftime('%H:%M:%S')}  step {self.step:>7}  {words}", flush=True)


_stop_requested = False
_started = time.monotonic()


def _request_stop(_signal: int, _frame: FrameType | None) -> None:
    global _stop_requested  # noqa: PLW0603 - a signal handler has nowhere else to write
    _stop_requested = True


@cache
def starting_model(options: Options) -> Model:
    """Return the model from which a new run starts."""
    return model_file.read(options.start, text.Vocabulary.load().tokens, Shape())


def pictures_seen(options: Options) -> int:
    """Return how many images the starting network has seen; the other tasks start from zero."""
    return starting_model(options).pictures if options.task == "network" else 0


def work(rank: int, options: Options) -> None:
    """Run one process of the training."""
    signal.signal(signal.SIGTERM, _request_stop)
    signal.signal(signal.SIGINT, _request_stop)
    torch.set_num_threads(options.threads)
    torch._dynamo.config.recompile_limit = 64  # one compilation for each image size
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.processes > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # noqa: TID251 - gloo has no other way
        dist.init_process_group(
            "gloo",
            init_method=f"tcp://127.0.0.1:{options.port}",
            rank=rank,
            world_size=options.processes,
            timeout=timedelta(days=7),  # a paused process must not be mistaken for a dead one
        )
    trainer = Trainer(options, rank, device)
    if rank == 0:
        size = sum(p.numel() for p in trainer.parameters)
        print(f"{size:,} parameters on {device}, {trainer.seen:,} pictures seen", flush=True)
    trainer.run()
    if options.processes > 1:
        dist.destroy_process_group()


@contextmanager
def sole_user(checkpoint: Path) -> Iterator[None]:
    """Hold a run's lock file, since two runs would overwrite each other's checkpoint."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with checkpoint.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another run is using {checkpoint}") from None
        yield


def launch(options: Options) -> None:
    """Run the training in the requested number of processes."""
    if options.processes == 1:
        work(0, options)
        return
    # A signal reaches the children through their process group, or through `forward`.
    context = mp.start_processes(work, (options,), options.processes, join=False)
    assert context is not None

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in context.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGINT, forward)
    while not context.join():
        pass


# --- the command line ----------------------------------------------------------------------------


def free_port() -> int:
    """Return a free local port over which the processes can connect."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    gpu = torch.cuda.is_available()
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="task", required=True)
    for task, batch, sizes in (
        (
            "network",
            512 if gpu else 32,
            "128x128:4,192x128:2,128x192:3,192x192:2,224x128:4,128x224:4,256x96:3,96x256:3,256x256:1",
        ),
        ("decoder", 256 if gpu else 8, "128x128:4,64x64:1,256x256:1,192x128:1"),
        ("enlarger", 64 if gpu else 4, "128x128:3,256x256:1,192x128:1,128x192:1,64x64:1"),
    ):
        add = commands.add_parser(task).add_argument
        add("checkpoint", type=Path, help="the run's file; made, or continued")
        add("--start", type=Path, default=START, help="the GGUF that a new run starts from")
        add("--batch", type=int, default=batch, help="pictures of 128x128 per process and step")
        add("--sizes", type=parse_sizes, default=parse_sizes(sizes), help="WxH:weight, ...")
        add("--text-length", type=int, default=TEXT_LENGTH, help="text tokens; 256 is exact")
        add("--noise", type=float, default=0.7, help="more teaches shapes, less details")
        add("--rate", type=float, default=0.015, help="learning rate of the blocks' matrices")
        add("--adam-rate", type=float, default=2e-3, help="learning rate of the rest")
        add("--limit", type=float, default=0, help="seconds to run; 0: no limit")
        add("--until", type=int, default=0, help="pictures to stop at; 0: never")
        add("--anneal", type=float, default=0, help="last share of the run to anneal, 0..1")
        add("--save-every", type=float, default=180, help="seconds between checkpoints")
        add("--processes", type=int, default=1 if gpu else cores)
        add("--threads", type=int, default=4 if gpu else 1, help="threads of each process")
        add("--workers", type=int, default=max(1, cores - 2) if gpu else 0, help="drawing ahead")
        add("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    """Run the training that the command line describes."""
    arguments = vars(parse_options())
    with sole_user(arguments["checkpoint"]):
        launch(Options(**arguments, port=free_port()))


if __name__ == "__main__":
    main()
