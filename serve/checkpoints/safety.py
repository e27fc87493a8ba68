"""Checks a model folder before anything in it is loaded: only safetensors, JSON and text, no code, no links elsewhere.

The check itself only looks at file names, parses JSON and reads the headers of safetensors files. It skips a
checkpoint's ``engine/`` folder, which the server never opens: only resuming the training run reads it, and checkpoints
of earlier versions have pickles there.
"""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coconut_ds.errors import CheckpointError
from coconut_ds.files import not_downloaded
from coconut_ds.model.folder_files import check_folder_files, conversion
from coconut_ds.runs.folder import ENGINE
from coconut_ds.strict_json import parse_loosely

READ = frozenset({".safetensors", ".json", ".txt"})
"""Suffixes of files that loading may read."""
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf")
IDLE = frozenset({".md", ".jinja", ".yaml", ".yml", ".log", ".csv", ".jsonl", ".model", ".tiktoken", *IMAGES})
"""Suffixes of further files that are allowed in the folder; nothing in them is executed (no chat template is), and the
tables of tokenizers (``.model``) are not read, because ``tokenizer.json`` is there."""
IDLE_NAMES = frozenset({"LICENSE", "NOTICE", "Notice", ".gitattributes", ".gitignore", ".DS_Store"})
CODE_KEYS = frozenset({"auto_map", "custom_pipelines", "trust_remote_code", "transformers_weights"})
"""Keys of JSON files that refer to code, or to weights elsewhere."""
NEEDED = ("config.json", "tokenizer.json", "coconut.json")
MAX_JSON_BYTES = 256 * 1024**2


def check_folder(folder: Path, root: Path) -> None:
    """Refuses a model folder that contains, or refers to, anything that is not safe to load.

    Args:
        folder: the model folder.
        root: the folder given by the operator; links must not lead out of it.

    Raises:
        CheckpointError: the folder is unsafe or incomplete; the message names the file and what to do.
    """
    root = _resolved(root)
    if not _resolved(folder).is_relative_to(root):
        raise CheckpointError(
            f"{folder}: is a link to a folder outside {root}; give the folder that it points to as --checkpoint"
        )
    for path in entries(folder):
        _check_entry(path, root)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: {name} is missing; {_ADVICE[name]}")
    for path in sorted(folder.glob("*.json")):
        _check_json(path)
    check_folder_files(folder)


_ADVICE = {
    "config.json": "give the folder of a Hugging Face model",
    "tokenizer.json": "save a fast tokenizer into the folder (save_pretrained)",
    "coconut.json": (
        "without it the server does not know how the model thinks; load the model with "
        "load_reasoner(folder, method=…, n_thoughts=…), save it with save(…) and serve that folder"
    ),
}


def entries(folder: Path) -> Iterator[Path]:
    """All files, folders and links in a folder, recursively, except ``engine/`` and hidden folders.

    Loading opens neither; ``.git`` and ``.cache`` are left by programs that download models.
    """
    for path in sorted(folder.iterdir()):
        if (path.name == ENGINE or path.name.startswith(".")) and path.is_dir() and not path.is_symlink():
            continue
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from entries(path)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        # Python 3.11 and 3.12 raise RuntimeError for links that lead back to themselves.
        raise CheckpointError(f"{path}: cannot be followed as a link ({error}); remove it") from error


def _check_entry(path: Path, root: Path) -> None:
    if not _resolved(path).is_relative_to(root):
        raise CheckpointError(f"{path}: is a link to a path outside {root}; replace it by a copy of its target")
    mode = path.stat().st_mode if path.exists() else None
    if mode is None or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise CheckpointError(f"{path}: is neither a file nor a folder; remove it")
    if stat.S_ISREG(mode) and path.suffix not in READ | IDLE and path.name not in IDLE_NAMES:
        raise CheckpointError(
            f"{path}: this file type is not allowed in a model folder, because loading it may run code; "
            f"{_advice_on_type(path)}"
        )
    if stat.S_ISREG(mode) and (fault := not_downloaded(path)):
        raise CheckpointError(f"{path}: {fault}")


def _advice_on_type(path: Path) -> str:
    """What to do with a file of a type that is not allowed."""
    if any(path.parent.glob("*.safetensors")):
        return f"the model's weights are also there as safetensors, so remove {path.name}"
    if path.name.startswith("pytorch_model"):
        return f"if it contains weights that you trust, convert them ({conversion(path.parent)}), then remove this file"
    return "if it contains weights that you trust, convert them to safetensors, then remove this file"


def _check_json(path: Path) -> None:
    if path.name == "adapter_config.json":
        raise CheckpointError(
            f"{path}: adapters are not served, because they refer to another model; merge the adapter into the "
            "model's weights and save the result"
        )
    if path.stat().st_size > MAX_JSON_BYTES:
        raise CheckpointError(f"{path}: has {path.stat().st_size} bytes, expected at most {MAX_JSON_BYTES}")
    try:
        values = parse_loosely(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error})") from error
    if path.name in ("tokenizer.json", "vocab.json", "manifest.json"):
        # Large tables, whose keys are words and file names.
        return
    if path.name.endswith(".index.json"):
        _check_index(path, values)
    for key, value in _items(values):
        if key in CODE_KEYS:
            raise CheckpointError(
                f"{path}: the key {key} refers to code or files that would be loaded; remove the key to serve the "
                "model without them"
            )
        outside = key.endswith("_file") or key.endswith("attn_implementation")
        if outside and isinstance(value, str) and ("/" in value or "\\" in value):
            raise CheckpointError(f"{path}: {key}={value} refers to a path outside the folder; remove the key")


def _check_index(path: Path, values: Any) -> None:
    names = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(names, dict):
        raise CheckpointError(f"{path}: has no weight_map; save the model again with save_pretrained")
    for name in set(map(str, names.values())):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: refers to {name}; expected only .safetensors files in this folder")


def _items(values: Any) -> Iterator[tuple[str, Any]]:
    """All keys and values of nested JSON. Not recursive, because the author of the file decides on the depth."""
    stack = [values]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            yield from ((str(key), value) for key, value in one.items())
            stack.extend(one.values())
        elif isinstance(one, list):
            stack.extend(one)
