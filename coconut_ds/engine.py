"""The DeepSpeed engine: the only module that imports deepspeed.

It owns processes, parameter shards, gradients and the optimizer; it knows nothing of stages, problems or layouts. Every
DeepSpeed default that would change a number is set here from the configuration. Facts about deepspeed 0.19 that shape
this file stand beside the lines that they concern.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import Tensor

from coconut_ds.data.batches import BatchGeometry
from coconut_ds.distributed import Ranks
from coconut_ds.errors import ConfigError, NonFiniteError
from coconut_ds.files import project_folder
from coconut_ds.launch import free_port, launched_rank, launched_ranks
from coconut_ds.model.collate import LatentInputs, Targets
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.settings import Config

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


LAUNCHER_VARIABLES = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Update:
    """What one optimizer update was."""

    loss: float
    """Loss over the global batch, before the update."""
    grad_norm: float
    """Norm of the gradient over all parameters, before clipping."""


def start_ranks(timeout: timedelta | None = None) -> Ranks:
    """Joins the processes that the launcher started; without a launcher, a group of one.

    Args:
        timeout: how long a collective may wait; None takes DeepSpeed's default (10 minutes, or DEEPSPEED_TIMEOUT).
    """
    deepspeed = _deepspeed()
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    if "RANK" in os.environ and missing:
        raise ConfigError(
            f"environment: RANK is set, but {', '.join(missing)} not; start with deepspeed, torchrun or plain python"
        )
    if "RANK" not in os.environ:
        # DeepSpeed would look for MPI: a process without a launcher is a group of one.
        os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"})
        os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())})
    # On the CPU, init_distributed would compile this op, which takes a minute and a C++ compiler; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    arguments = {} if timeout is None else {"timeout": timeout}
    deepspeed.init_distributed(verbose=False, **arguments)
    accelerator = deepspeed.accelerator.get_accelerator()
    name = accelerator.device_name(int(os.environ["LOCAL_RANK"])) if accelerator.device_name() != "cpu" else "cpu"
    if name != "cpu":
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    return Ranks(launched_rank(), launched_ranks(), torch.device(name))


def stop_ranks() -> None:
    """Leaves the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


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


class Engine:
    """A latent loop that learns, on any number of ranks."""

    def __init__(self, loop: LatentLoop, config: Config, geometry: BatchGeometry, ranks: Ranks) -> None:
        self._ranks = ranks
        values = {**read_engine_file(config), **_owned_values(config, geometry, ranks)}
        self.zero_stage = int(values.get("zero_optimization", {}).get("stage", 0))
        deepspeed = _deepspeed()
        parameters = [parameter for parameter in loop.parameters() if parameter.requires_grad]
        try:
            self._engine, *_ = deepspeed.initialize(model=loop, model_parameters=parameters, config=values)
        except (deepspeed.runtime.config.DeepSpeedConfigError, ValidationError) as error:
            raise ConfigError(f"deepspeed.config={config.deepspeed.config}: DeepSpeed refuses it: {error}") from error

    def __call__(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """``task(loop, *arguments)``, seen by ZeRO's hooks."""
        return self._engine(task, *arguments)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._ranks.device

    def train(self, training: bool = True) -> None:
        """Switches dropout on or off."""
        self._engine.train(training)

    def update(self, batches: Sequence[tuple[LatentInputs, Targets]], lr: float) -> Update:
        """One optimizer update over this rank's micro batches of a global batch.

        Raises:
            NonFiniteError: loss or gradient norm is not finite; raised on all ranks before the optimizer moved.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        losses = []
        for count, (inputs, targets) in enumerate(batches, start=1):
            self._engine.set_gradient_accumulation_boundary(count == len(batches))
            loss = self._engine(latent_loss, inputs.to(self.device), targets.to(self.device))
            losses.append(loss.detach())
            # Weights in the targets already make the sum over micro batches and ranks the global mean; DeepSpeed
            # averages gradients over ranks, which this factor undoes.
            self._engine.backward(loss * self._ranks.size, scale_wrt_gas=False)
        total = self._ranks.total(float(torch.stack(losses).sum().item()))
        grad_norm = self._step(total)
        return Update(total, grad_norm)

    def _step(self, loss: float) -> float:
        """Steps unless something is not finite. Stage 0 would take such a step, the others skip it in silence."""
        _refuse_non_finite("loss", loss)
        if self.zero_stage == 0:
            grad_norm = _norm(p.grad for p in self._engine.module.parameters() if p.grad is not None)
            _refuse_non_finite("gradient norm", grad_norm)
            self._engine.step()
            return grad_norm
        self._engine.step()
        grad_norm = float(self._engine.get_global_grad_norm())
        if not self._engine.was_step_applied():
            raise NonFiniteError(f"gradient norm is {grad_norm}, not finite")
        _refuse_non_finite("gradient norm", grad_norm)
        return grad_norm

    @torch.no_grad()
    def reset_optimizer(self) -> None:
        """Sets Adam's state to zero in place: equal to a new optimizer, and fp32 master weights stay as they are."""
        base = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        for state in base.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    value.zero_()
                elif isinstance(value, (int, float)):
                    state[key] = type(value)(0)

    def model_state(self) -> dict[str, Tensor]:
        """Full tensors of the Hugging Face model on the CPU, in the compute dtype. All ranks must call it.

        On ranks other than 0 the result is empty.
        """
        model = self._engine.module.model
        gathered = _deepspeed().zero.GatheredParameters
        state: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            with gathered([parameter], enabled=self.zero_stage == 3):
                if self._ranks.is_first:
                    state[name] = parameter.detach().cpu().clone()
        aliases = dict(model.named_parameters(remove_duplicate=False))
        if self._ranks.is_first:
            state |= {name: value.cpu().clone() for name, value in model.state_dict().items() if name not in aliases}
        return state


def _deepspeed() -> Any:
    """The deepspeed module. Imported late: it takes seconds, and configuration and evaluation do without it."""
    if not torch.accelerator.is_available():
        # Named, since the search for one ends in a warning.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Names of collectives that DeepSpeed uses and torch is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    return deepspeed


def _owned_values(config: Config, geometry: BatchGeometry, ranks: Ranks) -> dict[str, Any]:
    training = config.training
    values: dict[str, Any] = {
        # Accumulation is counted by the caller: the last global batch of an epoch may have fewer micro batches.
        "train_micro_batch_size_per_gpu": geometry.micro_batch_size,
        "gradient_accumulation_steps": 1,
        "train_batch_size": geometry.micro_batch_size * ranks.size,
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


def _norm(gradients: Any) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients])).item())


def _refuse_non_finite(what: str, value: float) -> None:
    if not torch.isfinite(torch.tensor(value)):
        raise NonFiniteError(f"{what} is {value}, not finite")
