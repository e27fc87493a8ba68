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
from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Method, Segment, TokenizedProblem
from coconut_ds.methods.cot import Cot
from coconut_ds.methods.layouts import Integers
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.collate import Batch, Collator
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.loss import target_loss
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.objectives.base import Examples, Objective
from coconut_ds.objectives.codi import Codi
from coconut_ds.objectives.likelihood import Likelihood
from coconut_ds.objectives.step_decoder import StepDecoder, build_step_decoder
from coconut_ds.objectives.step_targets import StepBatch, StepTargets, collate_steps, group_steps, group_weights
from coconut_ds.settings import Config

DECODER = "step_decoder"
"""Name of the decoder among the auxiliary modules of the loop."""


class DecoderReads(Cot):
    """The longest sequence that the decoder may have to read: the thoughts of a group, all steps, the answer.

    Only its length is used, to check that it fits the decoder's context.
    """

    name: ClassVar[str] = "decoder_reads"

    def num_latents(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """The thoughts of one group."""
        return spec.c_thought

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """No question."""
        return [Segment([markers.thought] * num_latents, thought=True), Segment([*written, *answer], loss=True)]


DECODER_READS = DecoderReads()


@dataclass(frozen=True)
class StepExamples(Examples):
    """The examples of another objective, and as the last view what the decoder must write."""

    base: Examples
    """The examples of the other objective."""
    lengths: Integers
    """See ``StepTargets``."""


@dataclass(frozen=True)
class SimCotBatch:
    """A micro batch of the other objective, and the decoder's part."""

    base: Any
    steps: StepBatch

    def to(self, device: torch.device) -> "SimCotBatch":
        """The same tensors on ``device``; the host does not wait for the copies."""
        return SimCotBatch(self.base.to(device), self.steps.to(device))


class SimCot(Objective):
    """SIM-CoT on Coconut: the likelihood, and the steps from groups of ``c_thought`` thoughts."""

    parts: ClassVar[tuple[str, ...]] = (*Likelihood.parts, "step")
    base_class: ClassVar[type[Likelihood] | type[Codi]] = Likelihood
    """The objective to which the steps are added."""
    first_position: ClassVar[int] = 1
    """Position id of the first vector that the decoder reads, as in the public code."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._base, self._settings = self.base_class(config), config.objective.sim_cot

    @property
    def group_size(self) -> int:
        """The number of thoughts that stand for a step."""
        return self.config.training.c_thought

    def num_groups(self, num_thoughts: int) -> int:
        """The number of groups of a sequence with ``num_thoughts`` thoughts."""
        return num_thoughts // self.group_size

    def steps_to_write(self, problem: TokenizedProblem, replaced: Sequence[Ids]) -> Sequence[Ids]:
        """The steps that the decoder must write, out of those that the thoughts of a problem replace."""
        return replaced

    def thinking(self, batch: Any) -> Batch:
        """The part of a micro batch of the other objective that has the thoughts."""
        assert isinstance(batch, Batch)
        return batch

    def auxiliary(self, backbone: Backbone) -> dict[str, nn.Module]:
        """The decoder, and the modules of the other objective."""
        checkpointing = self.config.training.activation_checkpointing
        decoder = build_step_decoder(backbone.model, self._settings, self.first_position, checkpointing)
        return {**self._base.auxiliary(backbone), DECODER: decoder}

    def views(self, method: Method) -> tuple[Method, ...]:
        """The methods of the other objective, and what the decoder reads."""
        return (*self._base.views(method), DECODER_READS)

    def examples(
        self, sequences: Sequences, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]
    ) -> StepExamples:
        """See ``Objective``."""
        base = self._base.examples(sequences, epoch, stage, problems, indices)
        groups: list[list[list[int]]] = [[] for _ in indices]
        if stage >= self._settings.from_stage:
            counts = base.views[0].num_thoughts.tolist()
            for own, index, num_thoughts in zip(groups, indices, counts, strict=True):
                problem = problems[index]
                steps = self.steps_to_write(problem, sequences.replaced_steps(epoch, stage, index, problem))
                missing: Ids = [*problem.cue, *problem.answer] if self._settings.missing_step == "answer" else ()
                own += group_steps(steps, self.num_groups(num_thoughts), problem.answer[-1:], missing)
        targets = StepTargets.of(groups)
        return StepExamples((*base.views, targets.layouts), base, targets.lengths)

    def collate(self, collator: Collator, examples: Examples, views: Sequence[MicroBatch]) -> SimCotBatch:
        """See ``Objective``."""
        assert isinstance(examples, StepExamples)
        batch: Any = self._base.collate(collator, examples.base, views[:-1])
        view = views[-1]
        # The rows over which a mean is taken; the share of a row is 1 / their number, or 0 for copies.
        by_micro_batch = self.config.training.loss_reduction == "reference"
        rows = examples.lengths[view.rows] if by_micro_batch else examples.lengths
        weights = group_weights(rows, self._settings.step_reduction)
        weights = weights * (self._settings.step_factor * view.share * len(rows))
        inputs = self.thinking(batch).inputs
        return SimCotBatch(batch, collate_steps(collator, examples.lengths, view, weights, inputs, self.group_size))

    def loss(self, loop: LatentLoop, batch: SimCotBatch) -> Tensor:
        """The parts of the other objective, and that of the steps."""
        parts, states = self._base.parts_and_states(loop, batch.base)
        return torch.cat([parts, step_loss(loop, states, batch.steps).unsqueeze(0)])


class SimCotOnCodi(SimCot):
    """SIM-CoT on CODI: its parts, and a step from each thought.

    There is one more group than thoughts: the vector that the last thought's state would feed back stands for a step
    too. The decoder writes the steps that the teacher reads, so not the last one of a solution, unless the teacher
    reads it.
    """

    parts: ClassVar[tuple[str, ...]] = (*Codi.parts, "step")
    base_class: ClassVar[type[Likelihood] | type[Codi]] = Codi
    first_position: ClassVar[int] = 0

    @property
    def group_size(self) -> int:
        """One thought."""
        return 1

    def num_groups(self, num_thoughts: int) -> int:
        """One more than thoughts."""
        return num_thoughts + 1 if num_thoughts else 0

    def steps_to_write(self, problem: TokenizedProblem, replaced: Sequence[Ids]) -> Sequence[Ids]:
        """Those that the teacher reads."""
        has_last = bool(replaced) and replaced[-1] is problem.steps[-1]
        return replaced[:-1] if has_last and not self.config.objective.codi.teacher_last_step else replaced

    def thinking(self, batch: Any) -> Batch:
        """The student's part."""
        student: Batch = batch.student.batch
        return student


def step_loss(loop: LatentLoop, states: Tensor, steps: StepBatch) -> Tensor:
    """Weighted sum of the cross entropies of the decoder's targets, a scalar in fp32.

    Args:
        loop: the model, with the decoder.
        states: [B, T, D] the states of the sequences with thoughts.
        steps: the decoder's part of the micro batch.
    """
    decoder: Any = loop.auxiliary[DECODER]
    assert isinstance(decoder, StepDecoder)
    thoughts = loop.fed(states.flatten(0, 1)[steps.inputs.thoughts])
    read = decoder(thoughts, loop.embed(steps.inputs.ids))
    return target_loss(decoder.head, decoder.vocabulary, read.flatten(0, 1)[steps.targets.index], steps.targets)
