"""What makes two launches the same run: every ingredient that can change a number, as one flat table.

Versions of libraries and the machine are not in the table. A run may resume with others; its manifest records them.
Of a user's own reward (``objective.grpo.reward``), the table has the name and not the content of the file, so that a
run whose reward failed continues with the corrected function.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coconut_ds.errors import ConfigError
from coconut_ds.files import write_whole
from coconut_ds.settings import Config, ObjectiveConfig
from coconut_ds.settings.schema import leaf_keys, value_of
from coconut_ds.strict_json import JsonError, read_json

FILE = "signature.json"
"""File with the table, in the folder that all attempts of a run share."""

NOT_A_NUMBER = (
    # Names, output folders, loggers and which checkpoints are kept.
    "run.name",
    "run.save_path",
    "run.project",
    "run.wandb_entity",
    "run.wandb",
    "run.trackers",
    "run.watchdog_s",
    "run.watchdog_ends",
    "run.log_every",
    "run.save_only_improve",
    "run.async_save",
    "training.save_every",
    "training.save_every_steps",
    "training.keep_last",
    "training.keep_best",
    # Which attempt to continue, and for how many epochs.
    "run.resume_mode",
    "run.resume_attempt_id",
    "run.allow_mismatch",
    "run.signature_ignore_keys",
    "training.num_epochs",
    # Training does not read these.
    "run.only_eval",
    "data.cache_path",
    "data.made_by",
    "data.test_path",
    # How a global batch is divided into micro batches.
    "training.batch_size_training",
    "training.gradient_accumulation_steps",
    "training.batch_size_eval",
    # Whether activations are stored or recomputed, and in which order gradients are added up.
    "training.activation_checkpointing",
    "training.defer_gradients",
    # How often weights are gathered under ZeRO-3.
    "deepspeed.hold_weights",
)
"""Configuration keys that cannot change a number and are left out of the table."""
LATER_KEYS = {
    "data.answers": "text",
    "data.scoring": "exact",
    "data.chat_template": False,
    "model.fused_kernels": "off",
    "run.tf32": False,
    "training.lr_schedule": "constant",
    "training.advance_metric": "accuracy",
} | {f"objective.{key}": value_of(ObjectiveConfig().model_dump(mode="json"), key) for key in leaf_keys(ObjectiveConfig)}
"""Keys that older versions lack, with the value that means what those versions did. A key with that value is left out
of the table, so that runs begun with an older version keep their signature. Keys that an objective reads are in the
table of its runs, whatever their value."""
VOLATILE = ("_name_or_path", "transformers_version")
"""Keys of a model's ``config.json`` that tell where it comes from and not what it is."""


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = _Absent()
"""Value of a key that one of the two compared tables lacks."""


@dataclass(frozen=True)
class IngredientDifference:
    """One key whose values differ between two tables."""

    key: str
    left: Any
    """``ABSENT`` if the first table lacks the key."""
    right: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.left!r} → {self.right!r}"


def ingredients(
    config: Config,
    *,
    global_batch_size: int,
    engine_file: Mapping[str, Any],
    data: Mapping[str, str],
    weights: str | None,
    tokenizer: str,
    chat_template: str | None = None,
    code: Mapping[str, str],
    batch: str,
    micro_batch: int,
) -> dict[str, Any]:
    """Everything that can change a number: dotted keys to plain values. Paths are replaced by hashes of their contents.

    Args:
        config: the resolved configuration.
        global_batch_size: problems in one optimizer update.
        engine_file: content of ``deepspeed.config``.
        data: ``train`` and ``val`` to a hash of the file's content; empty for generated data.
        weights: hash of the initial weights; None if they are random and follow from the seed.
        tokenizer: hash of the tokenizer's content, without its chat template.
        chat_template: hash of the tokenizer's chat template; None: ``data.chat_template`` is false.
        code: ``code_identity()``.
        batch: micro batch size × accumulation steps × ranks; included only if the loss depends on it.
        micro_batch: micro batch size; likewise.
    """
    owned = {
        key: dict(_leaves(value, key))
        for key, value in _keys(config)
        if key not in NOT_A_NUMBER and not _is_left_out(config, key, value)
    }
    for split in ("train", "val"):
        assert config.data.kind != "file" or split in data, f"the content of data.{split}_path is not given"
        owned[f"data.{split}_path"] = {f"data.{split}_content": data[split]} if split in data else {}
    owned["model.tokenizer"] = {"model.tokenizer_content": tokenizer}
    if chat_template is not None:
        owned["data.chat_template"] = {"data.chat_template_content": chat_template}
    _replace_model_paths(owned, config, weights)
    owned["deepspeed.config"] = dict(_leaves(engine_file, "deepspeed.file"))
    owned["training.global_batch_size"] = {"training.global_batch_size": global_batch_size}
    if config.training.lr_schedule != "constant":
        # The schedule ends with the run.
        owned["training.lr_schedule"] |= {"training.num_epochs": config.training.num_epochs}
    if config.objective.mixes_micro_batch:
        owned["training.batch_size_training"] = {"micro_batch": micro_batch}
    if config.training.loss_reduction == "reference":
        # A mean of means depends on which problems share a micro batch.
        owned["training.batch_size_training"] = {"batch": batch}
    for key in config.run.signature_ignore_keys:
        owned.pop(key, None)
    table = {key: value for values in owned.values() for key, value in values.items()}
    return table | dict(_leaves(code, "code"))


def signature(ingredients: Mapping[str, Any]) -> str:
    """A hash (12 hexadecimal digits) of a table; the order of its keys does not matter."""
    return hashlib.blake2b(_canonical(ingredients).encode(), digest_size=6).hexdigest()


def write_ingredients(
    folder: Path, ingredients: Mapping[str, Any], write: Callable[[Path, str], None] = write_whole
) -> None:
    """Writes the table to ``signature.json`` by means of ``write``, which replaces a file atomically."""
    write(folder / FILE, json.dumps(ingredients, indent=2, ensure_ascii=False) + "\n")


def read_ingredients(folder: Path) -> dict[str, Any]:
    """Reads the table that ``write_ingredients`` wrote.

    Raises:
        ConfigError: the file is missing or malformed.
    """
    path = folder / FILE
    try:
        values = read_json(path)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); this file lists the ingredients of the run"
        ) from error
    except JsonError as error:
        raise ConfigError(f"{path}: is not valid JSON ({error}); this file lists the ingredients of the run") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected an object")
    return values


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[IngredientDifference]:
    """The keys whose values differ between two tables, group by group, in the order of the configuration."""
    keys = [*left, *(key for key in right if key not in left)]
    groups = {key.split(".")[0]: None for key in keys}
    order = {group: number for number, group in enumerate(groups)}
    pairs = [
        IngredientDifference(key, left.get(key, ABSENT), right.get(key, ABSENT))
        for key in sorted(keys, key=lambda key: order[key.split(".")[0]])
    ]
    return [pair for pair in pairs if _differ(pair.left, pair.right)]


def flattened(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings by dotted key, as a table."""
    return {name: inner for key, value in values.items() for name, inner in _leaves(value, key)}


def _keys(config: Config) -> Iterator[tuple[str, Any]]:
    """Each key that a user can set, with its value."""
    values = config.model_dump(mode="json")
    for key in leaf_keys(Config):
        yield key, value_of(values, key)


def _is_left_out(config: Config, key: str, value: Any) -> bool:
    """Whether ``LATER_KEYS`` leaves a key out of the table."""
    group, _, part = key.partition(".")
    is_read = group == "objective" and "." in part and config.objective.reads(part.partition(".")[0])
    return key in LATER_KEYS and value == LATER_KEYS[key] and not is_read


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{key}.{name}")
    else:
        yield key, value


def _replace_model_paths(owned: dict[str, dict[str, Any]], config: Config, weights: str | None) -> None:
    """Replaces ``run.load_model_path``, and ``model.model_id`` if it is a folder, by hashes of their contents."""
    start, model = config.run.load_model_path, Path(config.model.model_id)
    needed = start is not None or (model.is_dir() and config.model.model_init == "pretrained")
    assert weights is not None or not needed, "the content of the weights to start from is not given"
    content = {} if weights is None else {"model.weights": weights}
    if model.is_dir():
        # A checkpoint folder comes with its own architecture; a file of weights does not.
        owned["model.model_id"] = {} if start is not None and Path(start).is_dir() else _architecture(model)
    if start is None:
        owned["run.load_model_path"] = {}
        owned["model.model_id"] |= content
    else:
        owned["run.load_model_path"] = content | _architecture(Path(start))


def _architecture(folder: Path) -> dict[str, Any]:
    """A hash of a model folder's ``config.json`` (heads, activation, …); empty for a file of weights."""
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        values = read_json(path, finite=False)
    except (OSError, JsonError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected an object")
    kept = {key: value for key, value in values.items() if key not in VOLATILE}
    return {"model.architecture": hashlib.sha256(_canonical(kept).encode()).hexdigest()}


def _differ(left: Any, right: Any) -> bool:
    if left is ABSENT or right is ABSENT:
        return left is not right
    return _canonical(left) != _canonical(right)


def _canonical(value: Any) -> str:
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """``value`` with each whole float as an int: a file may contain 5e8 or 500000000."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
