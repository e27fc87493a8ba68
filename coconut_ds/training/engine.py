"""The DeepSpeed engine: it makes optimizer updates, and saves and loads the state of the training.

It owns parameter shards, gradients and the optimizer; it knows nothing of stages, problems or
layouts. Its configuration comes from ``engine_file``. Comments explain the properties of deepspeed 0.19 that this file
works around.
"""

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from coconut_ds.distributed.held_weights import HeldWeights
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.start_weights import StartWeights
from coconut_ds.distributed.state_file import read_state
from coconut_ds.distributed.zero import library, whole, without_compiler
from coconut_ds.errors import CheckpointError, ConfigError, NonFiniteError
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.lora import merged_state
from coconut_ds.objectives import objective_of
from coconut_ds.objectives.base import Tensors
from coconut_ds.settings import Config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine_file import engine_values, holds_weights
from coconut_ds.training.engine_state import DIRECTIONS, SHARED, STATE, EngineSnapshot, load_engine_state, snapshot_of
from coconut_ds.training.step_numbers import StepNumbers
from coconut_ds.training.update_result import UpdateResult


class Engine:
    """Trains a latent loop on any number of ranks. All ranks must make the same calls."""

    def __init__(
        self, loop: LatentLoop, config: Config, geometry: BatchGeometry, ranks: Ranks, load_universal: bool = False
    ) -> None:
        """Creates the optimizer, and shards whatever the ZeRO stage of the configuration divides.

        Args:
            loop: the model to train.
            config: of the experiment.
            geometry: holds the micro batch size.
            ranks: all processes of the run.
            load_universal: whether ``load_state`` will be given the output of ``convert_state``.

        Raises:
            ConfigError: DeepSpeed rejects the configuration.
        """
        self._ranks, self._loop = ranks, loop
        values = engine_values(config, geometry, ranks.size)
        if load_universal:
            values["checkpoint"] = {**values.get("checkpoint", {}), "load_universal": True}
        self._tag = f"{STATE}_universal" if load_universal else STATE
        self.zero_stage = int(values.get("zero_optimization", {}).get("stage", 0))
        deepspeed = library()
        parameters = [parameter for parameter in loop.parameters() if parameter.requires_grad]
        try:
            # In bf16, DeepSpeed prints the memory use at each step of this call, whatever the level of its logger.
            with redirect_stdout(io.StringIO()), without_compiler():
                self._engine, *_ = deepspeed.initialize(model=loop, model_parameters=parameters, config=values)
        except (deepspeed.runtime.config.DeepSpeedConfigError, ValidationError) as error:
            raise ConfigError(f"deepspeed.config={config.deepspeed.config}: DeepSpeed rejects it: {error}") from error
        _move_buffers(loop, ranks.device)
        self._objective = objective_of(config)
        self._start = StartWeights(loop.parameters()) if self._objective.keeps_start else None
        self._held = HeldWeights(self._engine) if holds_weights(config) else None
        self._numbers = StepNumbers(self._engine.optimizer, self.zero_stage, ranks)

    def __call__(self, task: Callable[..., Any], *arguments: Any) -> Any:
        """Returns ``task(loop, *arguments)``, called through DeepSpeed, with the parameters gathered under ZeRO-3."""
        self._ranks.progress.step()
        if self._held is not None:
            self._held.gather()
        return self._engine(task, *arguments)

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Within this context, tasks see the weights that the run started from (``Objective.keeps_start``).

        Only calls of the engine are allowed there, and no updates.
        """
        assert self._start is not None, "the objective does not keep the start"
        with self._start.in_place():
            yield

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._ranks.device

    def train(self, training: bool = True) -> None:
        """Switches to training mode (with dropout), or with False to evaluation mode."""
        self._engine.train(training)

    def update(
        self, batches: Sequence[Tensors], lr: float, asked_to_stop: Callable[[], bool] = lambda: False
    ) -> UpdateResult:
        """Makes one optimizer update on a global batch.

        Args:
            batches: this rank's micro batches, as the objective collates them, the same number on every rank. Their
                weights make the sum of the losses over micro batches and ranks the loss of the global batch.
            lr: learning rate.
            asked_to_stop: whether this rank has been asked to stop; called after the last backward pass.

        Raises:
            NonFiniteError: loss or gradient norm is not finite. Raised on all ranks, before any weight changes.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        losses = []
        num_parts = len(self._objective.parts)
        for count, batch in enumerate(batches, start=1):
            self._engine.set_gradient_accumulation_boundary(count == len(batches))
            parts = self(self._objective.loss, batch.to(self.device))
            losses.append(parts.detach())
            # DeepSpeed averages gradients over ranks, but the losses of the ranks add up to the loss of the global
            # batch, so their gradients must be summed: the factor undoes the division.
            self._engine.backward(parts[:num_parts].sum() * self._ranks.size, scale_wrt_gas=False)
        self._numbers.begin(losses, asked_to_stop())
        grad_norm = self._step()
        return UpdateResult.of(self._objective, self._numbers.losses, grad_norm, self._numbers.stops)

    def _step(self) -> float:
        """Makes the optimizer step and returns the gradient norm."""
        numbers = self._numbers
        if self.zero_stage == 0:
            # If a gradient is not finite, DeepSpeed's stage 0 makes the step all the same.
            gradients = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
            grad_norm = float(numbers.read([_norm(gradients)])[0])
            _refuse_non_finite("loss", numbers.loss)
            _refuse_non_finite("gradient norm", grad_norm)
            self._engine.step()
            return grad_norm
        if not numbers.reads_in_step:
            numbers.read_the_rest()
            _refuse_non_finite("loss", numbers.loss)
        self._engine.step()
        numbers.read_the_rest()
        _refuse_non_finite("loss", numbers.loss)
        # DeepSpeed skips a step whose gradient norm is not finite.
        grad_norm = float(self._engine.get_global_grad_norm())
        if not self._engine.was_step_applied():
            raise NonFiniteError(f"gradient norm is {grad_norm}, not finite")
        return grad_norm

    @torch.no_grad()
    def reset_optimizer(self) -> None:
        """Sets Adam's state to zero in place. Same as a new optimizer, except that fp32 master weights are kept."""
        base = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        for state in base.state.values():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    value.zero_()
                elif isinstance(value, (int, float)):
                    state[key] = type(value)(0)

    def snapshot(self, folder: Path) -> EngineSnapshot:
        """Notes weights, optimizer state and random states, to be written to ``folder``. All ranks must call it.

        The files are written by ``EngineSnapshot.write``, right now or, once copied, while the engine goes on.
        """
        directions = self._loop.value_directions
        weights = directions.weights if directions is not None and self._ranks.is_first else None
        return snapshot_of(self._engine, folder, self._ranks.rank, weights)

    def load_state(self, folder: Path, same_ranks: bool) -> None:
        """Reads what a snapshot wrote. No content of these files can run code.

        Args:
            folder: the folder of the snapshot, or the output of ``convert_state``.
            same_ranks: whether the same number of ranks saved it; only then are the random states restored.

        Raises:
            CheckpointError: the folder has no state, or the file of this rank is missing or malformed.
        """
        load_engine_state(self._engine, folder, self._tag, self._ranks.rank if same_ranks else None)

    def load_directions(self, folder: Path) -> None:
        """Reads the weights that the noise on values follows, if the objective adds such noise.

        Args:
            folder: the folder of the snapshot, also where the state itself is converted for other ranks.

        Raises:
            CheckpointError: the file is missing or malformed.
        """
        directions, file = self._loop.value_directions, folder / DIRECTIONS
        if directions is None:
            return
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing; it has the weights that the noise on values follows. {SHARED}")
        directions.use(read_state(file), self.device, self._loop.model.dtype)

    def model_state(self) -> dict[str, Tensor]:
        """The state dict of the Hugging Face model: full tensors on the CPU, in the compute dtype, adapters merged.

        All ranks must call it; only rank 0 receives the tensors, the result on other ranks is empty.
        """
        model = self._engine.module.model
        state: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            with whole([parameter]):
                if self._ranks.is_first:
                    state[name] = parameter.detach().cpu().clone()
        aliases = dict(model.named_parameters(remove_duplicate=False))
        if self._ranks.is_first:
            state |= {name: value.cpu().clone() for name, value in model.state_dict().items() if name not in aliases}
        return merged_state(model, state)


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    """Moves all buffers to ``device``. DeepSpeed does not, if the parameters were built in shards."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, buffer.to(device))


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g.float()) for g in gradients]))


def _refuse_non_finite(what: str, value: float) -> None:
    if not math.isfinite(value):
        raise NonFiniteError(f"{what} is {value}, not finite")
