"""How problems are divided into global batches, micro batches and ranks, and how much each target counts in the loss.

Everything is computed from sequence lengths that every rank knows, so the ranks agree on the numbers of passes and
targets without communicating. The problems of a global batch depend only on (seed, epoch), not on the number of ranks
or the micro batch size.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from coconut_ds.errors import ConfigError
from coconut_ds.methods.layout import Layout
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.settings import TrainingConfig


@dataclass(frozen=True)
class BatchGeometry:
    """How the problems of one update are divided: global batch = micro batch × accumulation × ranks.

    An objective that samples trains on completions, of which each problem has several: its micro batches are of
    completions, and an update makes as many of them as the completions need.
    """

    global_batch_size: int
    """Problems per update, on all ranks together."""
    micro_batch_size: int
    """Problems, or sampled completions, per forward pass of one rank."""
    accumulation: int | None
    """Micro batches per rank and update; None: it depends on the sampled completions."""
    world_size: int
    """Number of ranks."""

    @classmethod
    def derive(cls, training: TrainingConfig, world_size: int, samples: bool = False) -> "BatchGeometry":
        """The geometry that ``training`` describes, on ``world_size`` ranks.

        Args:
            training: the settings.
            world_size: number of ranks.
            samples: whether the objective trains on completions that it samples (``Objective.samples``).

        Raises:
            ConfigError: the numbers contradict each other or do not divide; the message suggests numbers that work.
        """
        if samples:
            return cls._of_samples(training, world_size)
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
        # Less than one full micro batch per rank: micro batches become smaller. More: all must be full.
        _check_division(wanted, world_size, world_size if wanted < micro * world_size else micro * world_size)
        share = wanted // world_size
        if share <= micro:
            return cls(wanted, share, 1, world_size)
        if share % micro:
            works = [size for size in range(1, share + 1) if share % size == 0]
            raise ConfigError(
                f"training.batch_size_training={micro} does not divide the {share} problems per rank of "
                f"training.global_batch_size={wanted} on {world_size} ranks; set training.batch_size_training to one "
                f"of {', '.join(map(str, works))}"
            )
        return cls(wanted, micro, share // micro, world_size)

    @classmethod
    def _of_samples(cls, training: TrainingConfig, world_size: int) -> "BatchGeometry":
        micro, problems = training.batch_size_training, training.global_batch_size
        if training.gradient_accumulation_steps is not None:
            raise ConfigError(
                f"training.gradient_accumulation_steps={training.gradient_accumulation_steps}: the number of passes of "
                "an update depends on the completions that are sampled; set training.global_batch_size=PROBLEMS instead"
            )
        problems = micro * world_size if problems is None else problems
        _check_division(problems, world_size, world_size)
        return cls(problems, micro, None, world_size)

    def describe(self) -> str:
        """One line for the log."""
        if self.accumulation is None:
            return (
                f"global batch {self.global_batch_size} problems, micro batch {self.micro_batch_size} completions, "
                f"{self.world_size} rank{'s' if self.world_size > 1 else ''}"
            )
        return (
            f"global batch {self.global_batch_size} = micro batch {self.micro_batch_size} × "
            f"accumulation {self.accumulation} × {self.world_size} rank{'s' if self.world_size > 1 else ''}"
        )


def _check_division(problems: int, world_size: int, unit: int) -> None:
    """Raises if the ranks cannot share a global batch equally. The message suggests multiples of ``unit``."""
    if problems % world_size:
        near = [size for size in (problems // unit * unit, -(-problems // unit) * unit) if size]
        raise ConfigError(
            f"training.global_batch_size={problems} does not divide among {world_size} ranks; "
            f"set training.global_batch_size={' or '.join(map(str, near))}"
        )


def epoch_batches(seed: int, epoch: int, num_problems: int, global_batch_size: int) -> list[list[int]]:
    """Problem indices of each global batch of an epoch: every problem once, shuffled. The last batch may be smaller."""
    order = list(range(num_problems))
    random.Random(f"order/{seed}/{epoch}").shuffle(order)
    return [order[start : start + global_batch_size] for start in range(0, num_problems, global_batch_size)]


def plan_update(
    layouts: Sequence[Layout],
    geometry: BatchGeometry,
    rank: int,
    loss_reduction: str,
    like: Sequence[Layout] | None = None,
) -> list[MicroBatch]:
    """The micro batches of ``rank`` for one global batch.

    The loss of an update is the sum of weight × cross entropy over all targets of all ranks and micro batches.
    ``token`` gives each target of the global batch the weight 1 / number of targets; ``reference`` computes the mean
    over micro batches of their token means, as the reference implementation does.

    Args:
        layouts: the sequences of the global batch; may be fewer than ``geometry.global_batch_size``.
        geometry: how the batch is divided.
        rank: the rank to plan for.
        loss_reduction: ``token`` or ``reference``.
        like: the same problems in another view, whose plan also divides ``layouts``; None: ``layouts`` itself.
    """
    assert layouts, "a global batch holds at least one problem"
    layouts = Layouts.of(layouts)
    like = layouts if like is None else Layouts.of(like)
    order = np.arange(len(layouts))
    if loss_reduction == "token":
        # Sequences with similar numbers of thoughts and tokens need less padding. Under ``reference``, sorting would
        # change the loss: a mean of means depends on which sequences share a micro batch.
        order = np.lexsort((like.lengths, like.num_thoughts))
    micro, world = geometry.micro_batch_size, geometry.world_size
    num_steps = math.ceil(len(layouts) / (micro * world))
    # Chunk c holds the problems of rank c % world in micro step c // world; the last chunks may be empty.
    starts = range(0, len(layouts), micro)
    targets = np.zeros(num_steps * world, np.int64)
    targets[: len(starts)] = np.add.reduceat(layouts.num_targets[order], starts)
    thoughts = np.zeros(num_steps * world, np.int64)
    thoughts[: len(starts)] = np.maximum.reduceat(layouts.num_thoughts[order], starts)
    plan = []
    for step in range(num_steps):
        chunk, ranks = step * world + rank, slice(step * world, (step + 1) * world)
        mine = order[chunk * micro : (chunk + 1) * micro]
        rows = mine if len(mine) else order[step * world * micro :][:1]
        weight = share = 0.0
        # A view other than the first may have no targets, in which case the weight does not matter.
        if len(mine) and loss_reduction == "token":
            weight, share = 1 / max(1, int(targets.sum())), 1 / len(layouts)
        elif len(mine):
            weight, share = 1 / (len(starts) * max(1, int(targets[chunk]))), 1 / (len(starts) * len(mine))
        most = int(thoughts[ranks].max()), int(targets[ranks].max())
        plan.append(MicroBatch(layouts.take(rows), [weight] * len(rows), *most, rows, share))
    return plan
