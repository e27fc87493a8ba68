"""The files of a model folder, checked before anything in them is loaded: which hold the weights, and what is wrong.

Folders come from many programs: cloned without Git LFS, copied in part, quantized, or in formats that are not read
here. The libraries that load a folder would report this in their own terms; these checks say what was found and what to
do.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from coconut_ds.errors import CheckpointError
from coconut_ds.files import not_downloaded, shell_word
from coconut_ds.model.weights_file import read_header
from coconut_ds.strict_json import JsonError, read_json

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names of the weights in one file, and of the list of files if there are several."""
ADAPTER = "adapter_config.json"
CONVERT = (
    "import sys; from transformers import AutoModelForCausalLM as M; "
    'M.from_pretrained(sys.argv[1], dtype="auto", use_safetensors=False).save_pretrained(sys.argv[1])'
)
"""Program that adds safetensors to a folder with pickled weights. transformers unpickles tensors only, no code."""
OTHER_WEIGHTS = {
    "*.gguf": "GGUF, the format of llama.cpp",
    "*.pth": "the format of the model's authors",
    "*.pt": "a pickle of torch",
    "*.h5": "the format of TensorFlow",
    "*.msgpack": "the format of Flax",
    "*.ckpt*": "the format of TensorFlow or Lightning",
    "*.onnx": "ONNX",
}
"""Files of weights that are not read, with the name of their format."""


def check_folder_files(folder: Path) -> None:
    """Refuses a folder whose weights cannot be loaded, without loading them.

    Raises:
        CheckpointError: names the file and says what to do.
    """
    if (folder / ADAPTER).is_file():
        raise CheckpointError(
            f"{folder}: is a LoRA adapter ({ADAPTER}), not a whole model; merge it into its base model (in peft, "
            f"PeftModel.from_pretrained(base, {str(folder)!r}).merge_and_unload().save_pretrained(NEW)), save the "
            "tokenizer into NEW too, and name NEW"
        )
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(f"{folder}: is not a model folder (config.json is missing){_models_inside(folder)}")
    for path in sorted(folder.iterdir()):
        if path.is_file() and (fault := not_downloaded(path)):
            raise CheckpointError(f"{path}: {fault}")
    if method := quantization(read_object(config)):
        raise CheckpointError(f"{folder}: {quantized(method)}")
    for path in weight_files(folder):
        read_header(path)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files from which transformers loads a model: one, or those that the index names.

    A folder may contain others, which are not read, such as ``consolidated.safetensors``.

    Raises:
        CheckpointError: there are none, or one that the index names is missing.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        raise CheckpointError(f"{folder}: cannot be loaded: {_without_safetensors(folder)}")
    names = read_object(index).get("weight_map")
    if not isinstance(names, Mapping):
        raise CheckpointError(f"{index}: has no weight_map; copy or download the folder again")
    files = [folder / name for name in sorted({str(name) for name in names.values()})]
    if missing := [path.name for path in files if not path.is_file()]:
        raise CheckpointError(
            f"{folder}: cannot be loaded: {', '.join(missing[:3])} {'is' if len(missing) == 1 else 'are'} missing "
            f"({len(missing)} of {len(files)} files that {INDEX} names); copy or download the folder again"
        )
    return files


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each weight in a model folder by its name, from the headers of its files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(folder):
        shapes |= {name: stored.shape for name, stored in read_header(path).items()}
    return shapes


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        CheckpointError: the file does not contain a JSON object.
    """
    try:
        values = read_json(path, finite=False)
    except (OSError, JsonError) as error:
        raise CheckpointError(f"{path}: is not valid JSON ({error}); copy or download it again") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: contains {type(values).__name__}, expected a JSON object")
    return values


def conversion(folder: Path) -> str:
    """The command that converts a folder's pickled weights."""
    return f"python -c {shlex.quote(CONVERT)} {shell_word(folder)}"


def quantization(config: Mapping[str, Any]) -> str | None:
    """How the weights are quantized, according to the values of ``config.json``; None if they are not."""
    for values in (config, config.get("text_config")):
        found = values.get("quantization_config") if isinstance(values, Mapping) else None
        if found:
            method = found.get("quant_method") if isinstance(found, Mapping) else None
            return str(method or "unknown method")
    return None


def quantized(method: str) -> str:
    """What to tell a user whose model is quantized with ``method``."""
    return (
        f"its weights are quantized ({method}), which this project does not support; use the original model, or load "
        "this one with transformers, call model.dequantize() and save_pretrained, and name the new folder"
    )


def _without_safetensors(folder: Path) -> str:
    """Why a folder without safetensors has no weights that can be loaded, and what to do."""
    if pickles := sorted(path.name for path in folder.glob("*.bin") if path.name.startswith("pytorch_model")):
        return (
            f"its weights are pickled ({pickles[0]}), and unpickling can run code; expected {WEIGHTS}; to convert "
            f"them: {conversion(folder)}"
        )
    for pattern, format in OTHER_WEIGHTS.items():
        if found := sorted(path.name for path in folder.glob(pattern)):
            return (
                f"its weights are in {found[0]} ({format}); expected {WEIGHTS}: use the folder of the original model "
                "in the format of transformers, or load this one there and save it with save_pretrained"
            )
    return f"it contains no weights; expected {WEIGHTS}, as save_pretrained writes it"


def _models_inside(folder: Path) -> str:
    """A hint that names model folders inside ``folder``, such as checkpoints of a run or snapshots of a cache."""
    found = [str(path.relative_to(folder)) for path in models_inside(folder)]
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"; it contains {', '.join(found[:5])}{more}: name one of them" if found else ""


def models_inside(folder: Path, depth: int = 3) -> Iterator[Path]:
    """The model folders inside a folder that is none itself, at most ``depth`` levels deep, in alphabetical order."""
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in inner:
        if (path / "config.json").is_file():
            yield path
        elif depth > 1:
            yield from models_inside(path, depth - 1)
