"""A whole update: batches that the preparing thread has made, backward passes, and the optimizer's step.

DeepSpeed does not run on the strict device. ``ZeroOptimizer`` and ``DeepSpeed`` make the decisions of DeepSpeed 0.19
that read from the device, with the same operations (``runtime/zero/stage_1_and_2.py``, ``runtime/zero/stage3.py``,
``runtime/utils.py`` and ``runtime/engine.py``); everything else in an update is the project's own code.
"""

import math

import pytest
import torch
from torch import Tensor

import strict_device
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import NonFiniteError
from coconut_ds.model.collate import Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.training.batches import BatchGeometry, plan_update
from coconut_ds.training.engine import Engine
from coconut_ds.training.prefetch import Prepared, prepared_ahead
from coconut_ds.training.step_numbers import StepNumbers
from strict_device.batches import SHAPES, layout_of

DEVICE = strict_device.device()
RANKS = Ranks(device=DEVICE)


class ZeroOptimizer:
    """DeepSpeed's optimizer under ZeRO 1 to 3: what it reads to decide whether and how far it steps."""

    cpu_offload = False

    def __init__(self, optimizer: torch.optim.Optimizer, stage: int, clip: float) -> None:
        self.optimizer, self.stage, self.clip = optimizer, stage, clip
        self.param_groups, self.overflow, self.norm = optimizer.param_groups, False, None

    @property
    def gradients(self) -> list[Tensor]:
        found = (parameter.grad for group in self.param_groups for parameter in group["params"])
        return [gradient for gradient in found if gradient is not None]

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
        return torch.where(
            (~torch.isfinite(stacked) | (stacked < 0)).any(), torch.full_like(combined, math.inf), combined
        )

    @staticmethod
    def _is_invalid(norm: Tensor) -> bool:
        return bool((~torch.isfinite(norm) | (norm < 0)).any())


class PlainOptimizer:
    """The optimizer under ZeRO 0, with the engine's own clipping, which copies two constants to the device."""

    def __init__(self, optimizer: torch.optim.Optimizer, clip: float) -> None:
        self.optimizer, self.clip, self.param_groups = optimizer, clip, optimizer.param_groups
        self.overflow, self.norm = False, None

    def step(self) -> None:
        if self.clip:
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.stack([g.norm(2) for g in gradients]).pow(2).sum().pow(0.5)
            most, one = (torch.tensor([number], device=norm.device) for number in (self.clip, 1.0))
            for gradient in gradients:
                gradient.mul_(torch.min(one, most / (norm + 1e-6)))
        self.optimizer.step()


class DeepSpeed:
    """The calls of DeepSpeed's engine."""

    def __init__(self, loop: LatentLoop, stage: int, clip: float) -> None:
        self.module = loop
        adam = torch.optim.AdamW(loop.parameters(), fused=True)
        self.optimizer = ZeroOptimizer(adam, stage, clip) if stage else PlainOptimizer(adam, clip)

    def __call__(self, *arguments):
        return self.module(*arguments)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        pass

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()

    def get_global_grad_norm(self):
        return self.optimizer.norm

    def was_step_applied(self) -> bool:
        return not self.optimizer.overflow


def make_engine(stage: int, clip: float) -> Engine:
    """The project's engine around ``DeepSpeed``."""
    engine = object.__new__(Engine)
    engine._ranks, engine.zero_stage = RANKS, stage
    loop = LatentLoop(strict_device.make_model("llama"), defer_gradients=False).train()
    engine._engine = DeepSpeed(loop, stage, clip)
    engine._numbers = StepNumbers(engine._engine.optimizer, stage, RANKS)
    return engine


def prepared_batches() -> Prepared:
    """Two micro batches, made by the preparing thread."""
    layouts, collator = [layout_of(*shape) for shape in SHAPES], Collator.for_device(DEVICE, 0, None, 96)

    def prepare(indices) -> Prepared:
        plan = plan_update(layouts, BatchGeometry(4, 2, 2, 1), 0, "token")
        return Prepared([], [collator(one.layouts, one.weights, one.num_thoughts) for one in plan], 0)

    return next(prepared_ahead(prepare, [[0]], DEVICE))


@pytest.mark.parametrize("clip", [0.0, 1.0], ids=["", "clipped"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_an_update_waits_for_the_device_at_most_three_times(syncs, stage, clip):
    """Once in this project's code, for loss, norm and requests to stop; else in DeepSpeed's, for constants."""
    engine, prepared = make_engine(stage, clip), prepared_batches()
    with syncs.refused():
        moved = [batch.to(DEVICE) for batch in prepared.micro_batches]
    assert len(moved) == 2
    with syncs.counted() as counted:
        result = engine.update(prepared.micro_batches, 1e-3, lambda: True)
    assert counted.reads == 1, counted
    assert [place for place in counted.places if place.startswith("training/step_numbers.py")], counted
    assert counted.total <= 3, counted
    assert math.isfinite(result.loss)


def test_the_numbers_are_read_once_whatever_deepspeed_asks(syncs):
    """Without ``StepNumbers`` in between, DeepSpeed's decisions alone are more reads than this."""
    engine = make_engine(2, 1.0)
    plain = ZeroOptimizer(torch.optim.AdamW(engine._engine.module.parameters(), fused=True), 2, 1.0)
    batches = prepared_batches().micro_batches
    engine.update(batches, 1e-3)
    with syncs.counted() as counted:
        plain.step()
    assert counted.reads == 3, counted


def test_an_update_whose_loss_is_not_finite_is_refused_before_the_step(syncs, monkeypatch):
    engine = make_engine(2, 1.0)
    stepped = []
    monkeypatch.setattr(engine._engine.optimizer.optimizer, "step", lambda: stepped.append(1))
    monkeypatch.setattr(StepNumbers, "loss", property(lambda self: math.nan, lambda self, value: None), raising=False)
    with pytest.raises(NonFiniteError, match="loss is nan"):
        engine.update(prepared_batches().micro_batches, 1e-3)
    assert not stepped
