"""A stand-in for DeepSpeed's engine on the strict device, with torch's AdamW and the calls that ``Engine`` makes.

It has no processes and no shards. Like DeepSpeed's optimizers for ZeRO 1 to 3, its step looks for overflow, computes
the norm of the gradients, decides by it whether to make the step, and reads it once more to clip. DeepSpeed's own
functions are not tested here.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.settings import Config
from coconut_ds.training import engine as engine_module
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.engine import Engine
from strict_device.registering import device
from strict_device.syncs import Syncs


class ShardedOptimizer:
    """The part of DeepSpeed's optimizers for ZeRO 1 to 3 that ``Engine`` uses, for one rank."""

    cpu_offload = False

    def __init__(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        self.optimizer, self.max_norm = optimizer, max_norm
        self.overflow, self.norm = False, math.nan
        self.is_applied = False

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def gradients(self) -> list[Tensor]:
        return [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]

    def check_overflow(self, **options: Any) -> None:
        invalid = torch.stack([~g.isfinite().all() for g in self.gradients]).any()
        self.overflow = bool(invalid)

    def _get_norm_groups(self) -> list[Tensor]:
        return [torch.stack([g.float().norm() for g in self.gradients]).norm()]

    def scaled_global_norm(self) -> Tensor:
        return self._get_norm_groups()[0]

    def step(self, norms: Callable[[], Tensor]) -> None:
        self.overflow = False
        self.check_overflow(partition_gradients=True)
        norm = norms()
        self.overflow = self.overflow or not math.isfinite(float(norm))
        self.is_applied = not self.overflow
        if self.overflow:
            return
        self.norm = norm
        # DeepSpeed checks the norm again before it clips.
        assert math.isfinite(float(norm))
        factor = torch.clamp((norm + 1e-6) / self.max_norm, min=1.0)
        for gradient in self.gradients:
            gradient.mul_(1.0 / factor)
        self.optimizer.step()


class StandIn:
    """What ``deepspeed.initialize`` gives: refuses host syncs in forward and backward passes."""

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter], values: dict[str, Any], syncs: Syncs) -> None:
        self.module, self._syncs = model, syncs
        options = {key: value for key, value in values["optimizer"]["params"].items() if key != "torch_adam"}
        self._stage = values.get("zero_optimization", {}).get("stage", 0)
        self._max_norm = values["gradient_clipping"]
        self._adam = torch.optim.AdamW(parameters, **options)
        self.optimizer: Any = ShardedOptimizer(self._adam, self._max_norm) if self._stage else self._adam
        self._is_boundary = True

    def __call__(self, *arguments: Any) -> Any:
        with self._syncs.refused() if self.module.training else _nothing():
            return self.module(*arguments)

    def train(self, training: bool = True) -> None:
        self.module.train(training)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self._is_boundary = is_boundary

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        assert not scale_wrt_gas
        with self._syncs.refused():
            loss.backward()

    def step(self) -> None:
        assert self._is_boundary
        if self._stage == 0:
            nn.utils.clip_grad_norm_(self.module.parameters(), self._max_norm)
            self._adam.step()
        elif self._stage == 3:
            self.optimizer.step(lambda: torch.stack(self.optimizer._get_norm_groups()).norm())
        else:
            self.optimizer.step(lambda: self.optimizer.scaled_global_norm())
        self._adam.zero_grad()

    def was_step_applied(self) -> bool:
        return self.optimizer.is_applied

    def get_global_grad_norm(self) -> Tensor | float:
        return self.optimizer.norm


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def make_engine(monkeypatch: pytest.MonkeyPatch, syncs: Syncs, loop: LatentLoop, config: Config) -> Engine:
    """The project's engine over a stand-in for DeepSpeed's."""

    def initialize(
        *, model: nn.Module, model_parameters: list[nn.Parameter], config: dict[str, Any]
    ) -> tuple[Any, ...]:
        return StandIn(model, model_parameters, config, syncs), None, None, None

    error = type("DeepSpeedConfigError", (Exception,), {})
    runtime = SimpleNamespace(config=SimpleNamespace(DeepSpeedConfigError=error))
    deepspeed = SimpleNamespace(initialize=initialize, runtime=runtime)
    monkeypatch.setattr(engine_module, "library", lambda: deepspeed)
    return Engine(loop, config, BatchGeometry.derive(config.training, 1), Ranks(device=device()))
