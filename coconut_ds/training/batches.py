"""Which problem goes where: global batches, micro batches, ranks, and the weight of each target in the loss.

Everything is computed from lengths that every rank knows, so ranks agree on numbers of passes and of targets without
talking. What a global batch holds depends on (seed, epoch) alone, never on ranks or micro batches.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.errors import ConfigError
from coconut_ds.methods.layout import Layout
from coconut_ds.settings import TrainingConfig


@dataclass(frozen=True)
class BatchGeometry:
    """Problems an update = micro × accumulation × ranks."""

    global_batch_size: int
    micro_batch_size: int
    accumulation: int
    world_size: int

    @classmethod
    def derive(cls, training: TrainingConfig, world_size: int) -> "BatchGeometry":
        """What ``training`` means on ``world_size`` ranks.

        Raises:
            ConfigError: the numbers contradict each other or do not divide; names numbers that would work.
        """
        micro, wanted = training.batch_size_training, training.global_batch_size
        accumulation = training.gradient_accumulation_steps
        if wanted is None:
            accumulation = accumulation or 1
            return cls(micro * accumulation * world_size, micro, accumulation, world_size)
        if accumulation is not None:
            if micro * accumulation * world_size != wanted:
                raise ConfigError(
                    f"training.global_batch_size={wanted}, but batch_size_training={micro} × "
                    f"gradient_accumulation_steps={accumulation} × ranks={world_size} = "
                    f"{micro * accumulation * world_size}; give only one of the two, or numbers that agree"
                )
            return cls(wanted, micro, accumulation, world_size)
        if wanted % world_size:
            # Below one full micro batch a rank, micro batches shrink; above, they must fill up.
            unit = world_size if wanted < micro * world_size else micro * world_size
            near = [size for size in (wanted // unit * unit, -(-wanted // unit) * unit) if size]
            raise ConfigError(
                f"training.global_batch_size={wanted} does not divide among {world_size} ranks; "
                f"set training.global_batch_size={' or '.join(map(str, near))}"
            )
        share = wanted // world_size
        if share <= micro:
            return cls(wanted, share, 1, world_size)
        if share % micro:
            works = [size for size in range(1, share + 1) if share % size == 0]
            raise ConfigError(
                f"training.batch_size_training={micro} does not divide the {share} problems a rank of "
                f"training.global_batch_size={wanted} on {world_size} ranks; set training.batch_size_training to one "
                f"of {', '.join(map(str, works))}"
            )
        return cls(wanted, micro, share // micro, world_size)

    def describe(self) -> str:
        """One line for the log."""
        return (
            f"global batch {self.global_batch_size} = micro batch {self.micro_batch_size} × "
            f"accumulation {self.accumulation} × {self.world_size} rank{'s' if self.world_size > 1 else ''}"
        )


def epoch_batches(seed: int, epoch: int, num_problems: int, global_batch_size: int) -> list[list[int]]:
    """Indices of each global batch of an epoch. Every problem stands once; the last batch may be smaller."""
    order = list(range(num_problems))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)
    return [order[start : start + global_batch_size] for start in range(0, num_problems, global_batch_size)]


@dataclass(frozen=True)
class MicroBatch:
    """What one rank computes in one forward pass.

    A rank that has run out of problems gets a copy of another's with weight 0, so that all ranks make the same passes.
    """

    layouts: Sequence[Layout]
    weights: Sequence[float]
    """For each row, the weight of each of its targets in the update's loss."""
    num_thoughts: int
    """Largest number of thoughts in this micro step on any rank: all ranks make as many one-position passes."""
    num_targets: int
    """Largest number of targets in this micro step on any rank: all ranks compute logits in as many parts."""


def plan_update(layouts: Sequence[Layout], geometry: BatchGeometry, rank: int, loss_reduction: str) -> list[MicroBatch]:
    """The micro batches of ``rank`` for one global batch, which may hold fewer problems than the geometry says.

    Weights add up to one update's mean over all ranks and micro batches: ``token`` gives each target of the global
    batch 1/targets; ``reference`` gives the mean over micro batches of their own token means.
    """
    assert layouts, "a global batch holds at least one problem"
    if loss_reduction == "token":
        # Similar ones together, for less padding; the reference's mean of means depends on who stands with whom.
        layouts = sorted(layouts, key=lambda layout: (layout.num_thoughts, len(layout)))
    micro, world = geometry.micro_batch_size, geometry.world_size
    num_steps = math.ceil(len(layouts) / (micro * world))
    chunks = {
        (step, other): layouts[(step * world + other) * micro : (step * world + other + 1) * micro]
        for step in range(num_steps)
        for other in range(world)
    }
    total = sum(layout.num_targets for layout in layouts)
    filled = sum(bool(chunk) for chunk in chunks.values())
    plan = []
    for step in range(num_steps):
        mine = chunks[step, rank]
        if loss_reduction == "token":
            weight = 1 / total
        else:
            weight = 1 / (filled * sum(layout.num_targets for layout in mine)) if mine else 0.0
        others = [chunks[step, other] for other in range(world)]
        num_thoughts = max(layout.num_thoughts for chunk in others for layout in chunk)
        num_targets = max(sum(layout.num_targets for layout in chunk) for chunk in others)
        rows = list(mine) or [chunks[step, 0][0]]
        plan.append(MicroBatch(rows, [weight if mine else 0.0] * len(rows), num_thoughts, num_targets))
    return plan
