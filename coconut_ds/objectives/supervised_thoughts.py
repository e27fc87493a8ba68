"""``supervised_thoughts``: the state that becomes thought i learns to predict the nodes at hop i.

The model's own head reads the state, and must predict the node to which step i of the solution leads
(``thought_targets=path``), or all nodes at distance i from the root with equal probability (``frontier``):

    loss = cross entropy of what is written + thought_weight · cross entropy of the heads' predictions at the thoughts,

each a mean over its own targets of the global batch. ``data.hops`` says which token names a node. A thought beyond the
last step of its problem has no target. With pause tokens, the state before pause token i learns what that of thought i
would.

The measures are those of ``model.hop_targets``, for each hop: against the frontier, whatever the targets are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import Hop, ProblemArrays
from coconut_ds.methods.base import TokenizedProblem
from coconut_ds.model.collate import Batch, Collator
from coconut_ds.model.hop_targets import MEASURES, HopBatch, HopTargets, Reading, hop_sums, thought_positions
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.objectives.base import Examples, Objective
from coconut_ds.settings import Config

COUNT = "count"
"""Name of the measure that counts the states of a hop."""


@dataclass(frozen=True)
class HopExamples(Examples):
    """The sequences with the labels of the method and, as the second view, with one for each state that is read."""

    hops: HopTargets


class ThoughtsBatch(NamedTuple):
    """A micro batch with both kinds of targets."""

    written: Batch
    """The sequences, and what the method writes as targets."""
    thoughts: HopBatch
    """What the states that become thoughts must predict."""

    def to(self, device: torch.device) -> "ThoughtsBatch":
        """The same tensors on ``device``; the host does not wait for the copies."""
        return ThoughtsBatch(self.written.to(device), self.thoughts.to(device))


class SupervisedThoughts(Objective):
    """Cross entropy of what is written, and of what the states that become thoughts predict."""

    parts: ClassVar[tuple[str, ...]] = ("likelihood", "thoughts")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._settings = config.objective.supervised_thoughts
        self._num_hops = config.training.max_latent_stage
        names = (*MEASURES, COUNT)
        self.measures = tuple(f"hop_{hop}_{name}" for hop in range(1, self._num_hops + 1) for name in names)

    @property
    def thought_targets(self) -> Literal["path", "frontier"]:
        """See ``Objective``."""
        return self._settings.thought_targets

    def examples(
        self, sequences: Sequences, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]
    ) -> HopExamples:
        """The sequences of the method, and what their thoughts must predict."""
        written = sequences.for_training(epoch, stage, problems, indices)
        pause = sequences.markers.pause if sequences.method.pauses else None
        block = self.config.training.c_thought
        places = thought_positions(written, block, self._settings.thought_of_step, pause)
        readings = [
            self._readings(own, problems.hops(index) if own else ()) for own, index in zip(places, indices, strict=True)
        ]
        targets = HopTargets.of(written, readings)
        return HopExamples((written, targets.layouts), targets)

    def _readings(self, places: Sequence[tuple[int, int]], hops: Sequence[Hop]) -> list[Reading]:
        """The readings at the places (position, hop) that have a target."""
        found = []
        for position, number in places:
            if number <= len(hops):
                hop = hops[number - 1]
                target = hop.frontier if self.thought_targets == "frontier" else hop.path
                if target:
                    found.append(Reading(position, number, target, hop.frontier))
        return found

    def notes(self, problems: Sequence[TokenizedProblem]) -> list[str]:
        """A warning if no problem has a step."""
        if any(problem.steps for problem in problems):
            return []
        return ["warning: objective=supervised_thoughts: no training problem has steps, so thoughts have no targets"]

    def collate(self, collator: Collator, examples: Examples, views: Sequence[MicroBatch]) -> ThoughtsBatch:
        """Both kinds of targets of one micro batch."""
        assert isinstance(examples, HopExamples)
        written, thoughts = views
        # States before pause tokens are computed only if something asks for them.
        batch = collator.collate(written, also=thoughts.layouts)
        places = collator.collate(thoughts).targets
        return ThoughtsBatch(batch, examples.hops.collate(places, thoughts, collator.pinned, self._num_hops))

    def loss(self, loop: LatentLoop, batch: ThoughtsBatch) -> Tensor:
        """The two parts and the measures, [2 + 4·H]."""
        inputs, targets = batch.written
        states = loop.encode(inputs, all_states=False)
        likelihood = loop.cross_entropy(states, targets).unsqueeze(0)
        if not batch.thoughts.targets.max_targets:
            # No rank has any, as at stage 0.
            return torch.cat([likelihood, states.new_zeros(1 + len(self.measures), dtype=torch.float32)])
        sums = hop_sums(loop.head, loop.vocabulary, states, batch.thoughts)
        return torch.cat([likelihood, self._settings.thought_weight * sums[:1], sums[1:]])

    def logged(self, measures: Mapping[str, float]) -> dict[str, float]:
        """The means of each hop that had any targets."""
        found: dict[str, float] = {}
        for hop in range(1, self._num_hops + 1):
            if count := measures[f"hop_{hop}_{COUNT}"]:
                found |= {f"hop_{hop}_{name}": measures[f"hop_{hop}_{name}"] / count for name in MEASURES}
        return found
