"""Measures what the model's head reads about each hop in the states that become thoughts. No text is generated.

The prompt of each problem is encoded with its thoughts or pause tokens, and the head reads the state that becomes the
last thought of each step (``model.hop_targets``). In formats with one target token the state before the text, after k
steps of thought, has learned to predict a node at hop k + 1, so it is read too.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from coconut_ds.data.graph_answers import has_usable_graph
from coconut_ds.data.hops import HopReader
from coconut_ds.data.problem import Problem
from coconut_ds.data.token_arrays import Hop
from coconut_ds.data.tokens import encode_cue
from coconut_ds.distributed.ranks import ALONE, Ranks
from coconut_ds.evaluation.statistics import Mean, mean_of
from coconut_ds.generation.prompter import Prompter, Thoughts
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.collate import Collator, LatentInputs
from coconut_ds.model.hop_targets import (
    MEASURES,
    HopBatch,
    HopTargets,
    Reading,
    WhichThought,
    hop_values,
    thought_positions,
)
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.micro_batch import MicroBatch

Call = Callable[..., Any]
"""A latent loop or an engine that wraps one: ``call(task, *arguments)`` runs ``task`` with the loop."""


@dataclass(frozen=True)
class HopValue:
    """What the head reads in one state of one problem."""

    problem: int
    """Index of the problem, from 0."""
    hop: int
    """The hop, from 1."""
    loss: float
    """Cross entropy against the frontier, in nats."""
    in_frontier: float
    """1 if the likeliest token is in the frontier, else 0."""
    mass: float
    """Probability of the frontier's tokens together."""


@dataclass(frozen=True)
class HopScore:
    """Means over the problems that have a hop."""

    hop: int
    problems: int
    loss: float
    in_frontier: Mean
    mass: float

    @property
    def metrics(self) -> dict[str, float]:
        """The means by name, for the metrics of a run."""
        values = zip(MEASURES, (self.loss, self.in_frontier.estimate, self.mass), strict=True)
        return {f"hop_{self.hop}_{name}": value for name, value in values}

    def as_dict(self) -> dict[str, Any]:
        """The numbers as plain values for ``scores.json``."""
        share = self.in_frontier
        return {
            "problems": self.problems,
            "loss": self.loss,
            "in_frontier": share.estimate,
            "in_frontier_95": [share.low, share.high],
            "mass": self.mass,
        }


@dataclass(frozen=True)
class HopMeasure:
    """How hops are measured."""

    prompter: Prompter
    reader: HopReader
    block: int
    """Thoughts or pause tokens of a step (``c_thought``)."""
    micro: int
    """Number of problems of one rank in one pass."""
    context_length: int | None
    which: WhichThought = "last"
    """Which thoughts of a step are read."""
    graphs_only: bool = False
    """Whether problems without a usable graph are left out. Their hops are the tokens of their steps."""
    ranks: Ranks = ALONE

    @property
    def is_possible(self) -> bool:
        """Whether the states exist: the prompt has latents, and they are computed one after the other."""
        method = self.prompter.method
        return method.has_latents and not method.starts_thinking and self.prompter.at_once is None

    def scores(self, call: Call, problems: Sequence[Problem], thoughts: Thoughts) -> dict[int, HopScore]:
        """The means by hop; see ``values``."""
        return scores_by_hop(self.values(call, problems, thoughts))

    def values(self, call: Call, problems: Sequence[Problem], thoughts: Thoughts) -> list[HopValue]:
        """The measures of each hop of each problem, on every rank; empty if there are no states to read.

        All ranks call it, and make the same passes.

        Args:
            call: the latent loop, or the engine that wraps it, in evaluation mode.
            problems: the problems, whose prompts fit into the context.
            thoughts: number of thoughts or pause tokens.
        """
        if not self.is_possible:
            return []
        hops = [self._hops(problem) for problem in problems]
        read = [index for index, own in enumerate(hops) if own]
        if not read:
            return []
        targets = self._targets([problems[index].question for index in read], [hops[index] for index in read], thoughts)
        device = self.ranks.device
        collator = Collator.for_device(device, self.prompter.eos_ids[0], None, self.context_length)
        counts = targets.layouts.num_targets
        firsts = np.cumsum(counts) - counts
        found = []
        for view in self._plan(targets.layouts):
            made = collator.collate(view)
            inputs, _ = made.to(device)
            batch = targets.collate(made.targets, view, collator.pinned).to(device)
            values = iter(call(_values, inputs, batch).tolist())
            if view.share:
                for row in view.rows.tolist():
                    own = targets.hops[firsts[row] : firsts[row] + counts[row]].tolist()
                    found += [HopValue(read[row], hop, *next(values)) for hop in own]
        return [value for part in self.ranks.gather(found) for value in part]

    def _hops(self, problem: Problem) -> list[Hop]:
        return [] if self.graphs_only and not has_usable_graph(problem) else self.reader.hops(problem)

    def _targets(self, questions: Sequence[str], hops: Sequence[Sequence[Hop]], thoughts: Thoughts) -> HopTargets:
        """The states that are read in the prompts of these questions."""
        prompter = self.prompter
        prompts = Layouts.of([prompter.prompt(ids, thoughts) for ids in prompter.encode(questions)])
        pause = prompter.markers.pause if prompter.method.pauses else None
        places = thought_positions(prompts, self.block, self.which, pause)
        if prompter.format.one_token and thoughts.count % self.block == 0:
            # The text begins where the cue does, which asks for the answer.
            before = prompts.lengths - len(encode_cue(prompter.tokenizer, prompter.format))
            after = thoughts.count // self.block + 1
            places = [[*own, (position, after)] for own, position in zip(places, before.tolist(), strict=True)]
        readings = [
            [Reading(place, hop, {}, own[hop - 1].frontier) for place, hop in some if hop <= len(own)]
            for some, own in zip(places, hops, strict=True)
        ]
        return HopTargets.of(prompts, readings)

    def _plan(self, layouts: Layouts) -> list[MicroBatch]:
        """The micro batches of this rank. A rank that has no rows left repeats one, with share 0."""
        plan, order, size = [], np.arange(len(layouts)), self.micro
        for start in range(0, len(layouts) if layouts.num_targets.any() else 0, size * self.ranks.size):
            chunks = [order[start + rank * size :][:size] for rank in range(self.ranks.size)]
            most = max(int(layouts.num_targets[rows].sum()) for rows in chunks)
            own = chunks[self.ranks.rank]
            rows, share = (own, 1.0) if len(own) else (order[start : start + 1], 0.0)
            thoughts = int(layouts.num_thoughts.max())
            plan.append(MicroBatch(layouts.take(rows), [share] * len(rows), thoughts, most, rows, share))
        return plan


@torch.no_grad()
def _values(loop: LatentLoop, inputs: LatentInputs, batch: HopBatch) -> Tensor:
    return hop_values(loop.head, loop.vocabulary, loop.encode(inputs, all_states=False), batch)


def scores_by_hop(values: Sequence[HopValue]) -> dict[int, HopScore]:
    """The means of each hop, over problems. Several states of a problem count as their mean."""
    groups: dict[int, dict[int, list[HopValue]]] = defaultdict(lambda: defaultdict(list))
    for value in values:
        groups[value.hop][value.problem].append(value)
    return {hop: _score(hop, groups[hop]) for hop in sorted(groups)}


def _score(hop: int, problems: Mapping[int, Sequence[HopValue]]) -> HopScore:
    def means(name: str) -> list[float]:
        return [sum(getattr(value, name) for value in own) / len(own) for own in problems.values()]

    return HopScore(hop, len(problems), fmean(means("loss")), mean_of(means("in_frontier")), fmean(means("mass")))
