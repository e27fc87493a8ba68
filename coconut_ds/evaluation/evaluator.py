"""Problems to predictions with the thinking engine, each problem counted once on any number of ranks."""

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from tqdm import tqdm

from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import tokenize
from coconut_ds.distributed.ranks import ALONE, Ranks
from coconut_ds.evaluation.prediction import Evaluation, Prediction, judge
from coconut_ds.generation.batch import generate
from coconut_ds.generation.prompter import Prompter, Thoughts, Writing
from coconut_ds.generation.requests import Completion, Request, check_prompts
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.methods.layout import expected_tokens

Call = Callable[..., Any]
"""A latent loop or an engine around one: ``call(task, *arguments)``."""
CHECK_EVERY = 16
"""Operations of the engine between two looks at whether to stop."""


@dataclass(frozen=True)
class ThoughtBudget:
    """One number of thoughts."""

    thoughts: Thoughts
    stage: int
    """Tells which steps a model that thinks so much still writes."""


@dataclass(frozen=True)
class Work:
    """One prediction to make: a problem at one of the numbers of thoughts."""

    arm: int
    """Which of them."""
    problem: int


@dataclass(frozen=True)
class Evaluator:
    """How to evaluate: what stays the same from one set of problems to the next."""

    prompter: Prompter
    spec: CurriculumSpec
    writing: Writing
    slots: int
    """Problems at a time."""
    context_length: int | None
    ranks: Ranks = ALONE

    def run(
        self,
        call: Call,
        problems: Sequence[Problem],
        stage: int,
        thoughts: Thoughts,
        progress: bool = False,
        check: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Predictions for all problems, on every rank.

        Ranks make the same passes, as ZeRO-3 needs it.

        Args:
            call: latent loop or engine.
            problems: at least one.
            stage: tells which steps the model still writes.
            thoughts: of each problem.
            progress: show a bar on rank 0 (only on a terminal).
            check: called now and then, on all ranks at once; may raise.
        """
        work = [Work(0, index) for index in range(len(problems))]
        agree = _Agreement(self.ranks, check)
        arms, mine = [ThoughtBudget(thoughts, stage)], self.share_of(work)
        own = self.predict(call, problems, arms, mine, progress=progress, agree=agree)
        gathered = [prediction for part in self.ranks.gather([made for _, made in own]) for prediction in part]
        return self.evaluation(gathered, thoughts)

    def evaluation(self, predictions: Collection[Prediction], thoughts: Thoughts) -> Evaluation:
        """Predictions in the order of their problems."""
        in_order = sorted(predictions, key=lambda prediction: prediction.index)
        pauses = thoughts.count if self.prompter.method.pauses else 0
        return Evaluation(in_order, thoughts.count - pauses, pauses)

    def share_of(self, work: Sequence[Work]) -> list[Work]:
        """What this rank does of it. A problem stays on one rank, since its prompt is encoded once."""
        different = {one.problem: place for place, one in enumerate({one.problem: one for one in work}.values())}
        return [one for one in work if different[one.problem] % self.ranks.size == self.ranks.rank]

    def predict(
        self,
        call: Call,
        problems: Sequence[Problem],
        arms: Sequence[ThoughtBudget],
        work: Sequence[Work],
        on_prediction: Callable[[Work, Prediction], None] | None = None,
        progress: bool = False,
        agree: Callable[[int], int] = int,
    ) -> list[tuple[Work, Prediction]]:
        """Predictions for the given work, on this rank.

        Args:
            call: latent loop or engine.
            problems: all of them; all must fit the context.
            arms: numbers of thoughts.
            work: what to do.
            on_prediction: told of each as soon as it is there.
            progress: show a bar on rank 0 (only on a terminal).
            agree: see ``ThinkingEngine.run``.

        Raises:
            DataError: a prompt is longer than the context, or thoughts are asked of a method that has none.
        """
        questions = self.prompter.encode([problem.question for problem in problems])
        for arm in arms:
            check_prompts([self.prompter.prompt(ids, arm.thoughts) for ids in questions], self.context_length)
        requests = [
            self.prompter.request(questions[w.problem], arms[w.arm].thoughts, self._writing(w.problem)) for w in work
        ]
        expected = self._expected(problems, arms, work)
        made: list[tuple[Work, Prediction]] = []
        shown = progress and self.ranks.is_first
        bar = tqdm(total=len(work), desc="evaluating", unit="problem", leave=False, disable=None) if shown else None

        def done(ticket: int, completion: Completion) -> None:
            one = work[ticket]
            prediction = self._judge(problems[one.problem], one, completion, expected[one], arms[one.arm])
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
        """A completion for each request."""
        text = self.prompter.text
        made: list[Completion] = call(generate, requests, self.prompter.eos_ids, self.slots, text, on_done, agree)
        return made

    def _writing(self, problem: int) -> Writing:
        """Each problem has draws of its own."""
        return replace(self.writing, sampling=replace(self.writing.sampling, sample=problem))

    def _expected(
        self, problems: Sequence[Problem], arms: Sequence[ThoughtBudget], work: Sequence[Work]
    ) -> dict[Work, list[int]]:
        """What a model that has mastered the stage writes; nothing for a problem without answer."""
        prompter = self.prompter
        known = sorted({one.problem for one in work if problems[one.problem].has_answer})
        tokenized = tokenize(prompter.tokenizer, [problems[index] for index in known], prompter.format)
        gold = dict(zip(known, tokenized, strict=True))

        def tokens(one: Work) -> list[int]:
            problem, stage = gold[one.problem], arms[one.arm].stage
            return expected_tokens(prompter.method, problem, stage, self.spec, prompter.markers)

        return {one: tokens(one) if one.problem in gold else [] for one in work}

    def _judge(
        self, problem: Problem, one: Work, completion: Completion, expected: list[int], arm: ThoughtBudget
    ) -> Prediction:
        prompter, thoughts = self.prompter, arm.thoughts
        text = prompter.cut(completion.tokens, self.writing.stop)
        at_start = arm.stage == 0 and prompter.method.has_curriculum
        writes_all = thoughts.count == 0 and (prompter.method.writes_steps or at_start)
        found = judge(problem, text, prompter.text(expected), prompter.format, writes_all)
        return Prediction(
            index=one.problem,
            question=problem.question,
            text=text,
            extracted=found.extracted,
            answer=problem.answer if problem.has_answer else None,
            correct=found.correct,
            steps_match=found.steps_match,
            wholly_right=completion.tokens == expected if problem.has_answer else None,
            num_steps=len(problem.steps) if problem.has_answer else None,
            num_thoughts=completion.num_thoughts,
            num_pauses=thoughts.count if prompter.method.pauses else 0,
            num_tokens=len(completion.tokens),
            finish_reason=completion.finish_reason,
            latency_s=round(completion.seconds, 4),
            category=found.category,
        )


class _Agreement:
    """Lets ranks do the same operation, and look now and then whether to stop, all at the same one."""

    def __init__(self, ranks: Ranks, check: Callable[[], None] | None) -> None:
        self._ranks, self._check, self._count = ranks, check, 0

    def __call__(self, due: int) -> int:
        if self._check is not None and self._count % CHECK_EVERY == 0:
            self._check()
        self._count += 1
        return self._ranks.largest(due)
