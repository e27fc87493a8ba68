"""The headers of safetensors files, read without mapping the files.

Reading memory that is mapped to a file kills the process (SIGBUS) if another program has made the file shorter.

Format: 8 bytes with the length of the header, the header in JSON (dtype, shape and place of each tensor), the data.
"""

import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch

from coconut_ds.errors import CheckpointError
from coconut_ds.strict_json import parse_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""torch's dtypes by their names in files."""
MAX_HEADER_BYTES = 100_000_000
"""Largest header, in bytes, that the format allows."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Offset of its first byte in the file."""
    num_bytes: int

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return prod(self.shape)


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name, in the order of their bytes. Reads nothing but the header.

    Raises:
        CheckpointError: it is not a complete safetensors file.
    """
    try:
        with path.open("rb") as file:
            return _header(file)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _header(file: IO[bytes]) -> dict[str, Stored]:
    """The header of an open file.

    Raises:
        ValueError: says what is wrong with it.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    if len(start) < 8:
        raise ValueError("it ends within the length of its header")
    (length,) = struct.unpack("<Q", start)
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(f"its first 8 bytes are not a safetensors file's: a header of {length:,} bytes")
    values = parse_json(file.read(length).decode())
    if not isinstance(values, dict):
        raise ValueError("its header is not a JSON object")
    found = {name: _stored(name, value, 8 + length) for name, value in values.items() if name != "__metadata__"}
    found = dict(sorted(found.items(), key=lambda item: (item[1].begin, item[1].num_bytes)))
    end = 8 + length
    for name, stored in found.items():
        if stored.begin != end:
            raise ValueError(f"the data of {name} do not begin where those of the tensor before it end")
        end += stored.num_bytes
    if end != size:
        raise ValueError(f"its header describes {end:,} bytes")
    return found


def _stored(name: str, value: Any, offset: int) -> Stored:
    try:
        dtype, shape, (begin, end) = DTYPES[value["dtype"]], tuple(value["shape"]), value["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its header does not describe {name}, or not with a known dtype") from None
    numbers = (*shape, begin, end)
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"its header gives {name} a shape or place that is not made of whole numbers from 0 on")
    if end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(f"its header gives {name} {end - begin:,} bytes, which do not fit its shape {list(shape)}")
    return Stored(dtype, shape, offset + begin, end - begin)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    size = f"{path.stat().st_size:,}" if path.exists() else "no"
    return CheckpointError(
        f"{path}: cannot be loaded: it is not a complete safetensors file ({error}; it has {size} bytes); copy or "
        "download it again"
    )
