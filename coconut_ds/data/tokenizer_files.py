"""Reads and writes the files of a tokenizer, so that what is read back does the same to text as what was written.

``AutoTokenizer`` lets the model's type decide on the class of a tokenizer: beside a model of the type ``qwen2``, it
replaces the class that ``tokenizer_config.json`` names by ``Qwen2Tokenizer``. That class rebuilds the tokenizer by its
own rules, and then encodes text differently, or to nothing. ``tokenizer.json`` contains the whole tokenizer; in such a
case it is read as it is.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file

from coconut_ds.data.encoding import encoding_difference, encoding_fault
from coconut_ds.errors import ModelError
from coconut_ds.strict_json import read_json

CONFIG_FILE = "tokenizer_config.json"
WHOLE_FILE = "tokenizer.json"
AS_IT_IS = "TokenizersBackend"
"""The class that reads ``tokenizer.json`` as it is; transformers 4 calls it ``PreTrainedTokenizerFast``."""
PATTERNS = ("*token*", "vocab*", "merges.txt", "*.model", "spiece*", "*.spm", "tekken*")
"""Names of the files that tokenizers are read from."""


def read_tokenizer(name: str | Path, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """Loads the tokenizer in a folder or on the hub, by the class that it was saved with.

    Raises:
        OSError: the folder has no files of a tokenizer.
        OSError, ValueError, KeyError, ImportError, RuntimeError: what transformers raises if it cannot be loaded.
    """
    folder = Path(name)
    if folder.is_dir() and not any(path for pattern in PATTERNS for path in folder.glob(pattern)):
        raise FileNotFoundError(f"there is no tokenizer in it ({WHOLE_FILE} is missing)")
    tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only, trust_remote_code=False)
    declared = get_tokenizer_config(name, local_files_only=local_files_only).get("tokenizer_class")
    found = _class_name(type(tokenizer).__name__)
    if found == AS_IT_IS or (encoding_fault(tokenizer) is None if declared is None else _class_name(declared) == found):
        return tokenizer
    try:
        cached_file(name, WHOLE_FILE, local_files_only=local_files_only)
    except OSError:
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(name, local_files_only=local_files_only)


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer into a folder that already has the model's ``config.json``.

    Raises:
        OSError: a file cannot be written.
        ModelError: the tokenizer cannot be written so that ``read_tokenizer`` returns the same tokenizer.
    """
    tokenizer.save_pretrained(folder)
    if _difference(tokenizer, folder) is None:
        return
    path = folder / CONFIG_FILE
    values = read_json(path, finite=False)
    path.write_text(json.dumps({**values, "tokenizer_class": AS_IT_IS}, indent=2) + "\n", encoding="utf-8")
    if difference := _difference(tokenizer, folder):
        raise ModelError(
            f"the tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} is another one after it is saved and "
            f"loaded again ({difference}); set model.tokenizer to one that has a {WHOLE_FILE}"
        )


def check_saving(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
    """Refuses a tokenizer that ``write_tokenizer`` could not write beside a model with this configuration.

    Raises:
        ModelError: see ``write_tokenizer``.
    """
    with TemporaryDirectory() as name:
        config.save_pretrained(name)
        write_tokenizer(tokenizer, Path(name))


def _difference(tokenizer: PreTrainedTokenizerBase, folder: Path) -> str | None:
    try:
        again = read_tokenizer(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises plain exceptions
        return f"it cannot be loaded: {error}"
    return encoding_difference(tokenizer, again)


def _class_name(name: str) -> str:
    """The name of a tokenizer's class, the same for all names that transformers gives it."""
    short = name.removesuffix("Fast")
    return AS_IT_IS if short == "PreTrainedTokenizer" else short
