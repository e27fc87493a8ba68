"""``sim_cot``: an auxiliary decoder must write each step from the thoughts that stand for it (arXiv 2509.20317).

The thoughts of a problem are divided into groups. For group k, the decoder (``step_decoder.py``) reads the vectors that
the group's thoughts feed back, then the tokens of step k as the main model embeds them, and must predict these tokens
and the end of the text. This cross entropy, the part ``step``, is added to the loss of another objective. Its gradient
flows into the decoder, into the thoughts and through them into all that they depend on, and into the embeddings.

What a target is: the tokens of a step as they stand in the sequences, with the line break at its end, then the
end-of-text token. The last group also gets the steps for which there is no group, one after the other.

The public code differs in three ways. Its targets have no line break after the last step. On Coconut it sums over the
tokens of a target, so that the part ``step`` is about ten times the likelihood; here the default is a mean over tokens,
as in the likelihood, whose size does not depend on the length of the steps (``objective.sim_cot.step_reduction`` has
both). And at stage M it asks group M for the steps after M although they are still written out; here groups stand only
for steps that have been removed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.methods.base import Ids
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.collate import Batch, Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.loss import target_loss
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.objectives.base import Examples, Objective, Tensors
from coconut_ds.objectives.likelihood import Likelihood
from coconut_ds.objectives.step_decoder import StepDecoder, build_step_decoder
from coconut_ds.objectives.step_targets import StepBatch, StepTargets, collate_steps, group_steps, group_weights
from coconut_ds.settings import Config

DECODER = "step_decoder"
"""Name of the decoder among the auxiliary modules of the loop."""


@dataclass(frozen=True)
class StepExamples(Examples):
    """Examples of the objective below, with what the decoder must write as the last view."""

    base: Examples
    """The examples of the objective to which the steps are added."""
    lengths: Any
    """See ``StepTargets``."""


@dataclass(frozen=True)
class SimCotBatch:
    """A micro batch: that of the objective to which the steps are added, and the decoder's part."""

    base: Any
    steps: StepBatch

    def to(self, device: torch.device) -> "SimCotBatch":
        """The same tensors on ``device``; the host does not wait for the copies."""
        return SimCotBatch(self.base.to(device), self.steps.to(device))


class SimCot(Objective):
    """SIM-CoT on Coconut: the likelihood, and the steps from groups of ``c_thought`` thoughts."""

    parts: ClassVar[tuple[str, ...]] = (*Likelihood.parts, "step")
    base_class: ClassVar[type[Objective]] = Likelihood
    """The objective to which the steps are added."""
    first_position: ClassVar[int] = 1
    """Position id of the first thought that the decoder reads, as in the public code."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.base = self.base_class(config)
        self._settings = config.objective.sim_cot
        self._group_size = config.training.c_thought

    def auxiliary(self, backbone: Backbone) -> dict[str, nn.Module]:
        """The decoder, and the modules of the other objective."""
        checkpointing = self.config.training.activation_checkpointing
        decoder = build_step_decoder(backbone.model, self._settings, self.first_position, checkpointing)
        return {**self.base.auxiliary(backbone), DECODER: decoder}

    def examples(
        self, sequences: Sequences, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]
    ) -> StepExamples:
        """The examples of the other objective, and the targets of the decoder."""
        base = self.base.examples(sequences, epoch, stage, problems, indices)
        counts = base.views[0].num_thoughts.tolist()
        groups: list[list[list[int]]] = [[] for _ in indices]
        if stage >= self._settings.from_stage:
            groups = [
                self._groups(sequences, epoch, stage, index, problems, count)
                for index, count in zip(indices, counts, strict=True)
            ]
        targets = StepTargets.of(groups)
        return StepExamples((*base.views, targets.layouts), base, targets.lengths)

    def _groups(
        self, sequences: Sequences, epoch: int, stage: int, index: int, problems: ProblemArrays, num_thoughts: int
    ) -> list[list[int]]:
        """The tokens that the decoder must write for each group of thoughts of a problem."""
        problem = problems[index]
        steps = sequences.replaced_steps(epoch, stage, index, problem)
        missing: Ids = [*problem.cue, *problem.answer] if self._settings.missing_step == "answer" else ()
        return group_steps(steps, num_thoughts // self._group_size, problem.answer[-1:], missing)

    def collate(self, collator: Collator, examples: Examples, views: Sequence[MicroBatch]) -> Tensors:
        """The tensors of one micro batch."""
        assert isinstance(examples, StepExamples)
        batch: Any = self.base.collate(collator, examples.base, views[:-1])
        view = views[-1]
        # The rows over which a mean is taken: a micro batch under ``loss_reduction=reference``.
        by_micro_batch = self.config.training.loss_reduction == "reference"
        rows = examples.lengths[view.rows] if by_micro_batch else examples.lengths
        weights = group_weights(rows, self._settings.step_reduction)
        weights = weights * (self._settings.step_factor * view.share * len(rows))
        inputs = self._student(batch).inputs
        return SimCotBatch(batch, collate_steps(collator, examples.lengths, view, weights, inputs, self._group_size))

    def loss(self, loop: LatentLoop, batch: SimCotBatch) -> Tensor:
        """The parts of the other objective, and that of the steps."""
        parts, states = self._base_loss(loop, batch.base)
        return torch.cat([parts, step_loss(loop, states, batch.steps).unsqueeze(0)])

    def _student(self, batch: Any) -> Batch:
        """The micro batch of the sequences with thoughts."""
        student: Batch = batch
        return student

    def _base_loss(self, loop: LatentLoop, batch: Any) -> tuple[Tensor, Tensor]:
        """The parts of the loss of the other objective, and the states [B, T, D] of the sequences with thoughts."""
        inputs, targets = self._student(batch)
        states = loop.encode(inputs, all_states=False)
        loss = target_loss(loop.head, loop.vocabulary, states.flatten(0, 1)[targets.index], targets)
        return loss.unsqueeze(0), states


def step_loss(loop: LatentLoop, states: Tensor, steps: StepBatch) -> Tensor:
    """Weighted sum of the cross entropies of the decoder's targets, a scalar in fp32.

    Args:
        loop: the model, with the decoder.
        states: [B, T, D] the states of the sequences with thoughts.
        steps: the decoder's part of the micro batch.
    """
    decoder: Any = loop.auxiliary[DECODER]
    assert isinstance(decoder, StepDecoder)
    thoughts = states.flatten(0, 1)[steps.inputs.thoughts]
    read = decoder(thoughts, loop.embed(steps.inputs.ids))
    return target_loss(decoder.head, decoder.vocabulary, read.flatten(0, 1)[steps.targets.index], steps.targets)
