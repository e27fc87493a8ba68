"""The interface of a method: which steps it removes, what replaces them, and the order of the parts of a sequence.

Training proceeds in stages (arXiv 2412.06769, section 3 and appendix). In this package:

* *Stage k* replaces the first k reasoning steps of a problem. At stage 0 all steps are written out.
* ``c_thought`` (the paper's c) is the number of thoughts that replace one step.
* ``max_latent_stage`` (M) is the last stage that adds thoughts. After stage M all remaining steps are removed at once
  and the number of thoughts stays M·c.
* A *latent* is one position that replaces part of a step: either a *thought*, whose input embedding is the last hidden
  state of the position before it, or a *pause* token, whose embedding is learned.
* Numbers of tokens, steps, stages and latents are plain integers; token ids are sequences of integers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Ids = Sequence[int]


@dataclass(frozen=True)
class TokenizedProblem:
    """A problem as token ids.

    Question and steps include the newline (or other ending) that the format adds; the answer ends with the
    end-of-sequence token.
    """

    question: Ids
    steps: tuple[Ids, ...]
    answer: Ids
    cue: Ids = ()
    """The tokens that announce the answer, in formats where each sequence has one target token (see
    ``coconut_ds.formats``); empty in other formats, where the announcement is part of the answer."""


@dataclass(frozen=True)
class MarkerIds:
    """Ids of ``<|start-latent|>``, ``<|end-latent|>``, ``<|latent|>`` and, if the tokenizer has it, ``<|pause|>``."""

    start: int
    end: int
    thought: int
    pause: int | None = None

    def all(self) -> tuple[int, ...]:
        """The ids of all markers, for removing them from generated text."""
        return (self.start, self.end, self.thought, *([] if self.pause is None else [self.pause]))


@dataclass(frozen=True)
class CurriculumSpec:
    """The settings that determine a layout, together with the method, the problem and the stage."""

    c_thought: int
    """Number of thoughts that replace one step."""
    max_latent_stage: int
    """M, the last stage that adds thoughts."""
    pad_latent_to_max: bool = True
    """True: at stage k every problem gets min(k, M)·c thoughts. False: a problem gets at most c for each of its own
    steps."""
    tokens_per_epoch: int = 8
    """Number of step tokens that ``icot`` removes from one stage to the next."""


@dataclass(frozen=True)
class Segment:
    """Consecutive positions of a sequence that are treated alike."""

    ids: Ids
    loss: bool = False
    """Whether the loss is computed on these tokens."""
    thought: bool = False
    """Whether the model's own hidden states replace the embeddings of these positions."""
    marker: bool = False
    """Whether these tokens only mark where thinking begins or ends. Formats without markers leave them out."""


class Method:
    """One way to treat the reasoning steps of a problem.

    Subclasses set ``name`` and ``has_curriculum`` and override the functions in which they differ. This base class
    removes the first k steps at stage k and puts nothing in their place. Methods have no state: one instance of each
    is shared by the whole program.
    """

    name: ClassVar[str]
    has_curriculum: ClassVar[bool]
    """Whether training passes through stages. Otherwise the stage is always 0, and mixing of stages has no effect."""
    has_latents: ClassVar[bool] = False
    """Whether sequences contain thoughts or pause tokens at any stage."""
    pauses: ClassVar[bool] = False
    """Whether the latents are pause tokens. No hidden state is fed back then."""
    starts_thinking: ClassVar[bool] = False
    """Whether the model decides when to think, by generating ``<|start-latent|>``. In other methods with thoughts, the
    prompt contains this marker."""
    writes_steps: ClassVar[bool] = False
    """Whether the model writes all steps at every stage."""
    epochs_per_stage: ClassVar[int | None] = None
    """Number of epochs per stage under ``advance=epochs``; None uses ``training.epochs_per_stage``."""
    unit: ClassVar[Literal["step", "token"]] = "step"
    """The part of a solution that this method keeps or removes whole, whatever its tokens are, so that the sequences of
    a batch can be made together (``templates.py``). step: a step. token: a token; nothing depends on where steps end,
    or on their number. A subclass that overrides ``num_stages``, ``written`` or ``segments`` must state its unit too;
    otherwise its sequences are made one by one, which is slower."""

    def num_stages(self, problem: TokenizedProblem, spec: CurriculumSpec) -> int:
        """The first stage at which none of this problem's steps is left, ignoring M."""
        return len(problem.steps)

    def final_stage(self, longest: int, spec: CurriculumSpec) -> int:
        """The last stage of the curriculum; later stages would give the same sequences.

        This is M if no problem has steps left at stage M, and otherwise M + 1, which removes all remaining steps.

        Args:
            longest: the largest ``num_stages`` of any training problem.
            spec: the settings of the curriculum.
        """
        return spec.max_latent_stage if longest <= spec.max_latent_stage else spec.max_latent_stage + 1

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """Number of steps that are removed at this stage, out of ``num_steps``."""
        return num_steps if stage > spec.max_latent_stage else min(stage, num_steps)

    def replaced(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> tuple[Ids, ...]:
        """The steps that are removed at this stage, in order: those that the latents stand for."""
        return problem.steps[: self.num_removed(stage, len(problem.steps), spec)]

    def written(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> list[int]:
        """The tokens of the steps that are still written out at this stage."""
        return join(problem.steps[self.num_removed(stage, len(problem.steps), spec) :])

    def num_latents(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """Number of latents at this stage.

        Args:
            stage: the stage, from 0.
            num_steps: number of steps of the problem; None at inference, where the reference solution is unknown.
            spec: the settings of the curriculum.
        """
        return 0

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """The parts of the sequence, in order. The answer is the end of the last one.

        At inference, the prompt is every segment before the first with loss.

        Args:
            question: tokens of the question.
            written: tokens of the steps that are still written out (the result of ``written``).
            answer: tokens of the answer.
            num_latents: number of thoughts or pause tokens (the result of ``num_latents``).
            markers: ids of the markers.
        """
        return [Segment(question), Segment([*written, *answer], loss=True)]


def padded_groups(stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
    """Number of groups of c latents at a stage: min(stage, M).

    Without ``pad_latent_to_max`` a problem gets at most one group for each of its steps; where ``num_steps`` is None
    (inference) this limit does not apply.
    """
    groups = min(stage, spec.max_latent_stage)
    if not spec.pad_latent_to_max and num_steps is not None:
        groups = min(groups, num_steps)
    return groups


def join(steps: Iterable[Ids]) -> list[int]:
    """Concatenates the tokens of several steps."""
    return [token for step in steps for token in step]
