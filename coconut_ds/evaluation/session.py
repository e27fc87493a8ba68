"""Evaluates a checkpoint: generates an answer to each problem and writes predictions, scores and a figure.

The method and the number of thoughts come from the checkpoint, never from the gold steps of the problems. An
interrupted evaluation continues when the same command is run again, because finished predictions are stored next to the
results (see ``evaluation.partial``).
"""

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import Source, open_source
from coconut_ds.distributed.interrupts import Interrupted, Interrupts
from coconut_ds.distributed.ranks import Ranks, alone
from coconut_ds.errors import DataError
from coconut_ds.evaluation.evaluator import Evaluator, ThoughtBudget, Work
from coconut_ds.evaluation.partial import Key, PartialPredictions
from coconut_ds.evaluation.picture import draw_sweep
from coconut_ds.evaluation.prediction import Evaluation, Prediction
from coconut_ds.evaluation.scores import BASELINES, score_table, scores_of, sweep_point
from coconut_ds.files import shell_word, write_whole
from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.generation.prompter import Writing
from coconut_ds.generation.requests import Sampling
from coconut_ds.methods import METHODS
from coconut_ds.model.card import CARD, ModelCard
from coconut_ds.model.digest import digest_state, digest_tokenizer
from coconut_ds.model.precision import cast, describe
from coconut_ds.model.starting import card_of, starting_backbone
from coconut_ds.reasoner import Answer, Reasoner, load_reasoner
from coconut_ds.runs.code import code_identity
from coconut_ds.settings import Config, DataConfig, EvalConfig


@dataclass(frozen=True)
class EvaluationJob:
    """One evaluation to run: the model, the problems, and all options."""

    reasoner: Reasoner
    problems: list[Problem]
    split: str
    """Name of the split that the problems are from: "test" or "validation"."""
    budgets: list[ThoughtBudget]
    """Thought budgets to evaluate; several make a sweep."""
    names: list[str]
    """Subfolder of the results for each budget; "" for none."""
    writing: Writing
    slots: int
    """Number of problems that the engine processes at the same time."""
    out: Path
    """Folder of the results."""
    ranks: Ranks

    def evaluator(self) -> Evaluator:
        """The evaluator that answers the problems."""
        reasoner = self.reasoner
        return Evaluator(
            reasoner.prompter, reasoner.card.spec, self.writing, self.slots, reasoner.context_length, self.ranks
        )

    def identity(self) -> str:
        """Hash of everything that a prediction depends on."""
        backbone = self.reasoner.backbone
        parts = {
            "model": digest_state(backbone.model.state_dict().items()),
            "tokenizer": digest_tokenizer(backbone.tokenizer),
            "card": [self.reasoner.card.method, self.reasoner.card.format],
            "budgets": self.budgets,
            "writing": self.writing,
            "problems": [problem.as_dict() for problem in self.problems],
            "code": code_identity(),
        }
        return hashlib.sha256(json.dumps(parts, default=repr, sort_keys=True).encode()).hexdigest()[:12]


def evaluate(config: EvalConfig, ranks: Ranks | None = None) -> list[Evaluation]:
    """Loads the checkpoint, evaluates it, and writes and prints the scores.

    Returns one evaluation for each number of thoughts.
    """
    ranks = alone() if ranks is None else ranks
    source = open_source(config.data, config.seed)
    problems, split = _problems(config.data, source)
    reasoner = _reasoner(config, ranks)
    budgets, names = _budgets(config, reasoner)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed)
    writing = Writing(config.data.max_new_tokens, sampling=sampling)
    suffix = "" if config.is_sweep or config.n_thoughts is None else f"-{config.n_thoughts}_thoughts"
    suffix += "" if config.is_sweep or config.force_text_after is None else f"-text_after_{config.force_text_after}"
    out = Path(config.out or Path("outputs/eval") / reasoner.name / f"{config.data_name}{suffix}")
    size = config.batch_size
    return run_job(EvaluationJob(reasoner, problems, split, budgets, names, writing, size, out, ranks))


def evaluate_config(config: Config, ranks: Ranks) -> Evaluation:
    """Runs ``run.only_eval``: evaluates ``run.load_model_path`` on the test problems, else the validation problems."""
    source = open_source(config.data, config.run.seed, config.run.debug)
    problems, split = _problems(config.data, source)
    backbone = starting_backbone(config, source)
    card = card_of(config)
    if card is None:
        training, method = config.training, METHODS[config.method.kind]
        # A state dict does not record its stage; we assume the last one, with which training ends.
        stage = training.max_latent_stage + 1 if method.has_curriculum else 0
        card = ModelCard.of(
            method, stage, training.curriculum_spec, config.data.format, {}, iterations=config.method.jacobi_iterations
        )
    dtype = torch.bfloat16 if config.run.bf16 else torch.float32
    cast(backbone.model, dtype, ranks.device)
    path = config.run.load_model_path
    name = "-".join(Path(path or "model").resolve().parts[-2:])
    reasoner = Reasoner(backbone, card, name, describe(dtype, backbone.model)).to(ranks.device)
    out = Path(config.run.save_path) / config.run.name / "eval" / name
    writing, size = Writing(config.data.max_new_tokens), config.training.batch_size_eval
    budgets = [ThoughtBudget(reasoner.thoughts(), card.stage)]
    return run_job(EvaluationJob(reasoner, problems, split, budgets, [""], writing, size, out, ranks))[0]


def run_job(job: EvaluationJob) -> list[Evaluation]:
    """Makes the predictions that are not stored yet, then writes the results on rank 0.

    Returns one evaluation for each thought budget, on every rank.
    """
    ranks, partial = job.ranks, PartialPredictions(job.out, job.identity())
    stored: dict[Key, Prediction] = ranks.first_decides(partial.read)
    began = time.perf_counter()
    made = _predict(job, partial, stored)
    seconds = time.perf_counter() - began
    predictions = stored | {key: one for part in ranks.gather(made) for key, one in part.items()}
    evaluator = job.evaluator()
    evaluations = [
        evaluator.evaluation([one for (own, _), one in predictions.items() if own == number], budget.thoughts)
        for number, budget in enumerate(job.budgets)
    ]
    if ranks.is_first:
        new = len(predictions) - len(stored)
        _report(job, evaluations, {"seconds": round(seconds, 2), "problems_per_s": round(new / seconds, 3)})
        partial.discard()
    ranks.wait()
    return evaluations


@dataclass(frozen=True)
class Trace:
    """A problem with the model's decoded thoughts and its answer."""

    problem: Problem
    thoughts: list[DecodedThought]
    answer: str
    """The answer extracted from the model's text."""
    correct: bool


def trace_questions(config: EvalConfig, count: int) -> list[Trace]:
    """Answers the first ``count`` problems and decodes the model's thoughts."""
    reasoner = _reasoner(config, alone())
    problems = _problems(config.data, open_source(config.data, config.seed))[0][:count]
    answers = reasoner.generate(
        [problem.question for problem in problems], max_new_tokens=config.data.max_new_tokens, keep_thoughts=True
    )
    return [_trace(reasoner, problem, answer) for problem, answer in zip(problems, answers, strict=True)]


def _trace(reasoner: Reasoner, problem: Problem, answer: Answer) -> Trace:
    correct = answer.answer == reasoner.card.text_format.extract(problem.answer)
    return Trace(problem, reasoner.decode_thoughts(answer), answer.answer, correct)


def _predict(job: EvaluationJob, partial: PartialPredictions, stored: dict[Key, Prediction]) -> dict[Key, Prediction]:
    """Makes this rank's share of the missing predictions.

    A request to stop takes effect before the engine's next operation; it does not wait for the problem to be finished.
    """
    evaluator, made = job.evaluator(), {}
    budgets = range(len(job.budgets))
    work = [Work(one, index) for index in range(len(job.problems)) for one in budgets if (one, index) not in stored]

    def done(one: Work, prediction: Prediction) -> None:
        made[one.budget, one.problem] = prediction
        partial.add(one.budget, prediction)

    with Interrupts(job.ranks.launched) as interrupts:

        def check_interrupts(due: int) -> int:
            if interrupts.requested:
                raise Interrupted(
                    f"{interrupts.reason}; {len(stored) + len(made):,} predictions are kept in "
                    f"{shell_word(partial.folder)}"
                )
            return due

        try:
            evaluator.predict(
                job.reasoner.loop,
                job.problems,
                job.budgets,
                evaluator.share_of(work),
                done,
                progress=True,
                agree=check_interrupts,
            )
        finally:
            partial.close()
    return made


def _reasoner(config: EvalConfig, ranks: Ranks) -> Reasoner:
    numbers = config.n_thoughts
    # A checkpoint without a card needs a number of thoughts to be loaded. Which number does not matter here, because
    # each budget sets its own.
    has_card = (Path(config.checkpoint) / CARD).is_file()
    return load_reasoner(
        config.checkpoint,
        config.method,
        None if has_card else (max(numbers) if isinstance(numbers, tuple) else numbers),
        model=config.model,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        device=ranks.device,
        attn_implementation=config.attn_implementation,
    )


def _budgets(config: EvalConfig, reasoner: Reasoner) -> tuple[list[ThoughtBudget], list[str]]:
    """The thought budgets to evaluate, and the name of each one's subfolder."""
    numbers, forced = config.n_thoughts, config.force_text_after
    if isinstance(numbers, tuple):
        pairs: list[tuple[int | None, Any]] = [(number, forced) for number in numbers]
        names = [f"{number}_thoughts" for number in numbers]
    elif isinstance(forced, tuple):
        pairs = [(numbers, most) for most in forced]
        names = [f"text_after_{most}" for most in forced]
    else:
        pairs, names = [(numbers, forced)], [""]
    thoughts = [reasoner.thoughts(*pair, config.min_thoughts, config.max_thoughts) for pair in pairs]
    return [ThoughtBudget(one, reasoner.stage_at(one)) for one in thoughts], names


def _problems(data: DataConfig, source: Source) -> tuple[list[Problem], str]:
    """The test problems if there are any, else the validation problems; and the name of the split."""
    on_test = data.kind != "file" or data.test_path is not None
    return (source.test(), "test") if on_test else (source.valid(), "validation")


def _report(job: EvaluationJob, evaluations: Sequence[Evaluation], run: dict[str, Any]) -> None:
    """Writes predictions, scores and the figure, and prints a table. In a sweep each budget has its own subfolder."""
    card, out = job.reasoner.card, job.out
    common: dict[str, Any] = {
        "checkpoint": job.reasoner.name,
        "method": card.method,
        "stage": card.stage,
        "split": job.split,
        "precision": job.reasoner.precision,
        "run": run | {"ranks": job.ranks.size, "batch_size": job.slots},
    }
    scores: list[dict[str, Any]] = [common | scores_of(evaluation, job.problems) for evaluation in evaluations]
    try:
        for name, evaluation, one in zip(job.names, evaluations, scores, strict=True):
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(p.as_dict(), ensure_ascii=False) for p in evaluation.predictions]
            write_whole(folder / "predictions.jsonl", "\n".join(lines) + "\n")
            write_whole(folder / "scores.json", json.dumps(one, indent=2) + "\n")
        if len(scores) > 1:
            write_whole(out / "sweep.json", json.dumps(scores, indent=2) + "\n")
        if scores[0]["accuracy"] is not None:
            named = {BASELINES[key]: value for key, value in scores[0].get("baselines", {}).items()}
            title = f"{job.reasoner.name} on {len(job.problems):,} {job.split} problems"
            draw_sweep([sweep_point(one) for one in scores], out / "accuracy.png", title, named)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error}); the predictions are kept, set out= to another folder"
        ) from error
    _print(job, scores, run)


def _print(job: EvaluationJob, scores: Sequence[dict[str, Any]], run: dict[str, Any]) -> None:
    where = job.out / ("sweep.json" if len(scores) > 1 else "scores.json")
    unscored = "no answers to compare with: the generated texts were saved but not scored\n"
    note = unscored if scores[0]["accuracy"] is None else ""
    sys.stdout.write(
        f"{job.reasoner.name}, method {job.reasoner.card.method}, {job.split} problems\n"
        f"{score_table(scores)}\n{note}"
        f"{run['problems_per_s']:.2f} predictions/s; {shell_word(where)}\n"
    )
