"""One iteration of GRPO: completions are sampled and rewarded, then the engine makes one update or several with them.

An iteration is one update of the run's ``Position``: a checkpoint is written only between two iterations. The engine
computes without dropout, so that the replay of a completion gives its tokens the probabilities with which they were
sampled.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.errors import NonFiniteError
from coconut_ds.generation.prompter import Prompter, Writing
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.starting import card_of
from coconut_ds.model.thought_noise import NoiseSizes
from coconut_ds.objectives.grpo import Completions, Grpo, GrpoBatch
from coconut_ds.training.advantages import advantages, is_mixed, longest_completion, token_weights
from coconut_ds.training.batches import plan_update
from coconut_ds.training.engine import Engine
from coconut_ds.training.engine_file import zero_stage
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.problems import RunProblems
from coconut_ds.training.rollouts import Batch, Rollout, Sampler, sampling_of
from coconut_ds.training.update_result import UpdateResult


@dataclass(frozen=True)
class Iterations:
    """Makes the iterations of one experiment."""

    experiment: Experiment
    problems: RunProblems | None = None
    """The problems of the epoch; None: the run's own."""

    @property
    def objective(self) -> Grpo:
        """What completions are learned by."""
        objective = self.experiment.objective
        assert isinstance(objective, Grpo), "the objective does not sample"
        return objective

    def of_batches(
        self, epoch: int, stage: int, problems: ProblemArrays, batches: Sequence[Sequence[int]], done: int
    ) -> Iterator["Iteration"]:
        """The iterations with these batches of an epoch; ``done``: number of iterations of the run before them."""
        run = self.experiment
        texts = (self.problems or run.problems).texts(epoch)
        num_thoughts = run.method.num_latents(stage, None, run.spec)
        for number, indices in enumerate(batches, start=done):
            yield Iteration(self, Batch(number, indices, problems, texts, num_thoughts))

    @cached_property
    def sampler(self) -> Sampler:
        """Samples completions."""
        run = self.experiment
        assert run.reward is not None, "the objective grpo has a reward"
        config, settings = run.config, run.config.objective.grpo
        prompter = Prompter(run.backbone, run.method, config.data.text_format, config.parallel)
        longest = longest_completion(settings, config.data)
        return Sampler(
            prompter,
            Writing(longest, sampling=sampling_of(settings.temperature)),
            self.objective.exploration,
            run.reward,
            settings.num_generations,
            config.run.seed,
            config.training.batch_size_eval,
            run.ranks,
            same_passes=zero_stage(config) == 3,
        )


class Iteration:
    """One iteration. ``num_tokens`` is known once it has run."""

    def __init__(self, iterations: Iterations, batch: Batch) -> None:
        self._iterations, self._batch = iterations, batch
        self._run = iterations.experiment
        self._settings = self._run.config.objective.grpo
        self.indices = sorted(batch.indices)
        """Indices of all problems (of every rank), in the epoch's training set."""
        self.num_tokens = 0
        """Number of tokens of all completions and their prompts, thoughts included."""

    def run(self, engine: Engine, lr: float, asked_to_stop: Callable[[], bool]) -> UpdateResult:
        """Samples completions, and makes the updates. All ranks call it.

        Raises:
            RewardError: a reward could not be computed; the weights are unchanged.
            NonFiniteError: loss or gradient norm of an update is not finite; the updates before it were made.
        """
        engine.train(False)
        sizes = engine(prepare_noise, self._batch.iteration % self._settings.svp_renew == 0)
        groups = self._iterations.sampler.sample(engine, self._batch)
        rollouts = [each for group in groups for each in group]
        self.num_tokens = sum(len(each.prompt) + len(each.tokens) for each in rollouts)
        rewards = np.array([[each.reward for each in group] for group in groups])
        batches = self._replayed(engine, self._mini_batches(groups, rewards, sizes))
        results = _updates(engine, batches * self._settings.num_iterations, lr, asked_to_stop)
        measures = {
            "reward": float(rewards.mean()),
            "mixed_groups": float(is_mixed(rewards).mean()),
            "completion_length": fmean(len(each.tokens) for each in rollouts),
            "completions_ended": fmean(each.has_ended for each in rollouts),
        }
        return self._summary(results, measures, asked_to_stop)

    def _mini_batches(self, groups: Sequence[Sequence[Rollout]], rewards: Any, sizes: NoiseSizes) -> list[Completions]:
        """The completions of groups with different rewards, divided into mini-batches; those of other groups, whose
        advantages are 0, are left out of the updates but count in the means.

        Args:
            groups: the completions of each problem.
            rewards: [problems, completions of each].
            sizes: of the noise of a completion.
        """
        settings, config = self._settings, self._run.config
        gains = advantages(rewards, settings.scale_rewards).flatten()
        rollouts = [each for group in groups for each in group]
        kept = np.flatnonzero(np.repeat(is_mixed(rewards), rewards.shape[1])).tolist()
        number = settings.steps_per_generation
        if number > 1:
            random.Random(f"mini-batches/{config.run.seed}/{self._batch.iteration}").shuffle(kept)
        count, tokens = len(rollouts) / number, sum(len(each.tokens) for each in rollouts) / number
        longest = longest_completion(settings, config.data)
        found = []
        for part in range(number):
            # Parts of nearly equal size; there may be fewer completions than parts.
            rows = kept[part * len(kept) // number : (part + 1) * len(kept) // number]
            if rows:
                some = [rollouts[row] for row in rows]
                lengths = np.array([len(each.tokens) for each in some], np.float64)
                weights = token_weights(lengths, count, tokens, longest, settings.loss_type)
                found.append(self._completions(some, gains[rows], weights, sizes))
        return found

    def _completions(self, rollouts: Sequence[Rollout], gains: Any, weights: Any, sizes: NoiseSizes) -> Completions:
        settings = self._settings
        explores = self._iterations.objective.exploration.kind != "none"
        return Completions(
            (Layouts.of([each.prompt.continued(each.tokens) for each in rollouts]),),
            gains,
            weights,
            tuple(each.key for each in rollouts) if explores else (),
            sizes,
            self._run.backbone.markers.all(),
            is_only_update=settings.num_iterations * settings.steps_per_generation == 1,
        )

    def _replayed(self, engine: Engine, parts: Sequence[Completions]) -> list[list[GrpoBatch]]:
        """This rank's micro batches of each mini-batch, with the log probabilities that the loss compares with."""
        objective = self._iterations.objective
        found = [self._micro_batches(engine, part) for part in parts]
        if parts and not parts[0].is_only_update:
            found = [
                [replace(each, old=engine(objective.log_probabilities, each)) for each in batches] for batches in found
            ]
        if parts and objective.keeps_start:
            with engine.at_start():
                found = [
                    [replace(each, reference=engine(objective.log_probabilities, each)) for each in batches]
                    for batches in found
                ]
        return found

    def _micro_batches(self, engine: Engine, completions: Completions) -> list[GrpoBatch]:
        run = self._run
        plan = plan_update(completions.views[0], run.geometry, run.ranks.rank, "token")
        collated = [self._iterations.objective.collate(run.collator, completions, [view]) for view in plan]
        return [each.to(engine.device) for each in collated]

    def _summary(
        self, results: Sequence[UpdateResult], measures: dict[str, float], asked_to_stop: Callable[[], bool]
    ) -> UpdateResult:
        """The means over the updates of the iteration; zeros if there was none, because no group was mixed."""
        objective = self._iterations.objective
        if not results:
            stops = self._run.ranks.any(asked_to_stop())
            return UpdateResult(dict.fromkeys(objective.parts, 0.0), 0.0, stops, measures)
        losses = {name: fmean(each.losses[name] for each in results) for name in objective.parts}
        own = [name for name in objective.measures if name != "kl" or objective.keeps_start]
        measures |= {name: fmean(each.measures[name] for each in results) for name in own}
        norm, stops = fmean(each.grad_norm for each in results), any(each.stops for each in results)
        return UpdateResult(losses, norm, stops, measures)


def _updates(
    engine: Engine, batches: Sequence[Sequence[GrpoBatch]], lr: float, asked_to_stop: Callable[[], bool]
) -> list[UpdateResult]:
    """Makes an optimizer update with each list of micro batches."""
    results: list[UpdateResult] = []
    for each in batches:
        try:
            results.append(engine.update(each, lr, asked_to_stop))
        except NonFiniteError as error:
            made = len(results)
            where = f"optimizer update {made + 1} of the {len(batches)} of this iteration: " if len(batches) > 1 else ""
            raise NonFiniteError(f"{where}{error}", updates_made=made) from error
    return results


def prepare_noise(loop: LatentLoop, is_due: bool) -> NoiseSizes:
    """The sizes of the noise of a completion. Computes the singular vectors of the value projections, if they are
    needed, and due or not known."""
    directions = loop.value_directions
    if directions is not None and (is_due or not directions.weights):
        directions.renew(loop)
    return loop.noise_sizes


def start_notes(experiment: Experiment) -> list[str]:
    """What is unusual about the model that a run with rollouts starts from, as lines for the log; often nothing."""
    config, run = experiment.config, experiment
    if not run.objective.samples:
        return []
    if config.run.load_model_path is None:
        weights = "random weights" if config.model.model_init == "scratch" else "a model that was not trained to think"
        return [
            f"warning: objective={config.objective.kind} starts from {weights}, which hardly ever earns a reward, and "
            "learns only where some completions of a problem do; set load_model_path=CHECKPOINT"
        ]
    card, number = card_of(config), run.method.num_latents(run.curriculum.last_stage, None, run.spec)
    if card is None or card.num_latents == number:
        return []
    return [
        f"warning: {config.run.load_model_path} was trained with {card.num_latents} thoughts or pauses, and this run "
        f"has {number}; training.c_thought and training.max_latent_stage set the number"
    ]
