"""Another runtime in the place of bare.py: PyTorch, or OpenVINO.

It measures the cost of one image in them: the steps of the diffusion network, and the autoencoder.
The networks are those of the package diffusers, with random weights of the shapes that speed.py
uses. The text encoders are left out. The networks use bf16 if the CPU supports it, otherwise f32.

It has the protocol of bare.py: a first line with ``threads`` and ``kernels``, then a line for every
line of stdin. It runs in a separate virtual environment (scripts/bench kernels --peers):

    peer.py (pytorch | openvino | openvino-int8) (sd1 | flux) THREADS FOLDER

OpenVINO's networks are converted once and kept in FOLDER. Converting FLUX.1 takes 12 GB of memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, UNet2DConditionModel

#: Tokens of the prompt, padded as the runtime pads it.
_CLIP_TOKENS = 77
_T5_TOKENS = 256

Shapes = list[list[int]]
Compute = Callable[[], None]


class _Call(torch.nn.Module):  # type: ignore[misc]
    """A network as a function of tensors that returns one tensor."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.network(*tensors, return_dict=False)[0]


class _Decode(_Call):
    def forward(self, *tensors: torch.Tensor) -> Any:
        return self.network.decode(*tensors, return_dict=False)[0]


@dataclass(frozen=True)
class Network:
    """A network, and the shapes of its inputs for an image.

    Attributes:
        make: Creates the network, with random weights.
        shapes: Returns the shapes of its inputs for a number of latent rows and columns.
    """

    make: Callable[[], torch.nn.Module]
    shapes: Callable[[int, int], Shapes]


def _unet() -> torch.nn.Module:
    return _Call(UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8))


def _flux() -> torch.nn.Module:
    return _Call(FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=False))


def _autoencoder(channels: int) -> Callable[[], torch.nn.Module]:
    def make() -> torch.nn.Module:
        return _Decode(
            AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                latent_channels=channels,
            )
        )

    return make


def _flux_shapes(rows: int, columns: int) -> Shapes:
    tokens = rows * columns // 4
    return [
        *([1, tokens, 64], [1, _T5_TOKENS, 4096], [1, 768], [1]),
        *([tokens, 3], [_T5_TOKENS, 3]),
    ]


#: Model -> phase -> its network. SD1.5 evaluates its U-Net with and without the prompt, as a batch.
NETWORKS = {
    "sd1": {
        "sampling": Network(_unet, lambda h, w: [[2, 4, h, w], [1], [2, _CLIP_TOKENS, 768]]),
        "decoding": Network(_autoencoder(4), lambda h, w: [[1, 4, h, w]]),
    },
    "flux": {
        "sampling": Network(_flux, _flux_shapes),
        "decoding": Network(_autoencoder(16), lambda h, w: [[1, 16, h, w]]),
    },
}


def _inputs(shapes: Shapes) -> list[torch.Tensor]:
    return [torch.full(s, 0.5) if len(s) == 1 else torch.randn(s) for s in shapes]


def _computes_bf16() -> bool:
    flags = Path("/proc/cpuinfo").read_text().split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


class PyTorch:
    """The networks as PyTorch runs them, without compilation."""

    def __init__(self, model: str, threads: int, _folder: Path) -> None:
        torch.set_num_threads(threads)
        self._type = torch.bfloat16 if _computes_bf16() else torch.float32
        self.title = f"pytorch {torch.__version__}, {'bf16' if _computes_bf16() else 'f32'}"
        self._networks = {
            phase: network.make().eval().to(self._type, memory_format=torch.channels_last)
            for phase, network in NETWORKS[model].items()
        }

    def prepare(self, phase: str, shapes: Shapes) -> Compute:
        """Return a function that computes the phase once."""
        network = self._networks[phase]
        tensors = [one.to(self._type) for one in _inputs(shapes)]

        def compute() -> None:
            with torch.inference_mode():
                network(*tensors)

        return compute


class OpenVino:
    """The networks as OpenVINO compiles them."""

    def __init__(self, model: str, threads: int, folder: Path, *, int8: bool = False) -> None:
        import openvino

        self._openvino = openvino
        self._files = {p: folder / f"{model}-{p}{'-int8' * int8}.xml" for p in NETWORKS[model]}
        for phase in NETWORKS[model]:
            # The conversion leaves gigabytes allocated, so it runs in a separate process.
            command = [sys.executable, __file__, "convert", model, phase, str(folder)]
            for kind in ("f32", "int8")[: 1 + int8]:
                subprocess.run([*command, kind], stdout=sys.stderr, check=True)
        precision = "bf16" if _computes_bf16() else "f32"
        self._options = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
        }
        release = openvino.__version__.partition("-")[0]
        self.title = f"openvino {release}, {'int8 and ' if int8 else ''}{precision}"

    def prepare(self, phase: str, shapes: Shapes) -> Compute:
        """Return a function that computes the phase once."""
        core = self._openvino.Core()
        model = core.read_model(self._files[phase])
        model.reshape(dict(zip(model.inputs, shapes, strict=True)))
        request = core.compile_model(model, "CPU", self._options).create_infer_request()
        tensors = [one.numpy() for one in _inputs(shapes)]
        return lambda: request.infer(tensors)


def _convert(model: str, phase: str, folder: str, kind: str) -> None:
    """Write a network for OpenVINO if it does not exist: in f32, or quantized from f32 to int8."""
    import openvino

    network = NETWORKS[model][phase]
    plain, wanted = Path(folder, f"{model}-{phase}.xml"), Path(folder, f"{model}-{phase}-int8.xml")
    if (wanted if kind == "int8" else plain).exists():
        return
    _say(f"converting {model}, {phase}, to {kind}")
    shapes = network.shapes(32, 32)
    if kind == "f32":
        with torch.inference_mode():
            module = network.make().eval()
            made = openvino.convert_model(module, example_input=tuple(_inputs(shapes)))
        _save(made, plain)
        return
    import nncf

    made = openvino.Core().read_model(plain)
    made.reshape(dict(zip(made.inputs, shapes, strict=True)))
    samples = nncf.Dataset([[one.numpy() for one in _inputs(shapes)]])
    _save(
        nncf.quantize(made, samples, subset_size=1, model_type=nncf.ModelType.TRANSFORMER), wanted
    )


def _save(model: Any, file: Path) -> None:
    import openvino

    part = file.with_stem(f"{file.stem}-part")
    openvino.save_model(model, part, compress_to_fp16=False)
    part.with_suffix(".bin").rename(file.with_suffix(".bin"))
    part.rename(file)


PEERS: dict[str, Callable[[str, int, Path], PyTorch | OpenVino]] = {
    "pytorch": PyTorch,
    "openvino": OpenVino,
    "openvino-int8": lambda *them: OpenVino(*them, int8=True),
}


def _serve(peer: PyTorch | OpenVino, networks: dict[str, Network], answers: TextIO) -> None:
    prepared: dict[tuple[str, str], Compute] = {}
    for line in sys.stdin:
        work = json.loads(line)
        width, height = (int(side) // 8 for side in work["size"].split("x"))
        phases = {}
        began = time.monotonic()
        for phase, network in networks.items():
            key = (phase, work["size"])
            if key not in prepared:
                prepared[key] = peer.prepare(phase, network.shapes(height, width))
                prepared[key]()  # the first call allocates
            cpu = time.process_time()
            for _ in range(work["steps"] if phase == "sampling" else 1):
                prepared[key]()
            phases[phase] = time.process_time() - cpu
        fields = {"seconds": time.monotonic() - began, "cpu": sum(phases.values())}
        _answer(answers, {**fields, "phases": phases})


def _answer(answers: TextIO, fields: dict[str, Any]) -> None:
    print(json.dumps(fields), file=answers, flush=True)


def _say(what: str) -> None:
    print(f"[peer] {what}", file=sys.stderr, flush=True)


def _main() -> None:
    if sys.argv[1] == "convert":
        _convert(*sys.argv[2:])
        return
    # Output of the libraries must not appear between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    name, model, threads, folder = sys.argv[1:]
    peer = PEERS[name](model, int(threads), Path(folder))
    _answer(answers, {"threads": int(threads), "kernels": peer.title})
    _serve(peer, NETWORKS[model], answers)


if __name__ == "__main__":
    _main()
