"""A model, SIM-CoT's objective and a batch of problems, whose loss is computed by the fast and by the slow way."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from making_config import composed
from slow_sim_cot import (
    Targets,
    coconut_groups,
    codi_groups,
    codi_weights,
    on_coconut,
    on_codi,
    slow_steps,
)
from slow_thoughts import slow_likelihood
from tiny_models import make_model
from torch import Tensor

from coconut_ds.data.sequences import Sequences
from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import MarkerIds, TokenizedProblem, join
from coconut_ds.methods.layout import Layout
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.collate import Collator
from coconut_ds.model.feed import Projection
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.lora import add_adapters
from coconut_ds.objectives import objective_of
from coconut_ds.objectives.sim_cot import DECODER, SimCot, SimCotOnCodi, StepExamples
from coconut_ds.settings import Config
from coconut_ds.training.batches import BatchGeometry, plan_update

EOS = 0
MARKERS = MarkerIds(37, 38, 39)
NUM_PROBLEMS = 7
ON_CODI = ("objective=sim_cot_codi", "method=coconut_no_curriculum", "c_thought=1")


def make_problems() -> ProblemArrays:
    """Problems with 0 to 4 steps, in words of different lengths."""
    rng = random.Random(3)

    def words(low: int, high: int) -> list[int]:
        return [rng.randrange(1, 37) for _ in range(rng.randint(low, high))]

    problems = [
        TokenizedProblem(words(1, 6), tuple(words(1, 5) for _ in range(number % 5)), [*words(1, 2), EOS])
        for number in range(NUM_PROBLEMS)
    ]
    return ProblemArrays([arrays_of(problems)], ())


def num_removed(problem: TokenizedProblem, layout: Layout) -> int:
    """The number of steps that a sequence does not write."""
    counts = range(len(problem.steps) + 1)
    return next(n for n in counts if [*join(problem.steps[n:]), *problem.answer] == layout.targets)


@dataclass(frozen=True)
class Setting:
    """A model and an objective, and a global batch of all problems."""

    config: Config
    objective: SimCot
    loop: LatentLoop
    examples: StepExamples

    @classmethod
    def of(cls, family: str, stage: int, *overrides: str) -> "Setting":
        config = composed("objective=sim_cot", "data=synthetic_tiny", "c_thought=2", "max_latent_stage=3", *overrides)
        objective, model = objective_of(config), make_model(family)
        if config.model.lora.rank:
            add_adapters(model, MARKERS, config.model.lora)
        torch.manual_seed(5)
        feed = Projection(32, 24) if config.objective.feed == "projection" else None
        auxiliary = objective.auxiliary(Backbone(model, None, MARKERS))  # type: ignore[arg-type]
        with torch.no_grad():
            # Adapters start at zero, and the decoder as a copy of the model.
            for parameter in (*auxiliary[DECODER].parameters(), *model.parameters()):
                parameter += 0.1 * torch.randn_like(parameter)
        loop = LatentLoop(model, config.training.activation_checkpointing, auxiliary=auxiliary, feed=feed)
        method = METHODS[config.method.kind]
        sequences = Sequences(config.training, 0, method, config.training.curriculum_spec, MARKERS)
        examples = objective.examples(sequences, 0, stage, make_problems(), range(NUM_PROBLEMS))
        assert isinstance(objective, SimCot)
        return cls(config, objective, loop, examples)

    @property
    def on_codi(self) -> bool:
        return isinstance(self.objective, SimCotOnCodi)

    def fast(self, micro: int = NUM_PROBLEMS, world: int = 1) -> Tensor:
        """The parts of the loss, over all micro batches of all ranks; on CODI only that of the steps."""
        steps = -(-NUM_PROBLEMS // (micro * world))
        geometry = BatchGeometry(micro * world * steps, micro, steps, world)
        reduction, views = self.config.training.loss_reduction, self.examples.views
        total, chunks = torch.zeros(len(self.objective.parts)), []
        for rank in range(world):
            plans = [plan_update(view, geometry, rank, reduction, views[0]) for view in views]
            tensors = [self.objective.collate(Collator(EOS), self.examples, one) for one in zip(*plans, strict=True)]
            chunks.append([each.steps.targets.max_targets for each in tensors])
            total = sum((self.loop(self.objective.loss, each) for each in tensors), start=total)
        # Under ZeRO-3 all ranks must compute the same number of chunks of logits in each micro step.
        assert all(own == chunks[0] for own in chunks)
        return total[-1:] if self.on_codi else total

    def targets(self, problem: TokenizedProblem, layout: Layout) -> list[list[int]]:
        """What the decoder must write for each group of a problem."""
        if self.on_codi:
            return codi_groups(problem.steps[:-1], layout.num_thoughts + 1, EOS)
        removed, count = problem.steps[: num_removed(problem, layout)], layout.num_thoughts // 2
        if self.config.objective.sim_cot.missing_step == "nothing":
            return codi_groups(removed, count, EOS)[:count]
        return coconut_groups(removed, problem.answer[:-1], count, count, [], EOS)

    def slow(self, rows: Sequence[int] = range(NUM_PROBLEMS)) -> Tensor:
        """The same for some of the problems, one row at a time, without a cache."""
        problems, settings, model = make_problems(), self.config.objective.sim_cot, self.loop.model
        layouts = [self.examples.views[0][row] for row in rows]
        targets: Targets = [self.targets(problems[row], layout) for row, layout in zip(rows, layouts, strict=True)]
        most = max(map(len, targets))
        padded = [[*own, *[[]] * (most - len(own))] for own in targets]
        weights = {
            "row": lambda: [[1 / sum(map(len, targets))] * most] * len(rows),
            "thought": lambda: codi_weights(padded),
            "token": lambda: [[1 / sum(len(one) for own in targets for one in own)] * most] * len(rows),
        }[settings.step_reduction]()
        own_weights = [row[: len(own)] for row, own in zip(weights, targets, strict=True)]
        decoder: Any = self.loop.auxiliary[DECODER]
        into = (lambda vectors: vectors) if decoder.projection is None else decoder.projection
        if self.on_codi:
            vectors = on_codi(model, layouts, self.loop.fed)
            return slow_steps(model, decoder.model, vectors, targets, own_weights, 0, into).unsqueeze(0)
        groups = zip(on_coconut(model, layouts, 2), targets, strict=True)
        # Splitting no thoughts gives one group without any.
        vectors = [thoughts[: len(own)] for thoughts, own in groups]
        step = slow_steps(model, decoder.model, vectors, targets, own_weights, 1, into)
        return torch.stack([slow_likelihood(model, layouts), settings.step_factor * step])

    def gradients(self, parts: Tensor) -> dict[str, Tensor | None]:
        """The gradient of each trained parameter."""
        self.loop.zero_grad()
        parts.sum().backward()
        return {name: p.grad for name, p in self.loop.named_parameters() if p.requires_grad}

    def check_equal(self, slow: Tensor, *fast: Tensor) -> None:
        """In value, and in all gradients."""
        expected = self.gradients(slow)
        size = max(float(each.abs().max()) for each in expected.values() if each is not None)
        for parts in fast:
            assert parts.tolist() == pytest.approx(slow.tolist(), rel=1e-5)
            for name, found in self.gradients(parts).items():
                wanted = expected[name]
                # On CODI, the steps alone do not reach the model's head, for example.
                assert (found is None) <= (wanted is None), name
                if wanted is not None:
                    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=3e-5 * size, msg=name)
