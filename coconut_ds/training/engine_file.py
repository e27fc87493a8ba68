"""The JSON file of a DeepSpeed engine, and the values that the configuration adds to it. Does not import deepspeed.

Every DeepSpeed default that would change a number is set here.
"""

import json
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.files import project_folder
from coconut_ds.settings import Config
from coconut_ds.training.batches import BatchGeometry

OWNED_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
    "optimizer",
    "scheduler",
    "bf16",
    "fp16",
    "data_types",
    "communication_data_type",
    "gradient_allreduce_op",
    "managed_gradient_accumulation",
    "torch_autocast",
    "amp",
)
"""Keys of DeepSpeed's file that this project's configuration sets."""


def read_engine_file(config: Config) -> dict[str, Any]:
    """The JSON file of ``deepspeed.config``, checked against the configuration.

    Raises:
        ConfigError: it is missing, broken, sets what the configuration owns, or cannot go with it.
    """
    name = config.deepspeed.config
    known = project_folder("ds_configs") / f"{name}.json"
    path = known if known.is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in project_folder("ds_configs").glob("*.json")))
        raise ConfigError(f"deepspeed.config={name}: no such file; expected a path to a JSON file or one of {names}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: broken JSON at line {error.lineno}: {error.msg}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected an object")
    owned = [key for key in OWNED_KEYS if key in values]
    if owned:
        raise ConfigError(
            f"{path}: sets {', '.join(owned)}, which training.* and run.bf16 set; remove them from the file"
        )
    section = values.get("zero_optimization", {})
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: zero_optimization: found {section!r}, expected an object with a stage")
    stage = section.get("stage", 0)
    if stage not in (0, 1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"{path}: zero_optimization.stage: found {stage!r}, expected 0, 1, 2 or 3")
    if config.run.bf16 and stage == 0:
        # Its bf16 optimizer runs one step on zero gradients at the start, which decays the weights and shifts Adam.
        raise ConfigError(
            "run.bf16=true with ZeRO stage 0: DeepSpeed's optimizer for it is not plain AdamW; "
            "set deepspeed=zero1 (or zero2, zero3), or run.bf16=false"
        )
    return values


def zero_stage(config: Config) -> int:
    """The ZeRO stage of ``deepspeed.config``: 0 to 3."""
    return int(read_engine_file(config).get("zero_optimization", {}).get("stage", 0))


def engine_values(config: Config, geometry: BatchGeometry, num_ranks: int) -> dict[str, Any]:
    """All that DeepSpeed is told: the file and what the configuration sets."""
    return {**read_engine_file(config), **owned_values(config, geometry, num_ranks)}


def owned_values(config: Config, geometry: BatchGeometry, num_ranks: int) -> dict[str, Any]:
    """What the configuration sets; ``num_ranks`` processes."""
    training = config.training
    values: dict[str, Any] = {
        # Accumulation is counted by the caller: the last global batch of an epoch may have fewer micro batches.
        "train_micro_batch_size_per_gpu": geometry.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "train_batch_size": geometry.micro_batch_size * num_ranks,
        # Left out, it would clip at 1.0.
        "gradient_clipping": training.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": training.lr,
                "betas": list(training.betas),
                "eps": training.eps,
                "weight_decay": training.weight_decay,
                # torch's own AdamW: no op needs a compiler.
                "torch_adam": True,
                "fused": True,
            },
        },
        # The stop on non-finite gradients relies on this check.
        "bf16": {"enabled": config.run.bf16, "check_grad_overflow": True},
        "fp16": {"enabled": False},
    }
    if config.run.bf16:
        values["data_types"] = {"grad_accum_dtype": "fp32"}
        values["communication_data_type"] = "fp32"
    return values
