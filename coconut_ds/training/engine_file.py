"""The configuration of the DeepSpeed engine: a JSON file, and the values that this project adds to it.

The file (``deepspeed.config``: the name of a file in ``ds_configs/``, or a path) chooses the ZeRO stage, offloading,
bucket sizes and how gradients are scaled before they are averaged over ranks. ``owned_values`` adds batch sizes,
optimizer, gradient clipping and precision from this project's configuration, so that no DeepSpeed default changes a
number. Does not import deepspeed.
"""

from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.files import project_folder
from coconut_ds.settings import Config
from coconut_ds.strict_json import JsonError, read_json
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
"""Keys that this project's configuration sets, or that would change the numbers; the file must not contain them."""

QUANTIZED_WEIGHTS = ("zero_quantized_weights", "zero_quantized_nontrainable_weights")
"""Keys of ``zero_optimization`` that make ZeRO-3 gather quantized weights (ZeRO++)."""


def read_engine_file(config: Config) -> dict[str, Any]:
    """Reads the JSON file of ``deepspeed.config`` and checks it against the configuration.

    Raises:
        ConfigError: it is missing, is not valid JSON, contains one of ``OWNED_KEYS``, or has a ZeRO stage that is
            unknown or does not support ``run.bf16`` or ``training.defer_gradients``.
    """
    name = config.deepspeed.config
    known = project_folder("ds_configs") / f"{name}.json"
    path = known if known.is_file() else Path(name)
    if not path.is_file():
        names = ", ".join(sorted(file.stem for file in project_folder("ds_configs").glob("*.json")))
        raise ConfigError(f"deepspeed.config={name}: no such file; expected a path to a JSON file or one of {names}")
    try:
        values = read_json(path)
    except JsonError as error:
        raise ConfigError(f"{path}: {error}") from error
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
        # DeepSpeed's bf16 optimizer for stage 0 makes a step on zero gradients when it is created, which decays the
        # weights and advances Adam's bias correction.
        raise ConfigError(
            "run.bf16=true with ZeRO stage 0: here DeepSpeed's optimizer does not behave as plain AdamW; "
            "set deepspeed=zero1 (or zero2, zero3), or run.bf16=false"
        )
    if config.objective.kind == "grpo" and config.objective.grpo.beta and stage == 3 and not _has_plain_shards(section):
        raise ConfigError(
            f"objective.grpo.beta={config.objective.grpo.beta} exchanges weights with those of the start, which works "
            f"neither with weights on NVMe nor with ZeRO++ ({path}); set objective.grpo.beta=0, or deepspeed=zero3"
        )
    if config.training.defer_gradients and stage == 3:
        raise ConfigError(
            "training.defer_gradients=true with ZeRO stage 3, which releases the weights between passes; "
            "set deepspeed=zero2, or training.defer_gradients=null"
        )
    return values


def zero_stage(config: Config) -> int:
    """The ZeRO stage of ``deepspeed.config``: 0 to 3."""
    return int(read_engine_file(config).get("zero_optimization", {}).get("stage", 0))


def holds_weights(config: Config) -> bool:
    """Whether all weights are gathered once per update and stay whole (``deepspeed.hold_weights``, ZeRO-3 only)."""
    zero = read_engine_file(config).get("zero_optimization", {})
    return config.deepspeed.hold_weights and zero.get("stage") == 3 and _has_plain_shards(zero)


def _has_plain_shards(zero: dict[str, Any]) -> bool:
    """Whether each rank has plain shards of the weights in memory, under ZeRO-3 with this section of the file."""
    # Weights on NVMe pass through a few buffers, which cannot hold all of them; ZeRO++ gathers in ways of its own.
    on_nvme = (zero.get("offload_param") or {}).get("device") == "nvme"
    plus_plus = zero.get("zero_hpz_partition_size", 1) > 1 or any(zero.get(key) for key in QUANTIZED_WEIGHTS)
    return not on_nvme and not plus_plus


def engine_values(config: Config, geometry: BatchGeometry, num_ranks: int) -> dict[str, Any]:
    """The complete configuration of the DeepSpeed engine: the file and ``owned_values``."""
    file = read_engine_file(config)
    # By default, DeepSpeed's throughput timer makes the host wait for the GPU before and after each micro batch.
    timers = {"throughput": {"enabled": False}, **file.get("timers", {})}
    return {**file, "timers": timers, **owned_values(config, geometry, num_ranks)}


def owned_values(config: Config, geometry: BatchGeometry, num_ranks: int) -> dict[str, Any]:
    """The values of ``OWNED_KEYS`` that follow from the configuration, for ``num_ranks`` processes."""
    training = config.training
    values: dict[str, Any] = {
        # Engine.update counts the micro batches: the last global batch of an epoch may have fewer of them.
        "train_micro_batch_size_per_gpu": geometry.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "train_batch_size": geometry.micro_batch_size * num_ranks,
        # Without this key, DeepSpeed would clip at 1.0.
        "gradient_clipping": training.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": training.lr,
                "betas": list(training.betas),
                "eps": training.eps,
                "weight_decay": training.weight_decay,
                # torch's own AdamW; DeepSpeed's needs a C++ compiler.
                "torch_adam": True,
                "fused": True,
            },
        },
        # Engine.update relies on this check to detect non-finite gradients.
        "bf16": {"enabled": config.run.bf16, "check_grad_overflow": True},
        "fp16": {"enabled": False},
    }
    if config.run.bf16:
        values["data_types"] = {"grad_accum_dtype": "fp32"}
        values["communication_data_type"] = "fp32"
    return values
