"""``lotus``: thoughts learn to predict the tokens of the steps that they replace (LOTUS, arXiv 2606.31779).

The thoughts of a problem are blocks of c (``c_thought``), one for each step that they replace. The model's head reads
the state before each thought, and must give the token of the step at that place: token j of step k belongs to thought
k·c + j. A step includes its newline and is cut to c tokens; thoughts without a token are not trained. So the state
before the first thought, at ``<|start-latent|>``, predicts the first token of the first step. The loss is

    cross entropy of what is written + step_weight · cross entropy of the steps' tokens,

each a mean over its own targets of the global batch. Under ``thinking=looped``, on which LOTUS is built, the states are
those of the last round, or with ``in_loop`` those of round k for block k.

Shapes:
    B  rows of a micro batch
    L  thoughts; the largest number of any row
    D  hidden size
    V  vocabulary size
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.methods.base import Ids, TokenizedProblem, join
from coconut_ds.methods.layout import IGNORE
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.collate import Batch, Collator, LatentInputs, Targets
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.objectives.base import Examples, Objective

MOST_CUT = 0.1
"""Share of steps that may be cut before a warning is given."""
MOST_COUNTED = 1000
"""Number of problems whose steps are looked at for it."""


class LotusBatch(NamedTuple):
    """A micro batch with two kinds of targets."""

    written: Batch
    """The sequences, and what the method writes as targets."""
    steps: Batch
    """The same sequences with the tokens of the replaced steps as targets. Only its targets are used."""

    def to(self, device: torch.device) -> "LotusBatch":
        """The same tensors on ``device``; the host does not wait for the copy."""
        return LotusBatch(self.written.to(device), self.steps.to(device))


class Lotus(Objective):
    """Cross entropy of what is written, and of the steps' tokens at the places of the thoughts."""

    parts: ClassVar[tuple[str, ...]] = ("answer", "step")

    def examples(
        self, sequences: Sequences, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]
    ) -> Examples:
        """The sequences of the method, once with its own labels and once with the steps' tokens as labels."""
        written = sequences.for_training(epoch, stage, problems, indices)
        steps = [sequences.replaced_steps(epoch, stage, index, problems[index]) for index in indices]
        lotus, block = self.config.objective.lotus, self.config.training.c_thought
        return Examples((written, with_step_labels(written, steps, block, lotus.flat)))

    def notes(self, problems: Sequence[TokenizedProblem]) -> list[str]:
        """A warning if many steps are longer than the thoughts that stand for them."""
        block = self.config.training.c_thought
        lengths = sorted(len(step) for problem in problems[:MOST_COUNTED] for step in problem.steps)
        cut = sum(length > block for length in lengths)
        if self.config.objective.lotus.flat or cut <= MOST_CUT * len(lengths):
            return []
        enough = lengths[min(len(lengths) - 1, int((1 - MOST_CUT) * len(lengths)))]
        return [
            f"warning: objective=lotus learns only the first training.c_thought={block} tokens of each step, and "
            f"{cut / len(lengths):.0%} of the steps are longer; set training.c_thought={enough}, which is enough for "
            f"{1 - MOST_CUT:.0%} of them"
        ]

    def collate(self, collator: Collator, examples: Examples, views: Sequence[MicroBatch]) -> LotusBatch:
        """Both kinds of targets of one micro batch."""
        written, steps = views
        return LotusBatch(collator.collate(written), collator.collate(steps))

    def loss(self, loop: LatentLoop, batch: LotusBatch) -> Tensor:
        """The two parts, [2]."""
        (inputs, written), steps = batch.written, batch.steps.targets
        lotus = self.config.objective.lotus
        rounds: list[Tensor] | None = [] if lotus.in_loop else None
        states = loop.encode(inputs, all_states=False, rounds=rounds)
        answer = self._cross_entropy(loop, states, written)
        if rounds:
            states = _each_block_after_its_round(states, rounds, inputs, self.config.training.c_thought)
        return torch.stack([answer, lotus.step_weight * self._cross_entropy(loop, states, steps)])

    def _cross_entropy(self, loop: LatentLoop, states: Tensor, targets: Targets) -> Tensor:
        """Weighted sum of the cross entropies of targets, whose index is that of a state in ``states`` [B, T, D]."""
        if not targets.max_targets:
            # No rank has any, as at stage 0.
            return states.new_zeros((), dtype=torch.float32)
        return loop.cross_entropy(states, targets)


def with_step_labels(layouts: Layouts, steps: Sequence[Sequence[Ids]], block: int, flat: bool = False) -> Layouts:
    """The same sequences with the tokens of steps as the labels of their thoughts, and no other labels.

    Args:
        layouts: B sequences.
        steps: for each of them, the steps that its thoughts replace.
        block: the number of thoughts that replace one step; longer steps are cut to it.
        flat: whether the steps are packed without gaps, instead of one in each block.
    """
    labels, counts = np.full(len(layouts.labels), IGNORE), np.zeros(len(layouts), np.int64)
    starts = layouts.starts[:-1] + layouts.first_thought
    for row, (own, start, room) in enumerate(zip(steps, starts.tolist(), layouts.num_thoughts.tolist(), strict=True)):
        placed: list[Ids] = [join(own)[:room]] if flat else [step[:block] for step in own[: room // block]]
        for number, tokens in enumerate(placed):
            first = start + number * block
            labels[first : first + len(tokens)] = tokens
        counts[row] = sum(map(len, placed))
    return replace(layouts, labels=labels, num_targets=counts)


def _each_block_after_its_round(states: Tensor, rounds: Sequence[Tensor], inputs: LatentInputs, block: int) -> Tensor:
    """The states [B, T, D], where those that predict a thought of block k (from 1) are the states of round k.

    Args:
        states: [B, T, D] after all rounds.
        rounds: the states [B, L, D] of the step columns after each round; at least one round for each block.
        inputs: the batch.
        block: number of thoughts in a block.
    """
    start, count = inputs.prefix_ids.shape[1], inputs.step_ids.shape[1]
    # The state of a column predicts the next column. The first thought of all is predicted by the prefix.
    ends = [min(end, count) - 1 for end in range(block, count + block, block)]
    parts = [after[:, begin:end] for after, begin, end in zip(rounds, [0, *ends], ends, strict=False)]
    return torch.cat([states[:, :start], *parts, states[:, start + count - 1 :]], dim=1)
