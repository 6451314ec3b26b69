"""The check that a LoRA fits a model; it runs before the runtime applies the LoRA.

The runtime aborts if the dimensions of a LoRA differ from the model's, or if a LoHa or ``.diff``
file is applied to quantised weights. If no name matches, it silently generates without the LoRA.
Names and shapes are sufficient to predict all of this.

The rules are those of stable-diffusion.cpp's src/lora.hpp. They use the runtime's own names of
tensors: ``lora.WEIGHT[.INDEX].PART``. Some weights of a model are several concatenated matrices
(query, key and value); a LoRA file contains them separately, with INDEX 0, 1 and 2.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

Shape = tuple[int, ...]
#: Part of a LoRA, such as "lora_up" -> its shape.
Parts = Mapping[str, Shape]

_PARTS: Final = (
    "lora_down", "lora_mid", "lora_up", "alpha", "scale", "diff",
    "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2",
    "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b",
)  # fmt: skip
_NAME: Final = re.compile(rf"lora\.(?P<key>.+)\.(?P<part>{'|'.join(_PARTS)})")
_INDEX: Final = re.compile(r"(?P<weight>.+)\.(?P<index>\d)")
#: Additional tensors of weight-decomposed LoRAs (DoRA); the runtime ignores them.
_DORA: Final = (".dora_scale", ".lora_magnitude_vector")
_PEFT: Final = "base_model.model."
#: Layers of a UNet in diffusers; the runtime recognises them only with the prefix "unet.".
_LAYERS: Final = ("down_blocks.", "mid_block.", "up_blocks.")

#: Types that are not quantised: the runtime can add a difference to weights of these types.
_PLAIN: Final = frozenset({"f32", "f16", "bf16", "f64", "f8_e4m3", "f8_e5m2", "i32", "i64"})
#: A weight of SDXL's second text encoder, which has query, key and value in one matrix.
_JOINED: Final = (
    "cond_stage_model.1.transformer.text_model.encoder.layers.0.self_attn.in_proj.weight"
)
_JOINED_LAYERS: Final = "cond_stage_model.1.transformer.text_model.encoder.layers"
_JOINED_ORDER: Final = {"q_proj": "", "k_proj": ".1", "v_proj": ".2"}
_SINGLE: Final = re.compile(r"self_attn\.(q_proj|k_proj|v_proj)\.(weight|bias)")


#: Matrices of a LoRA, which are applied one after the other.
_SIDES: Final = ("lora_down", "lora_mid", "lora_up")
_REMEDY: Final = "use this LoRA with the f16 file of the model"


class LoraUnfit(Exception):
    """The LoRA cannot be applied; the message is a predicate ("does not fit ...")."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of a model.

    Attributes:
        shape: Sizes of the dimensions, from the innermost one.
        quantised: The runtime stores the weight in a quantised type.
    """

    shape: Shape
    quantised: bool = False


def is_quantised(type_name: str) -> bool:
    """Return whether a ggml type is quantised, so that several weights share a block."""
    return type_name not in _PLAIN


def check_fit(
    tensors: Mapping[str, Shape],
    names: Collection[str],
    model: Mapping[str, Weight],
    mode: str = "auto",
) -> tuple[str, ...]:
    """Check that the runtime can apply a LoRA to a model.

    Args:
        tensors: The LoRA's tensors by the runtime's names.
        names: The same tensors as the file names them.
        model: The model's weights by the runtime's names.
        mode: The runtime option ``lora_mode``.

    Returns:
        One predicate for each part of the LoRA that is not applied.

    Raises:
        LoraUnfit: The LoRA would crash the runtime, or have no effect.
    """
    quantised = any(weight.quantised for weight in model.values())
    at_runtime = mode == "at_runtime" or (mode == "auto" and quantised)
    applied = 0
    for name, found in _by_weight(tensors, model).items():
        weight = model[name]
        if weight.quantised and not at_runtime:
            raise LoraUnfit(
                f"cannot be merged into quantised weights ('{name}'); omit 'lora_mode: {mode}' in "
                "the model's entry in models.yaml"
            )
        for parts in _complete(found):
            _check_form(name, parts, weight)
            _check_ranks(name, parts)
            if at_runtime:
                _check_dimensions(name, parts, weight)
            applied += len(parts)
        _check_size(name, [*_complete(found)], weight, pads=not at_runtime)
    count = len(tensors)
    if not applied:
        raise LoraUnfit(f"does not fit this model: {_why_none(names, count)}")
    left_out = []
    dora = sum(name.endswith(_DORA) for name in names)
    if applied + dora < count:
        left_out.append(f"was applied in part: {applied} of its {count} tensors fit this model")
    if dora:
        left_out.append(
            f"was applied without its {dora} DoRA scales, which the runtime does not read"
        )
    return tuple(left_out)


def _why_none(names: Collection[str], count: int) -> str:
    if any(name.startswith(_PEFT) for name in names):
        return (
            f"the runtime does not read names with the prefix '{_PEFT}', as PEFT saves them; "
            "remove that prefix from the names in the file"
        )
    if any(name.startswith(_LAYERS) for name in names):
        return (
            "the runtime reads the names of a UNet's layers only with the prefix 'unet.'; add "
            "it to the names in the file"
        )
    return f"none of its {count} tensors has the name of a weight of the model"


def _by_weight(
    tensors: Mapping[str, Shape], model: Mapping[str, Weight]
) -> dict[str, dict[int, dict[str, Shape]]]:
    """Return weight -> index -> parts, for the tensors that belong to a weight of the model."""
    found: dict[str, dict[int, dict[str, Shape]]] = defaultdict(lambda: defaultdict(dict))
    for name, shape in tensors.items():
        match = _NAME.fullmatch(_joined(name) if _JOINED in model else name)
        if match is None:
            continue
        weight, index = match["key"], 0
        numbered = _INDEX.fullmatch(weight)
        if weight not in model and numbered is not None:
            weight, index = numbered["weight"], int(numbered["index"])
        if weight in model:
            found[weight][index][match["part"]] = shape or (1,)  # a single number
    return found


def _joined(name: str) -> str:
    if _JOINED_LAYERS not in name:
        return name
    return _SINGLE.sub(lambda m: f"self_attn.in_proj.{m[2]}{_JOINED_ORDER[m[1]]}", name)


def _complete(found: Mapping[int, Parts]) -> Iterable[Parts]:
    """Yield the parts of index 0, 1, ... up to the first incomplete one.

    The runtime ignores the rest.
    """
    index = 0
    while index in found and _elements(found[index]) is not None:
        yield found[index]
        index += 1


def _elements(parts: Parts) -> int | None:
    """Return the number of weights that the parts change; None if a part is missing."""
    if {"lora_up", "lora_down"} <= parts.keys():
        return math.prod(parts["lora_up"]) // _rank(parts["lora_down"]) * _inner(parts)
    if "diff" in parts:
        return math.prod(parts["diff"])
    if {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"} <= parts.keys():
        if "hada_t1" in parts:  # Tucker decomposition: the core has the kernel's dimensions
            kernel = math.prod(parts["hada_t1"]) // _rank(parts["hada_w1_b"]) ** 2
            return _outer(parts["hada_w1_a"], parts["hada_w1_b"]) * kernel
        return _outer(parts["hada_w1_a"], parts["hada_w1_b"])
    sides = [_kronecker(parts, f"lokr_w{number}") for number in (1, 2)]
    return None if None in sides else math.prod(side for side in sides if side is not None)


def _kronecker(parts: Parts, name: str) -> int | None:
    if name in parts:
        return math.prod(parts[name])
    if {f"{name}_a", f"{name}_b"} <= parts.keys():
        return _outer(parts[f"{name}_a"], parts[f"{name}_b"])
    return None


def _rank(down: Shape) -> int:
    return down[-1]


def _outer(up: Shape, down: Shape) -> int:
    return math.prod(up) * math.prod(down) // _rank(down) ** 2


def _check_form(name: str, parts: Parts, weight: Weight) -> None:
    """Raise LoraUnfit for a form that the runtime cannot apply to a quantised weight."""
    forms = {"hada_w1_a": "a LoHa", "diff": "a difference ('.diff')"}
    form = next((form for part, form in forms.items() if part in parts), None)
    if weight.quantised and form is not None:
        raise LoraUnfit(
            f"contains {form}, which the runtime cannot apply to quantised weights ('{name}'); "
            f"{_REMEDY}"
        )


def _check_ranks(name: str, parts: Parts) -> None:
    """Raise LoraUnfit if the two matrices of a LoRA cannot be multiplied."""
    if not {"lora_up", "lora_down"} <= parts.keys():
        return
    up = parts["lora_up"]
    ranks = math.prod(up) // up[-1], _rank(parts["lora_down"])
    if ranks[0] != ranks[1]:
        raise LoraUnfit(
            f"is damaged: its two matrices for '{name}' have different ranks, {ranks[0]} and "
            f"{ranks[1]}"
        )


def _check_dimensions(name: str, parts: Parts, weight: Weight) -> None:
    """Raise LoraUnfit for matrices that the runtime cannot apply without changing the weight.

    The runtime does not change the weights of models with quantised weights. It multiplies the
    layer's input with the LoRA's matrices, which must therefore have the dimensions of the weight.
    """
    count = len(weight.shape)
    if count not in (2, 4):  # only linear layers and convolutions are applied like this
        return
    sides = [parts[part] for part in _SIDES if part in parts]
    if any(len(side) != count for side in sides):
        raise _wrong_count(name, count)
    if any(part.startswith("lokr") for part in parts):
        _check_kronecker(name, parts, weight)


def _wrong_count(name: str, count: int) -> LoraUnfit:
    return LoraUnfit(
        f"has matrices for '{name}' that do not have {count} dimensions, which the runtime "
        f"cannot apply to a quantised model; {_REMEDY}"
    )


def _check_kronecker(name: str, parts: Parts, weight: Weight) -> None:
    """Raise LoraUnfit for a LoKr that the runtime cannot apply without changing the weight.

    For convolutions, the runtime reads a factorised second matrix; for linear layers, none.
    """
    count = len(weight.shape)
    first, second = parts.get("lokr_w1"), parts.get("lokr_w2")
    if first is None or (second is None and count == 2):
        raise LoraUnfit(
            "contains a LoKr with factorised matrices, which the runtime cannot apply to a "
            f"quantised model ('{name}'); {_REMEDY}"
        )
    if second is not None and len(second) != count:
        raise _wrong_count(name, count)
    axis = 0 if count == 2 else 2
    inputs = weight.shape[axis]
    same = inputs % first[0] == 0 if second is None else inputs == first[0] * second[axis]
    if len(first) != 2 or not same:
        raise LoraUnfit(f"is for another model: its LoKr for '{name}' has other sides")


def _check_size(name: str, found: list[Parts], weight: Weight, *, pads: bool) -> None:
    """Raise LoraUnfit if the sizes of the LoRA's matrices do not match the weight.

    Args:
        name: Name of the weight.
        found: Complete parts, in the order of their index.
        weight: The model's weight.
        pads: The runtime adds rows of zeros if the last rows are missing.
    """
    if not found:
        return
    elements = sum(_elements(parts) or 0 for parts in found)
    wanted = math.prod(weight.shape)
    sides = [_inner(parts) for parts in found if "lora_down" in parts]
    inner = wanted // weight.shape[-1] if len(weight.shape) > 1 else None
    same = all(side == inner for side in sides) if inner else True
    short = pads and len(weight.shape) == 2 and elements < wanted and same
    if (elements == wanted and same) or short:
        return
    raise LoraUnfit(
        f"is for another model: its matrix for '{name}' has {elements} elements, and the model's "
        f"has {wanted}"
    )


def _inner(parts: Parts) -> int:
    """Return the number of inputs of a LoRA's first matrix, including the kernel's dimensions."""
    down = parts["lora_down"]
    kernel = math.prod(parts["lora_mid"]) // _rank(down) ** 2 if "lora_mid" in parts else 1
    return math.prod(down) // _rank(down) * kernel
