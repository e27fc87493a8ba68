"""Reads the numbers of an update from the device: loss, gradient norm, and whether a rank has been asked to stop.

The host waits for the device once for all of them, after the backward passes and before the optimizer changes a weight.
DeepSpeed 0.19 would read the gradient norm several times in a step, once for each of its own decisions. ``StepNumbers``
therefore takes the place of its functions that compute the norm and look for overflow, and returns the norm in the
host's memory. If a number is not finite, DeepSpeed receives an infinite norm and skips the step.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from coconut_ds.distributed.ranks import Ranks


class StepNumbers:
    """The numbers of one update after the other."""

    def __init__(self, optimizer: Any, zero_stage: int, ranks: Ranks) -> None:
        """
        Args:
            optimizer: DeepSpeed's optimizer, whose functions are replaced under ZeRO 1 to 3.
            zero_stage: the ZeRO stage.
            ranks: all processes of the run.
        """
        self._ranks = ranks
        self._sums: Tensor | None = None
        self.losses = [math.nan]
        """The parts of the loss of the update, and the measures that the objective adds to them, over all ranks."""
        self.stops = False
        """Whether any rank has been asked to stop."""
        self.reads_in_step = True
        """Whether DeepSpeed's step reads the numbers, before it changes a weight."""
        if zero_stage in (1, 2) and hasattr(optimizer, "scaled_global_norm"):
            norm_of_all = optimizer.scaled_global_norm
            optimizer.scaled_global_norm = lambda *arguments: self._checked([norm_of_all(*arguments)])[0]
            if not optimizer.cpu_offload:
                # It would look at every gradient and wait for the result; a gradient that is not finite shows in the
                # norm. With offloading, DeepSpeed looks at gradients one by one as they arrive at the host.
                optimizer.check_overflow = lambda *arguments, **options: None
        elif zero_stage == 3:
            norms_of_groups = optimizer._get_norm_groups
            optimizer._get_norm_groups = lambda: self._checked(norms_of_groups())
        else:
            # Stage 0 has no optimizer of DeepSpeed's; that of bf16 under stage 1 computes the norm in another way.
            self.reads_in_step = False

    @property
    def loss(self) -> float:
        """Sum of ``losses``: it is finite only if each of them is."""
        return sum(self.losses)

    def begin(self, losses: Sequence[Tensor], asked_to_stop: bool) -> None:
        """Adds up the losses of this rank's micro batches, part by part, and all numbers over all ranks.

        Waits for nothing. ``losses`` has the parts [K] of the loss of each micro batch, with any
        measures.
        """
        totals = [torch.stack(part).sum().double() for part in zip(*(each.unbind() for each in losses), strict=True)]
        self._sums = torch.stack([*totals, torch.full_like(totals[0], float(asked_to_stop))])
        self._ranks.add_up(self._sums)

    def read(self, norms: Sequence[Tensor] = ()) -> list[Tensor]:
        """Reads what ``begin`` has added up, and ``norms``, scalars in fp32 or fp64. Returns these on the CPU."""
        assert self._sums is not None
        sums, self._sums = self._sums, None
        # fp32 numbers are exact in fp64.
        numbers = torch.cat([sums, *(norm.reshape(1).to(sums) for norm in norms)]).tolist()
        (*self.losses, stops), found = numbers[: len(sums)], numbers[len(sums) :]
        self.stops = stops > 0
        return [torch.tensor(value, dtype=norm.dtype) for value, norm in zip(found, norms, strict=True)]

    def read_the_rest(self) -> None:
        """Reads what ``begin`` has added up, if nothing has read it yet. DeepSpeed's step does not reach the norm if it
        has found an overflow before."""
        if self._sums is not None:
            self.read()

    def _checked(self, norms: Sequence[Tensor]) -> list[Tensor]:
        """The norms on the CPU; infinite ones, which make DeepSpeed skip the step, if the loss is not finite."""
        found = self.read(norms)
        return found if math.isfinite(self.loss) else [torch.full_like(norm, math.inf) for norm in found]
