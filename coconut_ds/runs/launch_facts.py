"""What the ranks of one launch must have in common, whatever they are about to do: a table for ``refuse_disagreement``.

It contains settings, the content of the files that they name, the package's code, versions of libraries, environment
variables and the kind of device. It needs nothing that is loaded later, so ranks compare it before they do anything
together. Entries of a run's signature that are known only after loading (tokenizer, architecture) are compared then.
"""

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from coconut_ds.distributed.agreement import refuse_disagreement
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.files import README, project_folder
from coconut_ds.runs.code import source_hashes
from coconut_ds.runs.identity import flattened

PACKAGES = (
    *("torch", "transformers", "deepspeed", "numpy", "tokenizers", "safetensors"),
    *("liger-kernel", "peft", "triton"),
)
"""Packages whose versions must agree. Python's must, too."""
VARIABLES = (
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"),
    *("DEEPSPEED_TIMEOUT", "NCCL_ALGO", "NCCL_PROTO"),
)
"""Environment variables that change numbers, or how ranks communicate. Those that describe one machine, such as
``NCCL_SOCKET_IFNAME``, may differ."""
READ_FILES = (
    *("data.train_path", "data.val_path", "data.test_path", "run.load_model_path", "checkpoint"),
    *("model.model_id", "model.tokenizer", "deepspeed.config"),
)
"""Keys that may name files: their content must agree, and where they are may differ from machine to machine."""
WRITTEN_FOLDERS = ("run.save_path", "out")
"""Keys of folders that are written to. Relative paths count from the current directory of each rank."""
OWN_MACHINE = ("data.cache_path",)
"""Keys that may differ."""
WHOLE_BYTES, EDGE_BYTES = 1 << 24, 1 << 18
"""Files of up to ``WHOLE_BYTES`` are hashed completely; of larger ones, size, beginning and end (``EDGE_BYTES`` each),
so that the comparison takes no time. Data files are hashed completely later, for the signature."""


def refuse_unequal_launch(ranks: Ranks, program: str, config: BaseModel) -> None:
    """Raises on all ranks unless they were started alike. All ranks call it, before they do anything else together.

    Args:
        ranks: all processes.
        program: what the ranks are about to do, in one word.
        config: the resolved configuration.

    Raises:
        ConfigError: names what differs, and on which ranks.
    """
    refuse_disagreement(ranks, partial(launch_facts, program, config, ranks))


def launch_facts(program: str, config: BaseModel, ranks: Ranks) -> dict[str, Any]:
    """The table: a name for each fact, and its value on this rank."""
    facts: dict[str, Any] = {"program": program, "kind of device": ranks.device.type}
    for key, value in flattened(config.model_dump(mode="json")).items():
        if key not in OWN_MACHINE:
            facts |= _of_setting(key, value)
    facts["version of python"] = platform.python_version()
    facts |= {f"version of {name}": _version(name) for name in PACKAGES}
    facts |= {f"environment variable {name}": os.environ.get(name, "not set") for name in VARIABLES}
    return facts | {f"code of coconut_ds/{name}": digest for name, digest in source_hashes().items()}


def without_code(ingredients: Mapping[str, Any]) -> dict[str, Any]:
    """The ingredients of a signature that ranks compare: only rank 0 identifies the code by its commit."""
    return {key: value for key, value in ingredients.items() if key.partition(".")[0] != "code"}


def _of_setting(key: str, value: Any) -> dict[str, Any]:
    if key in WRITTEN_FOLDERS and isinstance(value, str):
        return {key: os.path.abspath(value)}
    if key in READ_FILES and isinstance(value, str):
        known = project_folder("ds_configs") / f"{value}.json"
        path = known if key == "deepspeed.config" and known.is_file() else Path(value)
        if path.exists():
            return {f"content of {key}{name}": found for name, found in _contents(path)}
    return {key: value}


def _contents(path: Path) -> Iterator[tuple[str, str]]:
    """The hash of a file, or of each file directly in a folder except ``README.md``, with its name behind the key."""
    if path.is_file():
        yield "", _hash(path)
        return
    for inner in sorted(path.iterdir()):
        # An evaluation may be writing its scores into the model card of a checkpoint.
        if inner.is_file() and inner.name != README:
            yield f" ({inner.name})", _hash(inner)


def _hash(path: Path) -> str:
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with path.open("rb") as file:
            if size <= WHOLE_BYTES:
                digest.update(file.read())
            else:
                digest.update(file.read(EDGE_BYTES))
                file.seek(size - EDGE_BYTES)
                digest.update(file.read(EDGE_BYTES))
    except OSError as error:
        # What cannot be read is reported by the code that needs it.
        return f"cannot be read ({error.strerror})"
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
