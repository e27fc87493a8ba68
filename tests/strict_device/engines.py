"""A stand-in for DeepSpeed's engine, which does not run on the strict device.

``ZeroOptimizer`` and ``StandIn`` make the decisions of DeepSpeed 0.19 that read from the device, with the same
operations (``runtime/zero/stage_1_and_2.py``, ``runtime/zero/stage3.py``, ``runtime/utils.py`` and
``runtime/engine.py``), for one rank and without shards. Everything else in an update is the project's own code.
"""

import math
from contextlib import nullcontext
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


class _Optimizer:
    """Wraps torch's AdamW."""

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float) -> None:
        self.optimizer, self.clip, self.param_groups = optimizer, clip, optimizer.param_groups
        self.overflow = False
        self.norm: Tensor | float | None = None

    @property
    def gradients(self) -> list[Tensor]:
        found = (parameter.grad for group in self.param_groups for parameter in group["params"])
        return [gradient for gradient in found if gradient is not None]


class PlainOptimizer(_Optimizer):
    """The optimizer under ZeRO 0, with the engine's own clipping, which copies two constants to the device."""

    def step(self) -> None:
        if self.clip:
            norm = torch.stack([g.norm(2) for g in self.gradients]).pow(2).sum().pow(0.5)
            most, one = (torch.tensor([number], device=norm.device) for number in (self.clip, 1.0))
            for gradient in self.gradients:
                gradient.mul_(torch.min(one, most / (norm + 1e-6)))
        self.optimizer.step()


class ZeroOptimizer(_Optimizer):
    """The optimizer under ZeRO 1 to 3: what it reads to decide whether and how far it steps."""

    cpu_offload = False

    def __init__(self, optimizer: torch.optim.Optimizer, stage: int, clip: float) -> None:
        super().__init__(optimizer, clip)
        self.stage = stage
        # No parameter is divided, so nothing is gathered by hooks or released.
        self.parameter_offload = SimpleNamespace(forward_hooks=[], fwd_pre_hook=SimpleNamespace(remove=lambda: None))

    def _get_norm_groups(self) -> list[Tensor]:
        norm = torch.stack([torch.linalg.vector_norm(g.float()) for g in self.gradients]).pow(2).sum().pow(0.5)
        # mask_nan_or_inf_with_val_inplace: a constant that is copied to the device.
        return [torch.where(norm.isinf() | norm.isnan(), torch.tensor(-1.0, device=norm.device), norm)]

    def scaled_global_norm(self) -> Tensor:
        return self._combined(self._get_norm_groups())

    def check_overflow(self, partition_gradients: bool = True) -> None:
        self.overflow = bool(torch.stack([(~torch.isfinite(g)).any() for g in self.gradients]).any().byte().item())

    def step(self) -> None:
        self.overflow = False
        if self.stage < 3:
            self.check_overflow(partition_gradients=True)
            norm = None if self.overflow else self.scaled_global_norm()
        else:
            norm = self._combined(self._get_norm_groups())
        if norm is None or self._is_invalid(norm):
            self.overflow, self.norm = True, float("inf")
            return
        self.norm = norm / 1.0
        if self.clip:
            if self.stage < 3 and self._is_invalid(norm):
                norm = torch.tensor(float("inf"), device=norm.device)
            scale = torch.clamp((norm + 1e-6) / self.clip, min=1.0)
            for gradient in self.gradients:
                gradient.mul_(1.0 / scale)
        self.optimizer.step()

    @staticmethod
    def _combined(norms: list[Tensor]) -> Tensor:
        stacked = torch.stack(norms)
        combined = torch.linalg.vector_norm(stacked)
        invalid = (~torch.isfinite(stacked) | (stacked < 0)).any()
        return torch.where(invalid, torch.full_like(combined, math.inf), combined)

    @staticmethod
    def _is_invalid(norm: Tensor) -> bool:
        return bool((~torch.isfinite(norm) | (norm < 0)).any())


class StandIn:
    """What ``deepspeed.initialize`` gives. Refuses host syncs in the passes of training, forwards and backwards."""

    def __init__(self, model: nn.Module, parameters: list[nn.Parameter], values: dict[str, Any], syncs: Syncs) -> None:
        self.module, self._syncs = model, syncs
        options = {key: value for key, value in values["optimizer"]["params"].items() if key != "torch_adam"}
        adam, clip = torch.optim.AdamW(parameters, **options), values["gradient_clipping"]
        stage = values.get("zero_optimization", {}).get("stage", 0)
        self.optimizer = ZeroOptimizer(adam, stage, clip) if stage else PlainOptimizer(adam, clip)

    def __call__(self, *arguments: Any) -> Any:
        with self._syncs.refused() if self.module.training else nullcontext():
            return self.module(*arguments)

    def train(self, training: bool = True) -> None:
        self.module.train(training)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """DeepSpeed then reduces gradients over ranks; there is one here."""

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        with self._syncs.refused():
            loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.optimizer.zero_grad()

    def get_global_grad_norm(self) -> Tensor | float | None:
        return self.optimizer.norm

    def was_step_applied(self) -> bool:
        return not self.optimizer.overflow


def make_engine(monkeypatch: pytest.MonkeyPatch, syncs: Syncs, loop: LatentLoop, config: Config) -> Engine:
    """The project's engine, for training, over a stand-in for DeepSpeed's."""

    def initialize(*, model: nn.Module, model_parameters: list[nn.Parameter], config: dict[str, Any]) -> list[Any]:
        return [StandIn(model, model_parameters, config, syncs), None, None, None]

    error = type("DeepSpeedConfigError", (Exception,), {})
    runtime = SimpleNamespace(config=SimpleNamespace(DeepSpeedConfigError=error))
    monkeypatch.setattr(engine_module, "library", lambda: SimpleNamespace(initialize=initialize, runtime=runtime))
    engine = Engine(loop, config, BatchGeometry.derive(config.training, 1), Ranks(device=device()))
    engine.train()
    return engine
