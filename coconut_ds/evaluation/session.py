"""Evaluates a checkpoint: generates an answer to each problem and writes predictions, scores and a figure.

The method and the number of thoughts come from the checkpoint, never from the gold steps of the problems. An
interrupted evaluation continues when the same command is run again, because finished predictions are stored next to the
results (see ``evaluation.partial``). A finished one is found by the same command; another evaluation never replaces it
(see ``evaluation.identity``).
"""

import sys
import time
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from coconut_ds.data.checks import file_warnings, name_of, warnings_about
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import open_source
from coconut_ds.distributed.agreement import refuse_disagreement
from coconut_ds.distributed.interrupts import Interrupted, Interrupts
from coconut_ds.distributed.peers import Peers
from coconut_ds.distributed.ranks import Ranks, alone
from coconut_ds.evaluation.evaluator import ThoughtBudget, Work
from coconut_ds.evaluation.job import EvaluationJob
from coconut_ds.evaluation.loading import budgets_of, problems_of, reasoner_of, tell_first
from coconut_ds.evaluation.model_card import checkpoint_with_card
from coconut_ds.evaluation.partial import Key, PartialPredictions
from coconut_ds.evaluation.prediction import Evaluation, Prediction
from coconut_ds.evaluation.report import finished_evaluations, write_results
from coconut_ds.files import shell_word
from coconut_ds.generation.answer import Answer
from coconut_ds.generation.decoding import DecodedThought
from coconut_ds.generation.prompter import Writing
from coconut_ds.generation.requests import Sampling
from coconut_ds.methods import METHODS
from coconut_ds.model.card import ModelCard
from coconut_ds.model.precision import describe, use_tf32
from coconut_ds.model.starting import card_of, starting_backbone
from coconut_ds.model.thought_noise import NoiseSettings
from coconut_ds.reasoner import Reasoner
from coconut_ds.results import ResultFolder
from coconut_ds.runs.launch_facts import refuse_unequal_launch, without_code
from coconut_ds.runs.naming import model_name
from coconut_ds.scoring.base import Scoring
from coconut_ds.settings import Config, DataConfig, EvalConfig


def evaluate(config: EvalConfig, ranks: Ranks | None = None) -> list[Evaluation]:
    """Loads the checkpoint, writes and prints the scores; returns one evaluation for each number of thoughts."""
    ranks = alone() if ranks is None else ranks
    with Peers(ranks) as peers:
        refuse_unequal_launch(ranks, "evaluation", config)
        return run_job(evaluation_job(config, ranks), peers)


def evaluation_job(config: EvalConfig, ranks: Ranks) -> EvaluationJob:
    """Loads the checkpoint and the problems of an evaluation."""
    scoring, source = config.data.convention, open_source(config.data, config.seed)
    problems, split = problems_of(config.data, source)
    reasoner = reasoner_of(config, ranks)
    budgets, names = budgets_of(config, reasoner)
    sampling = Sampling(config.temperature, config.top_k, config.top_p, config.seed)
    noise = NoiseSettings.of(config.thought_noise, config.thought_sigma, config.thought_dropout)
    writing = Writing(config.data.max_new_tokens, sampling=sampling, noise=noise)
    default_out = Path("outputs/eval") / reasoner.name / f"{config.data_name}{_suffix(config)}"
    return EvaluationJob(
        *(reasoner, problems, split, budgets, names, writing, config.batch_size, default_out, ranks),
        out=None if config.out is None else Path(config.out),
        overwrite=config.overwrite,
        settings=config.model_dump(mode="json", exclude={"out", "overwrite", "batch_size", "data_name"}),
        scoring=scoring,
        source=name_of(config.data, split),
        data_seed=_data_seed(config.data, config.seed),
        data_name=str(config.data_name),
        samples=config.samples,
        checkpoint=checkpoint_with_card(config.checkpoint),
    )


def evaluate_config(config: Config, ranks: Ranks) -> Evaluation:
    """Runs ``run.only_eval``: evaluates ``run.load_model_path`` on the test problems, else the validation problems."""
    with Peers(ranks) as peers:
        refuse_unequal_launch(ranks, "evaluation", config)
        return run_job(_job_of_run(config, ranks), peers)[0]


def _job_of_run(config: Config, ranks: Ranks) -> EvaluationJob:
    scoring, source = config.data.convention, open_source(config.data, config.run.seed, config.run.debug)
    problems, split = problems_of(config.data, source)
    backbone = starting_backbone(config, source)
    card = card_of(config)
    if card is None:
        training, method = config.training, METHODS[config.method.kind]
        # A state dict does not record its stage; we assume the last one, with which training ends.
        stage = training.max_latent_stage + 1 if method.has_curriculum else 0
        card = ModelCard.of(
            method,
            stage,
            training.curriculum_spec,
            config.data.format,
            {},
            parallel=config.parallel,
            chat_template=config.data.chat_template,
        )
    dtype = torch.bfloat16 if config.run.bf16 else torch.float32
    tell_first(use_tf32("run.tf32=true", config.run.tf32, config.run.bf16, ranks.device), ranks)
    backbone.cast(dtype, ranks.device)
    name = model_name(Path(config.run.load_model_path or "model"))
    reasoner = Reasoner(backbone, card, name, describe(dtype, backbone.model, ranks.device)).to(ranks.device)
    reasoner.log_notes()
    data_path = config.data.test_path if split == "test" else config.data.val_path
    data_name = Path(data_path).stem if config.data.kind == "file" and data_path else config.data.kind
    out = Path(config.run.save_path) / config.run.name / "eval" / name / data_name
    writing, size = Writing(config.data.max_new_tokens), config.training.batch_size_eval
    budgets = [ThoughtBudget(reasoner.thoughts(), card.stage)]
    settings = config.model_dump(mode="json", exclude={"training": {"batch_size_eval"}})
    return EvaluationJob(
        *(reasoner, problems, split, budgets, [""], writing, size, out, ranks),
        again="remove the folder to evaluate again",
        settings=settings,
        scoring=scoring,
        source=name_of(config.data, split),
        data_seed=_data_seed(config.data, config.run.seed),
        data_name=data_name,
        checkpoint=checkpoint_with_card(config.run.load_model_path),
    )


def _data_seed(data: DataConfig, seed: int) -> int | None:
    return None if data.kind == "file" else seed


def run_job(job: EvaluationJob, peers: Peers) -> list[Evaluation]:
    """Makes the predictions that are not stored yet, then writes the results on rank 0.

    Finds the results if the same evaluation has been finished before. Otherwise warns about problems that cannot be
    scored or analysed, and sorts the answers into categories once all predictions are made and stored. Returns one
    evaluation for each thought budget, on every rank.

    Raises:
        ConfigError: the folder of the results holds those of another evaluation, or the ranks have loaded different
            weights or problems.
    """
    ranks = job.ranks
    loaded = job.results()
    peers.meet(peers.check)
    # Weights and problems, as they were loaded. Rank 0 alone identifies the code by its commit.
    refuse_disagreement(ranks, lambda: without_code(loaded.identity.values))
    results = ranks.from_first(loaded)
    ranks.first_decides(results.refuse_other)
    partial = PartialPredictions(results.path, results.identity.signature)
    finished = ranks.first_decides(lambda: finished_evaluations(job, results))
    if finished is not None:
        # A launch may have been killed after it wrote the results.
        ranks.on_first(partial.discard)
        return finished
    if ranks.is_first:
        form = job.reasoner.card.text_format
        lines = file_warnings(job.source) + warnings_about(job.problems, form, job.source, job.scoring)
        sys.stderr.write("".join(f"{line}\n" for line in lines))
    unknown = job.reasoner.unknown_share([problem.question for problem in job.problems], job.source)
    stored: dict[Key, Prediction] = ranks.first_decides(lambda: partial.read(_warn))
    began = time.perf_counter()
    made = _predict(job, results, partial, stored, peers)
    seconds = time.perf_counter() - began
    predictions = stored | {key: one for part in ranks.gather(made) for key, one in part.items()}
    evaluator = job.evaluator()
    evaluations = []
    for number, budget in enumerate(job.budgets):
        own = [one for (of_budget, *_), one in predictions.items() if of_budget == number]
        whole = evaluator.evaluation(evaluator.with_categories(own, job.problems, budget), budget.thoughts)
        evaluations.append(replace(whole, hops=job.hop_scores(budget)))
    new = len(predictions) - len(stored)
    run = {"seconds": round(seconds, 2), "problems_per_s": round(new / seconds, 3)}
    ranks.on_first(lambda: write_results(job, results, evaluations, run, unknown))
    ranks.on_first(partial.discard)
    return evaluations


@dataclass(frozen=True)
class Trace:
    """A problem with the model's decoded thoughts and its answer."""

    problem: Problem
    thoughts: list[DecodedThought]
    answer: str
    """The answer extracted from the model's text."""
    correct: bool | None
    """None if the problem's answer is not known."""


def trace_questions(config: EvalConfig, count: int) -> list[Trace]:
    """Answers the first ``count`` problems and decodes the model's thoughts."""
    reasoner = reasoner_of(config, alone())
    problems = problems_of(config.data, open_source(config.data, config.seed))[0][:count]
    answers = reasoner.generate(
        [problem.question for problem in problems], max_new_tokens=config.data.max_new_tokens, keep_thoughts=True
    )
    scoring = config.data.convention
    return [_trace(reasoner, problem, answer, scoring) for problem, answer in zip(problems, answers, strict=True)]


def _trace(reasoner: Reasoner, problem: Problem, answer: Answer, scoring: Scoring) -> Trace:
    form = reasoner.card.text_format
    correct = scoring.is_correct(answer.text, problem.answer, form) if problem.has_answer else None
    return Trace(problem, reasoner.decode_thoughts(answer), answer.answer, correct)


def _predict(
    job: EvaluationJob,
    results: ResultFolder,
    partial: PartialPredictions,
    stored: dict[Key, Prediction],
    peers: Peers,
) -> dict[Key, Prediction]:
    """Makes this rank's share of the missing predictions, and waits for those of the other ranks.

    A request to stop, of this rank or another one, takes effect before the engine's next operation, within a problem.
    """
    evaluator = job.evaluator()
    made: dict[Key, Prediction] = {}
    places = product(range(len(job.problems)), range(len(job.budgets)), range(job.samples or 1))
    work = [Work(budget, index, sample) for index, budget, sample in places if (budget, index, sample) not in stored]

    def done(one: Work, prediction: Prediction) -> None:
        if not made:
            # Not earlier: a request that is refused before its first prediction leaves nothing behind.
            results.claim()
        made[one.budget, one.problem, one.sample] = prediction
        partial.add(one.budget, prediction)

    with Interrupts(job.ranks.launched) as interrupts:

        def kept() -> str:
            return _kept(len(stored) + len(made), partial, job.ranks)

        def check_interrupts(due: int) -> int:
            if interrupts.requested:
                interrupts.handled()
                raise Interrupted(f"{interrupts.reason}; {kept()}")
            peers.check(kept)
            return due

        try:
            own = evaluator.share_of(work)
            asked = (job.reasoner.loop, job.problems, job.budgets, own, done)
            evaluator.predict(*asked, progress=True, agree=check_interrupts)
            # One rank may have more to do than others: they wait here, where they notice if it ends.
            peers.meet(lambda: check_interrupts(0))
        finally:
            partial.close()
    return made


def _kept(count: int, partial: PartialPredictions, ranks: Ranks) -> str:
    """What is left of an evaluation that is interrupted."""
    # The other ranks keep theirs too.
    least = "at least " if ranks.size > 1 else ""
    return f"{least}{count:,} predictions are kept in {shell_word(partial.folder)}"


def _warn(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _suffix(config: EvalConfig) -> str:
    """The settings in the name of the results' folder, for people; the signature tells all evaluations apart."""
    size = config.thought_sigma if config.thought_noise == "gaussian" else config.thought_dropout
    parts = [
        "" if config.is_sweep or config.n_thoughts is None else f"-{config.n_thoughts}_thoughts",
        "" if config.is_sweep or config.force_text_after is None else f"-text_after_{config.force_text_after}",
        f"-temperature_{config.temperature:g}" if config.temperature else "",
        "" if config.thought_noise == "none" else f"-{config.thought_noise}_{size or 0:g}",
        "" if config.samples is None else f"-samples_{config.samples}",
        f"-seed_{config.seed}" if config.seed else "",
        "-bf16" if config.bf16 else "",
        "-tf32" if config.tf32 else "",
    ]
    return "".join(parts)
