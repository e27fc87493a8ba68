"""Evaluates a checkpoint: generates for each problem, writes predictions, scores and a picture.

Method and number of thoughts come from the checkpoint, never from the gold steps of the problems. An evaluation that
was interrupted carries on with the same command: what it has made lies beside the results (``evaluation.partial``).
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
from coconut_ds.files import write_whole
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
class Assessment:
    """What is to be evaluated, on what, and how."""

    reasoner: Reasoner
    problems: list[Problem]
    split: str
    arms: list[ThoughtBudget]
    """Numbers of thoughts; more than one are a sweep."""
    names: list[str]
    """Of the arms, for folders."""
    writing: Writing
    slots: int
    out: Path
    ranks: Ranks

    def evaluator(self) -> Evaluator:
        """How problems are answered."""
        reasoner = self.reasoner
        return Evaluator(
            reasoner.prompter, reasoner.card.spec, self.writing, self.slots, reasoner.context_length, self.ranks
        )

    def identity(self) -> str:
        """Stands for all that a prediction depends on."""
        backbone = self.reasoner.backbone
        parts = {
            "model": digest_state(backbone.model.state_dict().items()),
            "tokenizer": digest_tokenizer(backbone.tokenizer),
            "card": [self.reasoner.card.method, self.reasoner.card.format],
            "arms": self.arms,
            "writing": self.writing,
            "problems": [problem.as_dict() for problem in self.problems],
            "code": code_identity(),
        }
        return hashlib.sha256(json.dumps(parts, default=repr, sort_keys=True).encode()).hexdigest()[:12]


def evaluate(config: EvalConfig, ranks: Ranks | None = None) -> list[Evaluation]:
    """Loads the checkpoint, evaluates, writes and prints the scores; one evaluation for each number of thoughts."""
    ranks = alone() if ranks is None else ranks
    source = open_source(config.data, config.seed)
    problems, split = _problems(config.data, source)
    reasoner = _reasoner(config, ranks)
    arms, names = _arms(config, reasoner)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed)
    writing = Writing(config.data.max_new_tokens, sampling=sampling)
    asked = "" if config.is_sweep or config.n_thoughts is None else f"-{config.n_thoughts}_thoughts"
    asked += "" if config.is_sweep or config.force_text_after is None else f"-text_after_{config.force_text_after}"
    out = Path(config.out or Path("outputs/eval") / reasoner.name / f"{config.data_name}{asked}")
    size = config.batch_size
    return assess(Assessment(reasoner, problems, split, arms, names, writing, size, out, ranks))


def evaluate_config(config: Config, ranks: Ranks) -> Evaluation:
    """``run.only_eval``: evaluates ``run.load_model_path`` on the test file, else the validation file."""
    source = open_source(config.data, config.run.seed, config.run.debug)
    problems, split = _problems(config.data, source)
    backbone = starting_backbone(config, source)
    card = card_of(config)
    if card is None:
        training, method = config.training, METHODS[config.method.kind]
        # A state dict does not say its stage: the last one is what training ends with.
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
    arms = [ThoughtBudget(reasoner.thoughts(), card.stage)]
    return assess(Assessment(reasoner, problems, split, arms, [""], writing, size, out, ranks))[0]


def assess(asked: Assessment) -> list[Evaluation]:
    """Makes the predictions that are not there yet, and writes the results on rank 0."""
    ranks, partial = asked.ranks, PartialPredictions(asked.out, asked.identity())
    there: dict[Key, Prediction] = ranks.first_decides(partial.read)
    began = time.perf_counter()
    made = _predict(asked, partial, there)
    seconds = time.perf_counter() - began
    predictions = there | {key: one for part in ranks.gather(made) for key, one in part.items()}
    evaluator = asked.evaluator()
    evaluations = [
        evaluator.evaluation([one for (own, _), one in predictions.items() if own == number], arm.thoughts)
        for number, arm in enumerate(asked.arms)
    ]
    if ranks.is_first:
        new = len(predictions) - len(there)
        _report(asked, evaluations, {"seconds": round(seconds, 2), "problems_per_s": round(new / seconds, 3)})
        partial.discard()
    ranks.wait()
    return evaluations


@dataclass(frozen=True)
class Trace:
    """One problem with what the model thought and answered."""

    problem: Problem
    thoughts: list[DecodedThought]
    answer: str
    correct: bool


def trace_questions(config: EvalConfig, count: int) -> list[Trace]:
    """The first ``count`` problems with their decoded thoughts."""
    reasoner = _reasoner(config, alone())
    problems = _problems(config.data, open_source(config.data, config.seed))[0][:count]
    answers = reasoner.generate(
        [problem.question for problem in problems], max_new_tokens=config.data.max_new_tokens, keep_thoughts=True
    )
    return [_trace(reasoner, problem, answer) for problem, answer in zip(problems, answers, strict=True)]


def _trace(reasoner: Reasoner, problem: Problem, answer: Answer) -> Trace:
    correct = answer.answer == reasoner.card.text_format.extract(problem.answer)
    return Trace(problem, reasoner.decode_thoughts(answer), answer.answer, correct)


def _predict(asked: Assessment, partial: PartialPredictions, there: dict[Key, Prediction]) -> dict[Key, Prediction]:
    """This rank's share of what is missing. What asks to stop waits for the engine's operation, not for the problem."""
    evaluator, made = asked.evaluator(), {}
    numbers = range(len(asked.arms))
    work = [Work(arm, index) for index in range(len(asked.problems)) for arm in numbers if (arm, index) not in there]

    def done(one: Work, prediction: Prediction) -> None:
        made[one.arm, one.problem] = prediction
        partial.add(one.arm, prediction)

    with Interrupts(asked.ranks.launched) as interrupts:

        def go_on(due: int) -> int:
            if interrupts.requested:
                raise Interrupted(
                    f"{interrupts.reason}; {len(there) + len(made):,} predictions are kept in {partial.folder}"
                )
            return due

        try:
            evaluator.predict(
                asked.reasoner.loop,
                asked.problems,
                asked.arms,
                evaluator.share_of(work),
                done,
                progress=True,
                agree=go_on,
            )
        finally:
            partial.close()
    return made


def _reasoner(config: EvalConfig, ranks: Ranks) -> Reasoner:
    asked = config.n_thoughts
    # Each arm says its own number; a checkpoint that says none needs any.
    knows = (Path(config.checkpoint) / CARD).is_file()
    return load_reasoner(
        config.checkpoint,
        config.method,
        None if knows else (max(asked) if isinstance(asked, tuple) else asked),
        model=config.model,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        device=ranks.device,
        attn_implementation=config.attn_implementation,
    )


def _arms(config: EvalConfig, reasoner: Reasoner) -> tuple[list[ThoughtBudget], list[str]]:
    """Numbers of thoughts to evaluate, and names for their folders."""
    numbers, forced = config.n_thoughts, config.force_text_after
    if isinstance(numbers, tuple):
        asked: list[tuple[int | None, Any]] = [(number, forced) for number in numbers]
        names = [f"{number}_thoughts" for number in numbers]
    elif isinstance(forced, tuple):
        asked = [(numbers, most) for most in forced]
        names = [f"text_after_{most}" for most in forced]
    else:
        asked, names = [(numbers, forced)], [""]
    thoughts = [reasoner.thoughts(*pair, config.min_thoughts, config.max_thoughts) for pair in asked]
    return [ThoughtBudget(one, reasoner.stage_at(one)) for one in thoughts], names


def _problems(data: DataConfig, source: Source) -> tuple[list[Problem], str]:
    on_test = data.kind != "file" or data.test_path is not None
    return (source.test(), "test") if on_test else (source.valid(), "validation")


def _report(asked: Assessment, evaluations: Sequence[Evaluation], run: dict[str, Any]) -> None:
    """Writes what was found, each number of thoughts in a folder of its own where there are several; prints a table."""
    card, out = asked.reasoner.card, asked.out
    common: dict[str, Any] = {
        "checkpoint": asked.reasoner.name,
        "method": card.method,
        "stage": card.stage,
        "split": asked.split,
        "precision": asked.reasoner.precision,
        "run": run | {"ranks": asked.ranks.size, "batch_size": asked.slots},
    }
    scores: list[dict[str, Any]] = [common | scores_of(evaluation, asked.problems) for evaluation in evaluations]
    try:
        for name, evaluation, one in zip(asked.names, evaluations, scores, strict=True):
            folder = out / name
            folder.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps(p.as_dict(), ensure_ascii=False) for p in evaluation.predictions]
            write_whole(folder / "predictions.jsonl", "\n".join(lines) + "\n")
            write_whole(folder / "scores.json", json.dumps(one, indent=2) + "\n")
        if len(scores) > 1:
            write_whole(out / "sweep.json", json.dumps(scores, indent=2) + "\n")
        if scores[0]["accuracy"] is not None:
            named = {BASELINES[key]: value for key, value in scores[0].get("baselines", {}).items()}
            title = f"{asked.reasoner.name} on {len(asked.problems):,} {asked.split} problems"
            draw_sweep([sweep_point(one) for one in scores], out / "accuracy.png", title, named)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error}); what was made is kept, set out= to another folder"
        ) from error
    _print(asked, scores, run)


def _print(asked: Assessment, scores: Sequence[dict[str, Any]], run: dict[str, Any]) -> None:
    where = asked.out / ("sweep.json" if len(scores) > 1 else "scores.json")
    judged = "" if scores[0]["accuracy"] is not None else "no answers to compare with: texts are written, not scored\n"
    sys.stdout.write(
        f"{asked.reasoner.name}, method {asked.reasoner.card.method}, {asked.split} problems\n"
        f"{score_table(scores)}\n{judged}"
        f"{run['problems_per_s']:.2f} predictions/s; {where}\n"
    )
