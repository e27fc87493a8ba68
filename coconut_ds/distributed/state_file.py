"""Files that hold a nested state, such as that of an optimizer, and that run no code when they are read.

A file is a safetensors file. It holds the tensors and arrays of the state; the rest of it (dicts, lists, numbers,
texts) is JSON text in the file's metadata. A few classes of DeepSpeed occur in its states, and these are the only ones
whose objects can be written or read. A pickle, in contrast, may name any function, which is called when it is read.

In the JSON text, a list stands for a list; every other value that JSON lacks is an object with one key, which names its
type.
"""

import enum
import json
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coconut_ds.distributed.zero import state_classes
from coconut_ds.errors import CheckpointError
from coconut_ds.strict_json import parse_json

SUFFIX = ".safetensors"
TREE = "tree"
"""Key of the JSON text in the metadata of a file."""
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names of types in a safetensors file. Unsigned integers of numpy are written as bytes."""


@dataclass
class StateTree:
    """A nested state, divided into its tensors and everything else."""

    tensors: list[Tensor]
    tree: Any
    """Values of JSON, in which tensors are named by their index."""

    @classmethod
    def of(cls, state: Any) -> "StateTree":
        """Divides a state. Tensors that are the same view of the same memory become one.

        Raises:
            CheckpointError: the state contains an object of a type that cannot be written.
        """
        writer = _Encoder()
        tree = writer.encode(state)
        return cls(writer.tensors, tree)

    @property
    def num_bytes(self) -> int:
        """Size of all tensors, in bytes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)

    def copy(self) -> None:
        """Replaces the tensors by copies in the memory of the host, so that they no longer change with the engine."""
        self.tensors = [tensor.detach().to("cpu", copy=True).contiguous() for tensor in self.tensors]

    def write(self, path: Path) -> None:
        """Writes a safetensors file, one tensor after the other."""
        # In the order of the sizes of elements, so that each tensor is aligned.
        order = sorted(range(len(self.tensors)), key=lambda index: -self.tensors[index].element_size())
        header: dict[str, Any] = {"__metadata__": {TREE: json.dumps(self.tree, allow_nan=False)}}
        offset = 0
        for index in order:
            tensor = self.tensors[index]
            end = offset + tensor.numel() * tensor.element_size()
            header[str(index)] = {
                "dtype": DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for index in order:
                file.write(_bytes_of(self.tensors[index]))


def write_state(state: Any, path: Path) -> None:
    """Writes a nested state.

    Raises:
        CheckpointError: the state contains an object of a type that cannot be written.
        OSError: the file cannot be written.
    """
    StateTree.of(state).write(path)


def read_state(path: Path) -> Any:
    """Reads what ``write_state`` wrote; the tensors are in the memory of the host. No content of the file runs code.

    Raises:
        CheckpointError: the file is missing, or is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {})[TREE]
            # Cloned, since tensors of a safetensors file are mapped to it, and it may be removed or replaced.
            tensors = [file.get_tensor(str(index)).clone() for index in range(len(file.keys()))]
        return _decode(parse_json(text), tensors)
    except (OSError, SafetensorError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is missing, or is not a state that this version has written ({type(error).__name__}: {error}); "
            "restore the file, or start a new attempt with run.resume_mode=never"
        ) from error


def read_pickle(path: Path) -> Any:
    """Reads a pickle of torch that holds nothing but tensors, plain values and the classes of ``state_classes``.

    Raises:
        CheckpointError: it holds something else, whose code was not run, or it cannot be read.
    """
    try:
        with torch.serialization.safe_globals([*state_classes().values(), *_numpy_classes()]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # On bytes that are no such pickle, torch's restricted unpickler raises errors of many kinds.
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: holds more than tensors and numbers, or is damaged: {first}") from error


@contextmanager
def loading_no_code() -> Iterator[None]:
    """Within it, each call of ``torch.load`` reads a file of this module, or a pickle as ``read_pickle`` does.

    For DeepSpeed, which calls ``torch.load`` in a way that runs the code in a file.
    """
    load = torch.load

    def safe(path: Any, *arguments: Any, **options: Any) -> Any:
        torch.load = load
        try:
            return read_state(Path(path)) if is_state(Path(path)) else read_pickle(Path(path))
        finally:
            torch.load = safe  # type: ignore[assignment]

    torch.load = safe  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.load = load


def is_state(path: Path) -> bool:
    """Whether a file begins like a safetensors file."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


class _Encoder:
    """Turns a state into values of JSON, and collects its tensors."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._known: dict[Any, int] = {}
        self._names: dict[type, str] = {}

    def encode(self, value: Any) -> Any:
        """The JSON value that stands for ``value``."""
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": str(value)}
        if isinstance(value, Tensor):
            return {"tensor": self._index(value.detach())}
        if type(value) is list:
            return [self.encode(each) for each in value]
        if type(value) in (dict, OrderedDict):
            pairs = [[self.encode(key), self.encode(each)] for key, each in value.items()]
            return {"ordered" if type(value) is OrderedDict else "dict": pairs}
        if type(value) in (tuple, torch.Size):
            return {"shape" if type(value) is torch.Size else "tuple": [self.encode(each) for each in value]}
        if type(value) is torch.dtype:
            return {"dtype": str(value).removeprefix("torch.")}
        if type(value) is numpy.ndarray and value.dtype.kind in "biuf":
            octets = torch.from_numpy(numpy.ascontiguousarray(value).reshape(-1).view(numpy.uint8))
            return {"array": [self._index(octets), value.dtype.str, list(value.shape)]}
        return self._object(value)

    def _object(self, value: Any) -> Any:
        self._names = self._names or {known: name for name, known in state_classes().items()}
        name = self._names.get(type(value))
        if name is None:
            raise CheckpointError(
                f"the state of the engine contains a {type(value).__module__}.{type(value).__qualname__}, which cannot "
                "be written without pickle; use another deepspeed.config"
            )
        if isinstance(value, enum.Enum):
            return {"enum": [name, self.encode(value.value)]}
        return {"object": [name, self.encode(dict(vars(value)))]}

    def _index(self, tensor: Tensor) -> int:
        """The index of a tensor in the file."""
        if tensor.dtype not in DTYPES:
            raise CheckpointError(
                f"the state of the engine contains a tensor of {tensor.dtype}, which cannot be written; use another "
                "deepspeed.config"
            )
        view = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or view not in self._known:
            self._known[view] = len(self.tensors)
            self.tensors.append(tensor)
        return self._known[view]


def _decode(value: Any, tensors: list[Tensor]) -> Any:
    """The inverse of ``_Encoder.encode``."""
    if isinstance(value, list):
        return [_decode(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return _DECODERS[kind](content, tensors)


def _decode_pairs(content: Any, tensors: list[Tensor]) -> list[tuple[Any, Any]]:
    return [(_decode(key, tensors), _decode(each, tensors)) for key, each in content]


def _decode_array(content: Any, tensors: list[Tensor]) -> Any:
    index, kind, shape = content
    return tensors[index].numpy().view(numpy.dtype(kind)).reshape(shape).copy()


def _decode_dtype(content: Any, tensors: list[Tensor]) -> Any:
    return {str(known).removeprefix("torch."): known for known in DTYPES}[content]


def _decode_enum(content: Any, tensors: list[Tensor]) -> Any:
    name, value = content
    return state_classes()[name](_decode(value, tensors))


def _decode_object(content: Any, tensors: list[Tensor]) -> Any:
    name, attributes = content
    made: Any = object.__new__(state_classes()[name])
    vars(made).update(_decode(attributes, tensors))
    return made


_DECODERS: dict[str, Callable[[Any, list[Tensor]], Any]] = {
    "float": lambda content, tensors: float(content),
    "tensor": lambda content, tensors: tensors[content],
    "dict": lambda content, tensors: dict(_decode_pairs(content, tensors)),
    "ordered": lambda content, tensors: OrderedDict(_decode_pairs(content, tensors)),
    "tuple": lambda content, tensors: tuple(_decode(content, tensors)),
    "shape": lambda content, tensors: torch.Size(_decode(content, tensors)),
    "dtype": _decode_dtype,
    "array": _decode_array,
    "enum": _decode_enum,
    "object": _decode_object,
}


def _bytes_of(tensor: Tensor) -> Any:
    """The bytes of a tensor's elements, for a file; no copy if it is contiguous in the memory of the host."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _numpy_classes() -> list[Any]:
    """What the pickle of a numpy array names; torch allows none of it by itself."""
    array = numpy.zeros(1, numpy.uint32)
    reduced: Any = array.__reduce__()
    return [reduced[0], numpy.ndarray, numpy.dtype, type(array.dtype)]
