"""Conversion of weight files to other types, with the runtime's converter.

The type of each tensor in the result is planned before the conversion begins. The plan is used to
check for enough free disk space and memory, and the result is compared with it. The converter may
abort, so it runs in a separate process (engine/native/convert.py). It writes to a temporary file
beside the target, which is renamed to the target when it is complete.

Two choices are unusual and intentional:

1. The runtime would quantise one-dimensional weights, mostly norms, which saves nothing and costs
   quality. A rule keeps them as f32, unless the caller's rules set another type.
2. The runtime allocates memory according to the default type alone, and crashes if the rules need
   more. Its default type is therefore the smallest that allocates enough memory, and the wanted
   type is passed as the last rule, which matches all tensors.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from sdstream.core.runtime_options import WTYPES
from sdstream.core.text import shown
from sdstream.settings import worker_environment
from sdstream.system import free_memory
from sdstream.weights import architectures, headers
from sdstream.weights.headers import BLOCKS, BadFile, Tensor, WeightFile
from sdstream.weights.inspection import inspect

#: Parts of names of tensors whose type the runtime never changes.
_KEPT: Final = (
    "img_in.", "txt_in.", "time_in.", "vector_in.", "guidance_in.", "final_layer.", "x_embedder.",
    "t_embedder.", "y_embedder.", "pos_embed", "context_embedder.", "time_embed.", "label_emb.",
    "embedding",
)  # fmt: skip
_KEPT_ENDINGS: Final = (".bias", ".scale")
#: Types that only safetensors files have -> the types to which the runtime converts them.
_READ_AS: Final = {"f8_e4m3": "f16", "f8_e5m2": "f16", "f64": "f32", "i64": "i32"}
#: Float types; norms may be converted to these without a loss of quality.
_FLOATS: Final = ("f32", "f16", "bf16")
_INTEGERS: Final = ("i8", "i16", "i32", "i64")
_SUFFIXES: Final = (".gguf", ".safetensors")
_LONGEST_NAME: Final = 127
#: Size of a tensor's entry in the new header in bytes, without its name.
_ENTRY: Final = 96

Progress = Callable[[float], None]
Rule = tuple[re.Pattern[str], str]


class ConversionError(Exception):
    """The conversion is not possible or has failed; the message is a complete sentence."""


@dataclass(frozen=True)
class Order:
    """The description of a conversion.

    Attributes:
        source: File to convert.
        target: File to write.
        wtype: One of WTYPES, for every tensor that supports it.
        rules: "PATTERN=TYPE,…"; the first pattern that is found in a tensor's name applies.
        vae: File of a VAE to add to a model that has none.
        force: Replace an existing target.
    """

    source: Path
    target: Path
    wtype: str
    rules: str = ""
    vae: Path | None = None
    force: bool = False


class Planned(NamedTuple):
    """A tensor and its type in the result."""

    tensor: Tensor
    type: str

    @property
    def size(self) -> int:
        """Size in the result, in bytes."""
        return size_of(self.tensor.elements, self.type)


def size_of(elements: int, type_name: str) -> int:
    """Return the bytes that weights of a type need."""
    block, octets = BLOCKS[type_name]
    return elements // block * octets


def convert(order: Order, progress: Progress) -> WeightFile:
    """Convert weights and write the target.

    Args:
        order: The description of the conversion.
        progress: Called with the finished fraction, from 0 to 1.

    Returns:
        The target's header.

    Raises:
        ConversionError: Nothing was written, and an existing target is unchanged.
    """
    _check_target(order)
    tensors = _tensors(order)
    rules = _rules(order.rules)
    guard = _protection(tensors, order.wtype)
    rules = [*rules, *([(guard, "f32")] if guard else [])]
    plan = [Planned(tensor, _outcome(tensor, order.wtype, rules)) for tensor in tensors]
    _check_plan(order, plan)
    with _beside(order.target) as part:
        _check_room(order, plan)
        _run(order, plan, rules, part, progress)
        found = _verified(part, plan)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(order.target)
    return found


# --- the plan -------------------------------------------------------------------------------------


def _check_target(order: Order) -> None:
    target = order.target
    if target.suffix not in _SUFFIXES:
        raise ConversionError(f"{target.name} must end in {' or '.join(_SUFFIXES)}.")
    if not target.parent.is_dir():
        raise ConversionError(f"The folder {target.parent} does not exist.")
    if target.is_dir():
        raise ConversionError(f"{target.name} is a folder.")
    if target.exists() and not order.force:
        raise ConversionError(f"{target.name} already exists; --force replaces it.")


def _tensors(order: Order) -> list[Tensor]:
    """Return all tensors to convert, with their names in the target."""
    source = _read(order.source)
    tensors = [*source.tensors]
    if order.vae is not None:
        contents = architectures.recognise(source.shapes)
        if contents.kind != "model" or "vae" in contents.parts:
            raise ConversionError(f"{order.source.name} is not a complete model without a VAE.")
        vae = _read(order.vae)
        if architectures.recognise(vae.shapes).kind != "vae":
            raise ConversionError(f"{order.vae.name} is not a VAE.")
        tensors += [t._replace(name=f"vae.{t.name.removeprefix('vae.')}") for t in vae.tensors]
    too_long = next((t.name for t in tensors if len(t.name) > _LONGEST_NAME), None)
    if too_long:
        raise ConversionError(f"The runtime would cut the name '{shown(too_long)}' short.")
    return [tensor for tensor in tensors if tensor.type != "u8"]  # the runtime ignores u8


def _read(path: Path) -> WeightFile:
    try:
        inspect(path)
        return headers.read(path)
    except BadFile as error:
        raise ConversionError(f"{path.name} {error}.") from None


def _rules(text: str) -> list[Rule]:
    rules = []
    for item in filter(None, text.split(",")):
        pattern, _, type_name = item.partition("=")
        if not (pattern and type_name):
            raise ConversionError(f"The rule '{item}' is not of the form PATTERN=TYPE.")
        if type_name not in WTYPES:
            raise ConversionError(
                f"The type in the rule '{item}' is not one of {', '.join(WTYPES)}."
            )
        try:
            rules.append((re.compile(pattern), type_name))
        except re.error as error:
            raise ConversionError(f"The pattern '{pattern}' cannot be read: {error}.") from None
    return rules


def _outcome(tensor: Tensor, wtype: str, rules: Sequence[Rule]) -> str:
    """Return the type of a tensor in the result."""
    before = _READ_AS.get(tensor.type, tensor.type)
    after = next((to for pattern, to in rules if pattern.search(tensor.name)), wtype)
    return after if _can_become(tensor, after) else before


def _can_become(tensor: Tensor, wtype: str) -> bool:
    name = tensor.name
    return not (
        tensor.shape[0] % BLOCKS[wtype][0]
        or name.endswith(_KEPT_ENDINGS)
        or any(part in name for part in _KEPT)
    )


def _protection(tensors: Sequence[Tensor], wtype: str) -> re.Pattern[str] | None:
    """Return a pattern that matches the one-dimensional tensors to keep as f32.

    The result is ``None`` if no tensor needs it, and always if ``wtype`` is a float type.
    """
    if wtype in _FLOATS:
        return None
    flat = {t.name for t in tensors if len(t.shape) == 1 and _can_become(t, wtype)}
    others = {t.name for t in tensors} - flat
    patterns = {_pattern(name, others) for name in flat}
    return re.compile(f"^(?:{'|'.join(sorted(patterns))})$") if patterns else None


def _pattern(name: str, others: Iterable[str]) -> str:
    """Return a pattern for a name that matches none of the others.

    As many numbers in the name as possible are replaced with ``\\d+``.
    """
    exact = re.escape(name)
    last = re.search(r"\d+(?=\D*$)", exact)
    for wide in (
        re.sub(r"\d+", r"\\d+", exact),
        re.sub(r"\d+", r"\\d+", exact[: last.start()]) + exact[last.start() :] if last else exact,
    ):
        if not any(re.fullmatch(wide, other) for other in others):
            return wide
    return exact


def _check_plan(order: Order, plan: Sequence[Planned]) -> None:
    for planned in plan:
        if planned.tensor.type in _INTEGERS and planned.type not in _INTEGERS:
            raise ConversionError(
                f"The runtime cannot convert '{planned.tensor.name}', which contains integers."
            )
    if order.target.suffix != ".safetensors":
        return
    for planned in plan:
        if planned.type not in (*_FLOATS, "i32"):
            raise ConversionError(
                f"safetensors cannot hold {planned.type}, the type of '{planned.tensor.name}'; "
                "choose a target that ends in .gguf."
            )


def _check_room(order: Order, plan: Sequence[Planned]) -> None:
    size = sum(planned.size + len(planned.tensor.name) + _ENTRY for planned in plan)
    free = shutil.disk_usage(order.target.parent).free
    if size > free:
        raise ConversionError(
            f"{order.target.name} needs {_megabytes(size)} and the disk has "
            f"{_megabytes(free)} free."
        )
    # The runtime holds the whole result, and one tensor as floats for each of its threads.
    largest = max(planned.tensor.elements for planned in plan)
    need = size + 8 * largest * (os.cpu_count() or 1)
    memory = free_memory()
    if need > memory:
        raise ConversionError(
            f"Converting takes {_megabytes(need)} of memory and {_megabytes(memory)} are free."
        )


def _megabytes(size: int) -> str:
    return f"{-(-size // 10**6):,} MB"


# --- the work -------------------------------------------------------------------------------------


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """Yield a locked temporary path beside the target, and delete the file afterwards.

    Raises:
        ConversionError: Another process holds the lock.
    """
    part = target.with_name(f".{target.stem}.part{target.suffix}")
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConversionError(f"{target.name} is being written by another process.") from None
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)


def _run(
    order: Order, plan: Sequence[Planned], rules: Sequence[Rule], part: Path, progress: Progress
) -> None:
    """Convert into ``part`` in a child process.

    If this process ends, the child removes ``part`` and exits.
    """
    words = {
        "source": str(order.source),
        "vae": str(order.vae or ""),
        "target": str(part),
        "wtype": _roomy_type(plan),
        "rules": ",".join(f"{pattern.pattern}={to}" for pattern, to in _all(order, rules)),
    }
    size = sum(planned.size for planned in plan)
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "sdstream.engine.native.convert", json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=worker_environment(),
            # Ctrl-C signals only the parent, which then ends the child.
            start_new_session=True,
        )
        # A fork of the child would keep the pipe open, so its group is killed when the child ends.
        watch = threading.Thread(target=_clear_up, args=(child,), daemon=True)
        watch.start()
        try:
            failed = _follow(child, size, progress)
            code = child.wait()
        finally:
            child.kill()
            watch.join()
            for pipe in (child.stdin, child.stdout):
                assert pipe is not None
                pipe.close()
        if failed or code:
            raise ConversionError(failed or _cause_of_death(code, log, has_rules=bool(order.rules)))


def _clear_up(child: subprocess.Popen[bytes]) -> None:
    child.wait()
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _all(order: Order, rules: Sequence[Rule]) -> list[Rule]:
    return [*rules, (re.compile("."), order.wtype)]


def _roomy_type(plan: Sequence[Planned]) -> str:
    """Return the smallest default type for which the runtime allocates enough memory."""
    need = sum(planned.size for planned in plan)
    room = {
        wtype: sum(
            size_of(
                tensor.elements,
                wtype if _can_become(tensor, wtype) else _READ_AS.get(tensor.type, tensor.type),
            )
            for tensor, _ in plan
        )
        for wtype in WTYPES
    }
    return min((w for w in WTYPES if room[w] >= need), key=room.__getitem__)


def _follow(child: subprocess.Popen[bytes], size: int, progress: Progress) -> str:
    """Report the child's progress; return the reason for its failure, or an empty text.

    Reading and quantising count as three quarters of the progress, and writing as one quarter.
    """
    assert child.stdout is not None
    failed = ""
    for line in child.stdout:
        report: dict[str, Any] = json.loads(line)
        failed = report.get("failed", failed)
        read = report.get("done", 0) / max(1, report.get("of", 1))
        progress(min(1.0, 0.75 * read + 0.25 * report.get("written", 0) / size))
    return failed


def _cause_of_death(code: int, log: IO[bytes], *, has_rules: bool) -> str:
    log.seek(0)
    text = log.read().decode("utf-8", "replace")
    # If several threads fail at the same time, C++ prints "terminate called recursively".
    if "regex_error" in text or (has_rules and "terminate called" in text):
        return (
            "The runtime cannot parse a pattern of the rules; patterns are ECMAScript regular "
            "expressions."
        )
    asserted = [line.strip() for line in text.splitlines() if "GGML_ASSERT" in line]
    how = signal.Signals(-code).name if code < 0 else f"status {code}"
    return f"The converter ended with {how}{': ' if asserted else ''}{''.join(asserted[:1])}."


def _verified(part: Path, plan: Sequence[Planned]) -> WeightFile:
    """Return the header of the written file.

    Raises:
        ConversionError: The file is damaged or differs from the plan.
    """
    try:
        found = headers.read(part)
    except BadFile as error:
        raise ConversionError(f"The written file {error}.") from None
    planned = {item.tensor.name: (item.type, item.tensor.elements) for item in plan}
    for tensor in found.tensors:
        if planned.get(tensor.name) != (tensor.type, tensor.elements):
            raise ConversionError(
                f"The written file differs from the plan: '{tensor.name}' is {tensor.type} of "
                f"{tensor.elements} weights."
            )
    # The runtime omits tensors that are not needed, such as step counters of the training, so only
    # whole components are compared.
    before = {item.tensor.name: item.tensor.shape for item in plan}
    if {*architectures.recognise(before).parts} != {*architectures.recognise(found.shapes).parts}:
        raise ConversionError("The written file lacks parts of the source.")
    return found
