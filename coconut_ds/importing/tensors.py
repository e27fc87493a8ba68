"""The weights of a published checkpoint: safetensors, in one file or several, or pickles of torch.

Tensors in safetensors are read one by one when they are asked for, so what an import leaves out takes no memory.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from coconut_ds.errors import CheckpointError
from coconut_ds.files import not_downloaded
from coconut_ds.model.folder_files import INDEX, WEIGHTS, read_object
from coconut_ds.model.reference_state import read_state
from coconut_ds.model.weights_file import Stored, read_header

SHARD = re.compile(r"model-(\d+)-of-(\d+)\.safetensors")
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
EPOCH = re.compile(r"checkpoint_\d+")
"""The state dicts of Coconut's own program: one file for each epoch."""


class Tensors(Mapping[str, Tensor]):
    """The tensors of several files by name, on the CPU."""

    def __init__(self, files: list[Path]) -> None:
        """Reads the headers of safetensors, and pickles whole.

        Raises:
            CheckpointError: a file is not a file of weights, or two of them hold a tensor of the same name.
        """
        self.files = files
        self._held: dict[str, Tensor] = {}
        self._stored: dict[str, tuple[Path, Stored]] = {}
        for path in files:
            if fault := not_downloaded(path):
                raise CheckpointError(f"{path}: {fault}")
            is_safe = path.suffix == ".safetensors"
            found: Mapping[str, Stored | Tensor] = read_header(path) if is_safe else read_state(path)
            if twice := sorted(found.keys() & set(self)):
                raise CheckpointError(f"{path}: holds {twice[0]}, which another of the files holds too")
            for name, value in found.items():
                if isinstance(value, Stored):
                    self._stored[name] = path, value
                else:
                    self._held[name] = value

    def __getitem__(self, name: str) -> Tensor:
        if name in self._held:
            return self._held[name]
        path, stored = self._stored[name]
        with path.open("rb") as file:
            file.seek(stored.begin)
            # Not mapped to the file, see ``weights_file.py``.
            data = bytearray(file.read(stored.num_bytes))
        if not data:
            return torch.empty(stored.shape, dtype=stored.dtype)
        return torch.frombuffer(data, dtype=stored.dtype).reshape(stored.shape)

    def __iter__(self) -> Iterator[str]:
        yield from self._held
        yield from self._stored

    def __len__(self) -> int:
        return len(self._held) + len(self._stored)


def weight_files_of(place: Path) -> list[Path]:
    """The files that hold the weights of a published checkpoint, a file or a folder.

    Raises:
        CheckpointError: there are none, not all of them, or several checkpoints to choose from.
    """
    if place.is_file():
        return [place]
    for index in (INDEX, PICKLE_INDEX):
        if (place / index).is_file():
            return _indexed(place, index)
    for name in (WEIGHTS, PICKLE):
        if (place / name).is_file():
            return [place / name]
    shards = sorted(path for path in place.iterdir() if SHARD.fullmatch(path.name))
    if shards:
        numbers = {int(match[2]) for path in shards if (match := SHARD.fullmatch(path.name))}
        if numbers != {len(shards)}:
            raise CheckpointError(
                f"{place}: holds {len(shards)} of {max(numbers)} files of weights; download all of them"
            )
        return shards
    epochs = sorted(path.name for path in place.iterdir() if path.is_file() and EPOCH.fullmatch(path.name))
    if len(epochs) == 1:
        return [place / epochs[0]]
    if epochs:
        raise CheckpointError(f"{place}: holds several checkpoints ({', '.join(epochs[:5])}); name one of these files")
    raise CheckpointError(
        f"{place}: holds no weights; expected {WEIGHTS}, {INDEX}, {PICKLE} or one file named like checkpoint_28"
    )


def _indexed(place: Path, index: str) -> list[Path]:
    names = read_object(place / index).get("weight_map")
    if not isinstance(names, dict):
        raise CheckpointError(f"{place / index}: has no weight_map; download it again")
    files = [place / name for name in sorted({str(name) for name in names.values()})]
    if missing := [path.name for path in files if path.parent != place or not path.is_file()]:
        raise CheckpointError(f"{place}: {missing[0]} is missing, which {index} names; download all files")
    return files
