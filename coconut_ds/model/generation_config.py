"""The file ``generation_config.json`` of a model folder, of which one key counts here: the tokens that end a text."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from coconut_ds.errors import CheckpointError
from coconut_ds.strict_json import JsonError, read_json

FILE, KEY = "generation_config.json", "eos_token_id"


def stated_ends(model: PreTrainedModel) -> list[int]:
    """The ids in the ``eos_token_id`` of a model's generation config; without such a file, of its configuration."""
    return _ids(getattr(getattr(model, "generation_config", None), KEY, None), type(model).__name__)


def check_generation_config(folder: Path) -> None:
    """Refuses a folder whose generation config cannot be read. transformers would ignore the file, and thus its ends.

    Raises:
        CheckpointError: the file exists, but is not valid.
    """
    path = folder / FILE
    if not path.is_file():
        return
    try:
        values = read_json(path, finite=False)
    except (OSError, JsonError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); restore it, or remove it to use {KEY} of config.json"
        ) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: contains {type(values).__name__}, expected an object; restore it, or remove it")
    _ids(values.get(KEY), str(path))


def _ids(stated: Any, where: str) -> list[int]:
    ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        raise CheckpointError(f"{where}: {KEY} is {stated!r}; expected a token id, or a list of token ids")
    return ids
