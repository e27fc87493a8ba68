"""Samples completions of the problems of a batch with the thinking engine, and rewards them.

The problems are divided among the ranks; all ranks receive all completions. The tokens and the noise of a completion
are a function of the weights and of (seed, iteration, problem, sample), so they depend neither on ranks nor, up to
rounding, on other completions, and a run that continues makes those that it would have made.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from coconut_ds.data.problem import Problem
from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import RewardError
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Prompter, Thoughts, Writing
from coconut_ds.generation.requests import Completion, Request, Sampling
from coconut_ds.methods.layout import Layout
from coconut_ds.model.thought_noise import NoiseSettings, SampleNoise
from coconut_ds.training.rewards import Reward

Call = Callable[..., Any]
"""``call(task, *arguments)`` runs ``task`` with the latent loop; a loop or an engine."""


class Rollout(NamedTuple):
    """One completion of a problem."""

    key: str
    """Key of its noise."""
    prompt: Layout
    tokens: list[int]
    has_ended: bool
    """Whether the model wrote an end of sequence."""
    reward: float


class Batch(NamedTuple):
    """The problems of an iteration."""

    iteration: int
    """Number of iterations that the run has made before."""
    indices: Sequence[int]
    """Indices of the problems in the epoch's training set."""
    tokens: ProblemArrays
    """The epoch's training set."""
    texts: Sequence[Problem]
    """The same problems as text."""
    num_thoughts: int
    """Number of thoughts, or of pause tokens."""


@dataclass(frozen=True)
class Sampler:
    """Samples and rewards completions. All ranks make the same calls."""

    prompter: Prompter
    writing: Writing
    exploration: NoiseSettings
    reward: Reward
    num_generations: int
    """Completions of each problem."""
    seed: int
    """``run.seed``."""
    slots: int
    """Number of completions that one rank makes at the same time."""
    ranks: Ranks
    same_passes: bool
    """Whether the ranks make the same forward passes, because each holds only a part of the weights (ZeRO-3)."""

    def sample(self, call: Call, batch: Batch) -> list[list[Rollout]]:
        """The completions of each problem of the batch.

        Raises:
            RewardError: a reward could not be computed; raised on all ranks.
        """
        mine = range(self.ranks.rank, len(batch.indices), self.ranks.size)
        requests = [request for place in mine for request in self.requests(batch, batch.indices[place])]
        made = call(generate, requests, self.prompter.eos_ids, self.slots, None, None, self._agree)
        found: list[list[Rollout]] = []
        failed: str | None = None
        try:
            for number, place in enumerate(mine):
                part = slice(number * self.num_generations, (number + 1) * self.num_generations)
                problem = batch.texts[batch.indices[place]]
                found.append([self._rewarded(*each, problem) for each in zip(requests[part], made[part], strict=True)])
        except RewardError as error:
            failed = str(error)
        gathered = self.ranks.gather((found, failed))
        errors = [text for _, text in gathered if text is not None]
        if errors:
            raise RewardError(errors[0])
        return [gathered[place % self.ranks.size][0][place // self.ranks.size] for place in range(len(batch.indices))]

    def _agree(self, due: int) -> int:
        """See ``ThinkingEngine.run``."""
        self.ranks.progress.step()
        return self.ranks.largest(due) if self.same_passes else due

    def requests(self, batch: Batch, index: int) -> list[Request]:
        """The requests for the completions of a problem."""
        text = f"{self.seed}/{batch.iteration}/{index}"
        writing = replace(self.writing, sampling=self.writing.sampling.keyed(text))
        request = self.prompter.request(batch.tokens[index].question, Thoughts(batch.num_thoughts), writing)
        noisy = replace(request, noise=SampleNoise(self.exploration, text))
        return list(noisy.samples(self.num_generations))

    def _rewarded(self, request: Request, completion: Completion, problem: Problem) -> Rollout:
        self.ranks.progress.step()
        assert request.noise is not None
        tokens, has_ended = completion.tokens, completion.finish_reason == "eos"
        reward = self.reward(problem, self.prompter.text(tokens))
        return Rollout(request.noise.key, request.prompt, tokens, has_ended, reward)


def sampling_of(temperature: float) -> Sampling:
    """How tokens are sampled; the seed is set for each problem."""
    return Sampling(temperature)
