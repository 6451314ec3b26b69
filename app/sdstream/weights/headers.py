"""Reading and validation of the headers of weight files.

A header is read in blocks, and memory is never allocated according to a size that the file claims.
A damaged or malicious file therefore takes no more memory than a valid one, and is rejected with an
error. Three choices are unusual and intentional:

1. The reader of the gguf package is not used. It maps the file, which causes a SIGBUS if the file
   shrinks meanwhile. It creates an object for every token of a language model's vocabulary, which
   takes seconds. It reports damage as an IndexError. Only its tables of types are used.
2. Files that would crash the runtime are rejected: a dimension of 0 causes a division by zero in
   ggml, and an alignment that is not a u32 causes a failed assertion.
3. Pickles (.ckpt, .pt) are rejected although the runtime can read them, because they may execute
   code.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO, Final, NamedTuple

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from sdstream.core.text import is_unicode, shown

Scalar = str | int | float | bool

_MIB: Final = 2**20
_BLOCK: Final = _MIB
_MAX_GGUF_HEADER: Final = 64 * _MIB
#: Parsed JSON takes twenty times the memory of its text. A long training log in the metadata has a
#: few MiB.
_MAX_JSON_HEADER: Final = 16 * _MIB
_MAX_TENSORS: Final = 100_000
_MAX_METADATA: Final = 10_000
#: Eight letters, read as a number, are larger than this.
_NO_LENGTH: Final = 2**48
#: GGML_MAX_NAME of the installed runtime, including the terminating zero.
_MAX_NAME: Final = 128
_MAX_KEY: Final = 65_535
_MAX_STRING: Final = 32 * _MIB
_KEPT_STRING: Final = 2000
_MAX_DIMENSIONS: Final = 5
_MAX_ELEMENTS: Final = 2**62
_GGUF_VERSIONS: Final = (2, 3)
#: First number of the types that the runtime's ggml does not know yet.
_FIRST_UNKNOWN_TYPE: Final = 41

_U32: Final = Struct("<I")
_U64: Final = Struct("<Q")
_VALUE: Final[Mapping[int, Struct]] = {
    GGUFValueType.UINT8: Struct("<B"),
    GGUFValueType.INT8: Struct("<b"),
    GGUFValueType.UINT16: Struct("<H"),
    GGUFValueType.INT16: Struct("<h"),
    GGUFValueType.UINT32: _U32,
    GGUFValueType.INT32: Struct("<i"),
    GGUFValueType.FLOAT32: Struct("<f"),
    GGUFValueType.BOOL: Struct("<?"),
    GGUFValueType.UINT64: _U64,
    GGUFValueType.INT64: Struct("<q"),
    GGUFValueType.FLOAT64: Struct("<d"),
}

#: Number of a type in GGUF -> name, elements in a block, bytes of a block.
_GGUF_TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    int(kind): (kind.name.lower().replace("_k", "_K"), *GGML_QUANT_SIZES[kind])
    for kind in GGMLQuantizationType
    if kind < _FIRST_UNKNOWN_TYPE
}
#: Name of a type -> elements in a block, bytes of a block.
BLOCKS: Final[Mapping[str, tuple[int, int]]] = {
    name: (elements, octets) for name, elements, octets in _GGUF_TYPES.values()
}

#: safetensors' name of a type -> name, bytes in the file, bytes when loaded. The runtime skips
#: tensors of the type U8 and rejects types that are not listed here.
_SAFETENSORS_TYPES: Final[Mapping[str, tuple[str, int, int]]] = {
    "F64": ("f64", 8, 4),
    "F32": ("f32", 4, 4),
    "F16": ("f16", 2, 2),
    "BF16": ("bf16", 2, 2),
    "F8_E4M3": ("f8_e4m3", 1, 2),
    "F8_E5M2": ("f8_e5m2", 1, 2),
    "I64": ("i64", 8, 4),
    "I32": ("i32", 4, 4),
    "U8": ("u8", 1, 0),
}

#: First bytes of files that are not models, and the predicate of the error message.
_STRANGERS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the model itself: run 'git lfs pull'"),
    (b"\x89PNG", "is a PNG image, not a model"),
    (b"\xff\xd8\xff", "is a JPEG image, not a model"),
    (b"\x1f\x8b", "is a gzip archive: unpack it first"),
    (b"\xfd7zXZ", "is an xz archive: unpack it first"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it first"),
    (b"Rar!", "is a RAR archive: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "is a zstd archive: unpack it first"),
    (b"\x80", "is a Python pickle, which is a program: only safetensors and GGUF are read"),
    (
        b"PK\x03\x04",
        "is a PyTorch checkpoint (a zipped pickle, which is a program) or another zip archive: "
        "only safetensors and GGUF are read",
    ),
    (b"ggjt", "is in the GGML format that GGUF replaced in 2023"),
    (b"tjgg", "is in the GGML format that GGUF replaced in 2023"),
    (b"lmgg", "is in the GGML format that GGUF replaced in 2023"),
)


class BadFile(Exception):
    """The file cannot be used; the message is a predicate ("is empty") without a full stop."""


class Tensor(NamedTuple):
    """One tensor of a header.

    Attributes:
        name: Name in the file.
        type: ggml's name of the type ("q4_K", "f16"), or the name of a type that only safetensors
            files have ("f8_e4m3").
        shape: Sizes of the dimensions, from the innermost one, as in ggml.
        offset: Position of the first byte in the file.
        octets: Size in the file, in bytes.
        loaded: Size in bytes when the runtime has loaded the tensor.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    octets: int
    loaded: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class WeightFile:
    """The contents of a header, after validation against the file's length."""

    format: str
    size: int
    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, Scalar] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each tensor, in the file's order."""
        return {tensor.name: tensor.shape for tensor in self.tensors}


def read(path: Path) -> WeightFile:
    """Read the header of a weight file.

    Raises:
        BadFile: The file is not a model, is damaged, or ends before the end of its last tensor.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise BadFile("is a folder, not a file")
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe could block forever
            raise BadFile("is not a regular file")
        with path.open("rb") as file:
            return _read(file, status.st_size)
    except OSError as error:
        raise BadFile(f"cannot be read ({error.strerror})") from None


def _read(file: BinaryIO, size: int) -> WeightFile:
    start = file.read(512)
    if not start:
        raise BadFile("is empty")
    file.seek(0)
    if start.startswith(b"GGUF"):
        found = _read_gguf(file, size)
    else:
        # The length at the beginning of a safetensors file may equal the first bytes of another
        # format, so those are checked only if the rest does not look like safetensors.
        if start[8:9] != b"{" or _U64.unpack_from(start)[0] > _NO_LENGTH:
            _refuse_stranger(start)
        found = _read_safetensors(file, size)
    if not found.tensors:
        raise BadFile("contains no tensors")
    _refuse_short(found)
    return found


def _refuse_short(found: WeightFile) -> None:
    last = max(found.tensors, key=lambda tensor: tensor.offset + tensor.octets)
    wanted = last.offset + last.octets
    if wanted <= found.size:
        return
    cut = min(
        (tensor for tensor in found.tensors if tensor.offset + tensor.octets > found.size),
        key=lambda tensor: tensor.offset,
    )
    raise BadFile(
        f"ends in the middle of tensor '{shown(cut.name)}': {wanted} bytes are needed and there "
        f"are {found.size}"
    )


def _refuse_stranger(start: bytes) -> None:
    for magic, what in _STRANGERS:
        if start.startswith(magic):
            raise BadFile(what)
    if not any(start):
        raise BadFile("begins with nothing but zeros: the download was never finished")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        raise BadFile("is an HTML page, not a model: was the download behind a login?")
    if b"\0" not in start and _is_text(start):
        raise BadFile("is text, not a model")


def _is_text(start: bytes) -> bool:
    """Return True for UTF-8 text without control characters; its last character may be cut."""
    text = start.decode("utf-8", "replace").rstrip("\N{REPLACEMENT CHARACTER}")
    return all(c != "\N{REPLACEMENT CHARACTER}" and (c.isprintable() or c.isspace()) for c in text)


# --- GGUF ---------------------------------------------------------------------------------------


class _Header:
    """A reader of a file's beginning, which reads one block at a time."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size
        self._block = b""
        self._at = 0
        self._base = 0

    @property
    def position(self) -> int:
        """Number of bytes read or skipped so far."""
        return self._base + self._at

    @property
    def left(self) -> int:
        """Number of bytes in the rest of the file."""
        return self._size - self.position

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        if self._at + count > len(self._block):
            self._fill(count)
        self._at += count
        return self._block[self._at - count : self._at]

    def number(self, form: Struct) -> Any:
        """Return the next number."""
        return form.unpack(self.take(form.size))[0]

    def skip(self, count: int) -> None:
        """Skip bytes; those beyond the current block are not read."""
        if self._at + count <= len(self._block):
            self._at += count
            return
        self._check(count)
        self._base, self._at, self._block = self.position + count, 0, b""
        self._file.seek(self._base)

    def skip_strings(self, count: int) -> None:
        """Skip strings; a vocabulary has several hundred thousand of them."""
        for _ in range(count):
            if self._at + 8 > len(self._block):
                self._fill(8)
            length = _U64.unpack_from(self._block, self._at)[0]
            self._at += 8
            self.skip(length)

    def string(self, what: str, longest: int) -> str:
        """Return the next string; raise BadFile if it is longer than ``longest``."""
        length = self.number(_U64)
        if length > longest:
            raise BadFile(f"is damaged: {what} would be {length} bytes long")
        return self.take(length).decode("utf-8", "replace")

    def _fill(self, count: int) -> None:
        self._check(count)
        rest = self._block[self._at :]
        self._base, self._at = self.position, 0
        self._block = rest + self._file.read(max(_BLOCK, count) - len(rest))
        if len(self._block) < count:  # the file became shorter after stat()
            raise BadFile("is cut short: it ends within its header")

    def _check(self, count: int) -> None:
        if count > self.left:
            raise BadFile("is cut short: it ends within its header")
        if self.position + count > _MAX_GGUF_HEADER:
            raise BadFile(f"has a header of more than {_MAX_GGUF_HEADER // _MIB} MiB")


def _read_gguf(file: BinaryIO, size: int) -> WeightFile:
    header = _Header(file, size)
    header.skip(4)
    version = header.number(_U32)
    if version & 0xFFFF == 0:
        raise BadFile("is a GGUF of a big-endian machine: gguf-convert-endian converts it")
    if version not in _GGUF_VERSIONS:
        raise BadFile(f"is a GGUF of version {version}; the runtime reads versions 2 and 3")
    tensor_count = _count(header, "tensors", _MAX_TENSORS)
    metadata_count = _count(header, "metadata entries", _MAX_METADATA)
    metadata = dict(_entries(header, metadata_count))
    alignment = _alignment(metadata)
    metadata = {key: value for key, value in metadata.items() if value is not None}
    tensors = [_gguf_tensor(header, index) for index in range(tensor_count)]
    data = -(-header.position // alignment) * alignment
    _refuse_twins(tensors)
    return WeightFile(
        f"GGUF {version}",
        size,
        tuple(tensor._replace(offset=data + tensor.offset) for tensor in tensors),
        metadata,
    )


def _count(header: _Header, what: str, most: int) -> int:
    count: int = header.number(_U64)
    if count > most:
        raise BadFile(f"is damaged: its header declares {count} {what}")
    return count


def _entries(header: _Header, count: int) -> list[tuple[str, Any]]:
    entries = []
    for _ in range(count):
        key = header.string("a metadata key", _MAX_KEY)
        entries.append((key, _value(header, key)))
    return entries


def _value(header: _Header, key: str) -> Scalar | None:
    """Read the value of an entry; return None for lists and long texts, which are ignored."""
    kind = header.number(_U32)
    if key == "general.alignment" and kind != GGUFValueType.UINT32:
        raise BadFile("is damaged: its alignment is not a 32-bit number")
    if kind in _VALUE:
        value: Scalar = header.number(_VALUE[kind])
        return value
    if kind == GGUFValueType.STRING:
        text = header.string(f"the text of '{shown(key)}'", _MAX_STRING)
        return text if len(text) <= _KEPT_STRING else None
    if kind != GGUFValueType.ARRAY:
        raise BadFile(f"is damaged: the metadata entry '{shown(key)}' has the unknown type {kind}")
    kind, count = header.number(_U32), header.number(_U64)
    if kind in _VALUE:
        header.skip(count * _VALUE[kind].size)
    elif kind == GGUFValueType.STRING:
        header.skip_strings(count)
    else:
        raise BadFile(f"is damaged: the list '{shown(key)}' has the unknown type {kind}")
    return None


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment: int = metadata.get("general.alignment", 32)
    if alignment == 0 or alignment & (alignment - 1):
        raise BadFile(f"is damaged: its alignment is {alignment}")
    return alignment


def _gguf_tensor(header: _Header, index: int) -> Tensor:
    name = header.string(f"the name of tensor {index}", _MAX_NAME - 1)
    dimensions = header.number(_U32)
    if dimensions > _MAX_DIMENSIONS:
        raise BadFile(f"is damaged: tensor '{shown(name)}' has {dimensions} dimensions")
    shape = tuple(header.number(_U64) for _ in range(dimensions)) or (1,)
    elements = math.prod(shape)
    if not 0 < elements < _MAX_ELEMENTS:
        raise BadFile(f"is damaged: tensor '{shown(name)}' has the shape {list(shape)}")
    kind = header.number(_U32)
    if kind not in _GGUF_TYPES:
        raise BadFile(f"has tensor '{shown(name)}' in type {kind}, which the runtime does not know")
    label, block, octets = _GGUF_TYPES[kind]
    if shape[0] % block:
        raise BadFile(
            f"is damaged: tensor '{shown(name)}' has rows of {shape[0]}, which {label} cannot hold"
        )
    length = elements // block * octets
    return Tensor(name, label, shape, header.number(_U64), length, length)


def _refuse_twins(tensors: list[Tensor]) -> None:
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise BadFile(f"is damaged: it lists tensor '{shown(tensor.name)}' twice")
        seen.add(tensor.name)


# --- safetensors --------------------------------------------------------------------------------


def _read_safetensors(file: BinaryIO, size: int) -> WeightFile:
    head = file.read(8)
    length = _U64.unpack(head)[0] if len(head) == 8 else 0
    opening = file.read(1)
    if opening != b"{":
        raise BadFile("is neither GGUF nor safetensors")
    if length > _NO_LENGTH:
        raise BadFile(f"is damaged: its header would be {length} bytes long")
    if length > size - 8:
        raise BadFile(
            f"is cut short: its header alone is {length} bytes long and the file has {size}"
        )
    if length > _MAX_JSON_HEADER:
        raise BadFile(f"has a header of more than {_MAX_JSON_HEADER // _MIB} MiB")
    try:
        header = json.loads(opening + file.read(length - 1))
    except (ValueError, RecursionError):
        raise BadFile("is damaged: its header is not JSON") from None
    if not isinstance(header, dict):
        raise BadFile("is damaged: its header is not a list of tensors")
    metadata = header.pop("__metadata__", None)
    if len(header) > _MAX_TENSORS:
        raise BadFile(f"is damaged: its header declares {len(header)} tensors")
    tensors = tuple(_safetensors_tensor(name, entry, 8 + length) for name, entry in header.items())
    return WeightFile("safetensors", size, tensors, _texts(metadata))


def _texts(metadata: object) -> dict[str, Scalar]:
    if not isinstance(metadata, dict):
        return {}
    return {
        key: value
        for key, value in metadata.items()
        if isinstance(value, str) and len(value) <= _KEPT_STRING and is_unicode(key + value)
    }


def _safetensors_tensor(name: str, entry: object, data: int) -> Tensor:
    if "\0" in name or not is_unicode(name):  # the runtime cannot read such a name
        raise BadFile(f"is damaged: the name of its tensor '{shown(name)}' is not text")
    match entry:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [begin, end]} if all(
            # A number with thousands of digits may be parsed but not printed. True is an int.
            type(offset) is int and abs(offset) < _NO_LENGTH
            for offset in (begin, end)
        ):
            pass
        case _:
            raise BadFile(f"is damaged: its entry of tensor '{shown(name)}' is incomplete or wrong")
    if kind not in _SAFETENSORS_TYPES:
        raise BadFile(
            f"has tensor '{shown(name)}' in type {shown(kind)}, which the runtime does not read"
        )
    label, octets, loaded = _SAFETENSORS_TYPES[kind]
    if len(shape) > _MAX_DIMENSIONS:
        raise BadFile(f"is damaged: tensor '{shown(name)}' has {len(shape)} dimensions")
    whole = all(type(side) is int and 0 < side < _MAX_ELEMENTS for side in shape)
    elements = math.prod(shape) if whole else -1
    if not 0 <= elements < _MAX_ELEMENTS:
        raise BadFile(f"is damaged: tensor '{shown(name)}' has the shape {shown(str(shape))}")
    if begin < 0 or end - begin != elements * octets:
        raise BadFile(f"is damaged: tensor '{shown(name)}' is given {end - begin} bytes")
    inner_first = tuple(reversed(shape)) or (1,)
    return Tensor(name, label, inner_first, data + begin, end - begin, elements * loaded)
