"""What a model folder must be before anything in it is loaded: safetensors and JSON, no code, nothing from elsewhere.

The check reads names, and JSON as JSON. A checkpoint's ``engine/`` is pickle, which only a resume of its own run reads:
nothing looks into it.
"""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coconut_ds.errors import CheckpointError
from coconut_ds.runs.folder import ENGINE

READ = frozenset({".safetensors", ".json", ".txt"})
"""Endings of files that loading may read."""
IDLE = frozenset({".md", ".jinja", ".png", ".yaml", ".yml", ".log", ".csv", ".jsonl"})
"""Endings of files that may lie beside them, and are read by nobody."""
IDLE_NAMES = frozenset({"LICENSE", "NOTICE", ".gitattributes", ".gitignore"})
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "transformers_weights"})
"""Keys of JSON files that name code, or weights elsewhere."""
NEEDED = ("config.json", "tokenizer.json", "coconut.json")
MAX_JSON_BYTES = 256 * 1024**2


def check_folder(folder: Path, root: Path) -> None:
    """Refuses a model folder that holds, or points to, anything but what loading safely needs.

    Args:
        folder: the model.
        root: the folder given by the operator; nothing may point out of it.

    Raises:
        CheckpointError: says which file, and what to do.
    """
    root = root.resolve()
    if not folder.resolve().is_relative_to(root):
        raise CheckpointError(f"{folder}: is a link out of {root}; give the folder itself to --checkpoint")
    for path in _entries(folder):
        _check_entry(path, root)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing; {_ADVICE[name]}")
    for path in sorted(folder.glob("*.json")):
        _check_json(path)
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: holds no safetensors; save the model with save_pretrained")


_ADVICE = {
    "config.json": "give a model folder",
    "tokenizer.json": "save the tokenizer as a fast one (save_pretrained)",
    "coconut.json": (
        "it does not say how it thinks; load it with load_reasoner(folder, method=…, n_thoughts=…), save(…) it and "
        "serve that"
    ),
}


def _entries(folder: Path) -> Iterator[Path]:
    """All files and links in a folder, but for those in ``engine/``."""
    for path in sorted(folder.iterdir()):
        if path.name == ENGINE and path.is_dir() and not path.is_symlink():
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _entries(path)


def _check_entry(path: Path, root: Path) -> None:
    if not path.resolve().is_relative_to(root):
        raise CheckpointError(f"{path}: is a link out of {root}; copy what it points to")
    mode = path.stat().st_mode if path.exists() else None
    if mode is None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path}: is neither a file nor a folder; remove it")
    if stat.S_ISREG(mode) and path.suffix not in READ | IDLE and path.name not in IDLE_NAMES:
        raise CheckpointError(
            f"{path}: a model folder holds safetensors and JSON; other files may run code when they are loaded. "
            "Convert weights to safetensors where you trust them, and remove this file"
        )


def _check_json(path: Path) -> None:
    if path.name == "adapter_config.json":
        raise CheckpointError(f"{path}: adapters name another model to load; merge it into the weights and save those")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, expected at most {MAX_JSON_BYTES}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is no JSON ({error})") from error
    if path.name in ("tokenizer.json", "vocab.json", "manifest.json"):
        # Large tables; the keys in them are words and file names.
        return
    if path.name.endswith(".index.json"):
        _check_index(path, values)
    for key, value in _items(values):
        if key in CODE_KEYS:
            raise CheckpointError(f"{path}: {key} names code or files that would be loaded; remove it if you trust it")
        outside = key.endswith("_file") or key.endswith("attn_implementation")
        if outside and isinstance(value, str) and ("/" in value or "\\" in value):
            raise CheckpointError(f"{path}: {key}={value} points out of the folder; remove it")


def _check_index(path: Path, values: Any) -> None:
    names = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(names, dict):
        raise CheckpointError(f"{path}: has no weight_map")
    for name in set(map(str, names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: names {name}; expected safetensors files of this folder")


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values, at any depth; without recursion, since depth is the writer's choice."""
    stack = [values]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            yield from ((str(key), value) for key, value in one.items())
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)
