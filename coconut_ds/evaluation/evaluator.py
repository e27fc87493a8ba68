"""Generates a prediction for each problem with the thinking engine.

With several ranks the problems are divided among them, so that each problem is predicted exactly once.
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tqdm import tqdm

from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import tokenize
from coconut_ds.distributed.ranks import ALONE, Ranks
from coconut_ds.evaluation.prediction import Evaluation, Prediction, judge, with_category, writes_all_steps
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Prompter, Thoughts, Writing, question_key
from coconut_ds.generation.requests import Completion, Request, Sampling, check_prompts
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.methods.layout import expected_tokens
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring

Call = Callable[..., Any]
"""A latent loop or an engine that wraps one: ``call(task, *arguments)`` runs ``task`` with the loop."""
CHECK_EVERY = 16
"""Number of engine operations between two calls of the function that may interrupt an evaluation."""


@dataclass(frozen=True)
class ThoughtBudget:
    """A number of thoughts to evaluate with, and the curriculum stage that it corresponds to."""

    thoughts: Thoughts
    stage: int
    """Curriculum stage; it determines which steps the model is still expected to write as text."""


@dataclass(frozen=True)
class Work:
    """One prediction to make: one sample of one problem with one thought budget."""

    budget: int
    """Index into the list of thought budgets."""
    problem: int
    """Index into the list of problems."""
    sample: int = 0
    """Number of the sample, from 0."""


@dataclass(frozen=True)
class Evaluator:
    """The evaluation settings that do not change from one set of problems to the next."""

    prompter: Prompter
    spec: CurriculumSpec
    writing: Writing
    slots: int
    """Number of problems that the engine processes at the same time."""
    context_length: int | None
    ranks: Ranks = ALONE
    scoring: Scoring = EXACT
    """The convention that decides which answers are right."""
    same_passes: bool = False
    """Whether the ranks make the same forward passes, because each holds only a part of the weights (ZeRO-3)."""
    samples: int | None = None
    """Number of samples of each problem. They are drawn by (seed, question, sample). None: there is one answer, whose
    tokens are drawn by (seed, index of the problem) if they are sampled."""

    def run(
        self,
        call: Call,
        problems: Sequence[Problem],
        stage: int,
        thoughts: Thoughts,
        progress: bool = False,
        check: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Predicts all problems and returns all predictions, without categories, on every rank.

        Args:
            call: the latent loop, or the engine that wraps it.
            problems: at least one.
            stage: curriculum stage; determines which steps the model is still expected to write.
            thoughts: number of thoughts for each problem.
            progress: show a progress bar on rank 0 (only on a terminal).
            check: called every ``CHECK_EVERY`` engine operations, and equally often on all ranks; may raise, on all of
                them, to interrupt the evaluation.
        """
        work = [Work(0, index) for index in range(len(problems))]
        agree = (_SamePasses if self.same_passes else _OwnPasses)(self.ranks, check or (lambda: None))
        budgets, mine = [ThoughtBudget(thoughts, stage)], self.share_of(work)
        own = self.predict(call, problems, budgets, mine, progress=progress, agree=agree)
        gathered = [prediction for part in self.ranks.gather([made for _, made in own]) for prediction in part]
        return self.evaluation(gathered, thoughts)

    def evaluation(self, predictions: Collection[Prediction], thoughts: Thoughts) -> Evaluation:
        """Sorts the predictions by problem and sample and wraps them in an ``Evaluation``."""
        in_order = sorted(predictions, key=lambda prediction: (prediction.index, prediction.sample or 0))
        pauses = thoughts.count if self.prompter.method.pauses else 0
        return Evaluation(in_order, thoughts.count - pauses, pauses)

    def with_categories(
        self, predictions: Sequence[Prediction], problems: Sequence[Problem], budget: ThoughtBudget
    ) -> list[Prediction]:
        """The predictions made with this budget, with the categories of answers to graph problems.

        Separate from ``predict``, so that predictions are stored before they are analysed.
        """
        writes_all = writes_all_steps(self.prompter.method, budget.stage, budget.thoughts.count)
        return [with_category(one, problems[one.index], self.prompter.format, writes_all) for one in predictions]

    def share_of(self, work: Sequence[Work]) -> list[Work]:
        """The part of the work that this rank does.

        All budgets and samples of a problem stay on the same rank, so that its question is encoded only once.
        """
        different = {one.problem: place for place, one in enumerate({one.problem: one for one in work}.values())}
        return [one for one in work if different[one.problem] % self.ranks.size == self.ranks.rank]

    def predict(
        self,
        call: Call,
        problems: Sequence[Problem],
        budgets: Sequence[ThoughtBudget],
        work: Sequence[Work],
        on_prediction: Callable[[Work, Prediction], None] | None = None,
        progress: bool = False,
        agree: Callable[[int], int] = int,
    ) -> list[tuple[Work, Prediction]]:
        """Makes the requested predictions on this rank, without categories (see ``with_categories``).

        Args:
            call: the latent loop, or the engine that wraps it.
            problems: all problems; all of them must fit into the context.
            budgets: the thought budgets that ``work`` refers to.
            work: the predictions to make.
            on_prediction: called with each prediction as soon as it is made.
            progress: show a progress bar on rank 0 (only on a terminal).
            agree: see ``ThinkingEngine.run``.

        Raises:
            DataError: a prompt is longer than the context, or thoughts are requested from a method that has none.
        """
        requests = self._requests(problems, budgets, work)
        expected = self._expected(problems, budgets, work)
        made: list[tuple[Work, Prediction]] = []
        shown = progress and self.ranks.is_first
        bar = tqdm(total=len(work), desc="evaluating", unit="problem", leave=False, disable=None) if shown else None

        def done(ticket: int, completion: Completion) -> None:
            one = work[ticket]
            goal = expected[one.budget, one.problem]
            prediction = self._judge(problems[one.problem], one, completion, goal, budgets[one.budget])
            made.append((one, prediction))
            if on_prediction is not None:
                on_prediction(one, prediction)
            if bar is not None:
                bar.update()

        with bar if bar is not None else nullcontext():
            self.generate(call, requests, done, agree)
        return made

    def generate(
        self,
        call: Call,
        requests: Sequence[Request],
        on_done: Callable[[int, Completion], None] | None = None,
        agree: Callable[[int], int] = int,
    ) -> list[Completion]:
        """Generates one completion for each request."""
        text = self.prompter.text
        made: list[Completion] = call(generate, requests, self.prompter.eos_ids, self.slots, text, on_done, agree)
        return made

    def _requests(
        self, problems: Sequence[Problem], budgets: Sequence[ThoughtBudget], work: Sequence[Work]
    ) -> list[Request]:
        """The engine's request for each item of the work; first checks that all prompts fit into the context."""
        questions = self.prompter.encode([problem.question for problem in problems])
        for budget in budgets:
            check_prompts([self.prompter.prompt(ids, budget.thoughts) for ids in questions], self.context_length)

        @cache
        def first(budget: int, problem: int) -> Request:
            question = questions[problem]
            request = self.prompter.request(question, budgets[budget].thoughts, self.writing)
            return replace(request, sampling=self._draws(problem, question))

        return [first(one.budget, one.problem).numbered(one.sample) for one in work]

    def _draws(self, problem: int, question: Sequence[int]) -> Sampling:
        """How tokens are chosen for a problem, given its index and the token ids of its question."""
        sampling = self.writing.sampling
        if self.samples is None:
            return replace(sampling, sample=problem)
        return sampling.keyed(f"{sampling.seed}/{question_key(question)}")

    def _expected(
        self, problems: Sequence[Problem], budgets: Sequence[ThoughtBudget], work: Sequence[Work]
    ) -> dict[tuple[int, int], list[int]]:
        """The tokens that a model that has mastered the stage writes, by budget and problem; empty for problems without
        an answer."""
        prompter = self.prompter
        known = sorted({one.problem for one in work if problems[one.problem].has_answer})
        tokenized = tokenize(prompter.tokenizer, [problems[index] for index in known], prompter.format)
        gold = dict(zip(known, tokenized, strict=True))

        def tokens(budget: int, problem: int) -> list[int]:
            stage = budgets[budget].stage
            return expected_tokens(prompter.method, gold[problem], stage, self.spec, prompter.markers)

        pairs = {(one.budget, one.problem) for one in work}
        return {pair: tokens(*pair) if pair[1] in gold else [] for pair in pairs}

    def _judge(
        self, problem: Problem, one: Work, completion: Completion, expected: list[int], budget: ThoughtBudget
    ) -> Prediction:
        prompter, thoughts = self.prompter, budget.thoughts
        text = prompter.cut(completion.tokens, self.writing.stop)
        found = judge(problem, text, prompter.text(expected), prompter.format, self.scoring)
        is_judged = found.correct is not None
        return Prediction(
            index=one.problem,
            question=problem.question,
            text=text,
            extracted=found.extracted,
            answer=problem.answer if is_judged else None,
            correct=found.correct,
            steps_match=found.steps_match,
            wholly_right=prompter.as_trained(completion.tokens) == expected if is_judged else None,
            num_steps=len(problem.steps) if is_judged else None,
            num_thoughts=completion.num_thoughts,
            num_pauses=thoughts.count if prompter.method.pauses else 0,
            num_tokens=len(completion.tokens),
            finish_reason=completion.finish_reason,
            latency_s=round(completion.seconds, 4),
            category=None,
            sample=None if self.samples is None else one.sample,
        )


class _SamePasses:
    """Makes all ranks do the same engine operation, and calls ``check`` on all of them at the same operation."""

    def __init__(self, ranks: Ranks, check: Callable[[], None]) -> None:
        self._ranks, self._check, self._count = ranks, check, 0

    def __call__(self, due: int) -> int:
        self._ranks.progress.step()
        if self._count % CHECK_EVERY == 0:
            self._check()
        self._count += 1
        return self._ranks.largest(due)


class _OwnPasses:
    """Lets each rank do its own engine operations; every ``CHECK_EVERY`` of them, the ranks meet to call ``check``.

    A rank that has ended takes part in these meetings until all have ended, so all ranks call ``check`` equally often.
    """

    def __init__(self, ranks: Ranks, check: Callable[[], None]) -> None:
        self._ranks, self._check, self._count = ranks, check, 0

    def __call__(self, due: int) -> int:
        self._ranks.progress.step()
        if due:
            if self._count % CHECK_EVERY == 0:
                self._meet(works=True)
            self._count += 1
            return due
        while self._meet(works=False):
            pass
        return due

    def _meet(self, works: bool) -> bool:
        """Calls ``check``. Returns whether any rank still works."""
        self._check()
        return self._ranks.any(works)
