"""Evaluates a checkpoint: loads it, generates for each problem, writes ``scores.json`` and ``predictions.jsonl``.

Method and number of thoughts come from the checkpoint, never from the gold steps of the problems.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from coconut_ds.checkpoint import ModelCard, load_folder
from coconut_ds.curriculum import spec_of
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import Source, open_source
from coconut_ds.distributed import Ranks, alone
from coconut_ds.errors import CheckpointError
from coconut_ds.evaluation import DecodedThought, Evaluation, Evaluator, decode_thoughts
from coconut_ds.experiment import card_of, starting_backbone
from coconut_ds.methods import METHODS
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.support import context_length
from coconut_ds.scoring import extract_answer, is_correct
from coconut_ds.settings import Config, DataConfig, EvalConfig
from coconut_ds.tokens import decode


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a model that knows how it thinks."""

    name: str
    """For the output folder."""
    backbone: Backbone
    card: ModelCard


def evaluate(config: EvalConfig) -> Evaluation:
    """Loads the checkpoint, evaluates, writes and prints the scores."""
    subject = _load(config)
    problems, split = _problems(config.data, open_source(config.data, config.seed))
    asked = "" if config.n_thoughts is None else f"-{config.n_thoughts}_thoughts"
    out = Path(config.out or Path("outputs/eval") / subject.name / f"{config.data_name}{asked}")
    evaluation = _answers(subject, problems, config.data.max_new_tokens, config.batch_size, alone())
    _report(subject, evaluation, split, out)
    return evaluation


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
        card = ModelCard.of(method, stage, spec_of(training), config.data.format, {})
    subject = Subject(_name(config.run.load_model_path), backbone, card)
    size = config.training.batch_size_eval
    evaluation = _answers(subject, problems, config.data.max_new_tokens, size, ranks, config.run.bf16)
    if ranks.is_first:
        _report(subject, evaluation, split, Path(config.run.save_path) / config.run.name / "eval" / subject.name)
    return evaluation


@dataclass(frozen=True)
class Trace:
    """One problem with what the model thought and answered."""

    problem: Problem
    thoughts: list[DecodedThought]
    answer: str
    correct: bool


def trace(config: EvalConfig, count: int) -> list[Trace]:
    """The first ``count`` problems with their decoded thoughts."""
    subject = _load(config)
    backbone = subject.backbone
    problems = _problems(config.data, open_source(config.data, config.seed))[0][:count]
    loop = LatentLoop(backbone.model).to(alone().device).eval()
    evaluator = _evaluator(subject, config.data.max_new_tokens, count, alone())
    num_latents = subject.card.num_latents
    made = evaluator.generate(loop, evaluator.prompts(problems, num_latents), num_latents)
    form = subject.card.text_format
    decoded = decode_thoughts(loop, backbone.tokenizer, made.thoughts)
    texts = [decode(backbone.tokenizer, tokens, backbone.markers) for tokens in made.tokens]
    return [
        Trace(problem, thoughts, extract_answer(text, form), is_correct(text, problem.answer, form))
        for problem, thoughts, text in zip(problems, decoded, texts, strict=True)
    ]


def _load(config: EvalConfig) -> Subject:
    """The checkpoint with its card, the number of thoughts changed where the configuration asks for it."""
    folder = Path(config.checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint={folder}: no such folder; set checkpoint to a model folder")
    dtype = torch.bfloat16 if config.bf16 else torch.float32
    backbone = load_folder(folder, config.attn_implementation, dtype)
    card = ModelCard.read(folder)
    if card is None:
        if config.method is None:
            raise CheckpointError(
                f"{folder}: has no coconut.json, so it does not say how it thinks; set method=cot (or another) and "
                "n_thoughts=0"
            )
        card = ModelCard(config.method, 0, 0, 0, 0, {})
    elif config.method not in (None, card.method):
        raise CheckpointError(f"{folder}: was trained with method={card.method}; leave method={config.method} out")
    if config.n_thoughts is not None:
        card = card.with_latents(config.n_thoughts)
    return Subject(_name(folder), backbone, card)


def _name(path: str | Path | None) -> str:
    return "-".join(Path(path or "model").resolve().parts[-2:])


def _problems(data: DataConfig, source: Source) -> tuple[list[Problem], str]:
    on_test = data.kind != "file" or data.test_path is not None
    return (source.test(), "test") if on_test else (source.valid(), "validation")


def _evaluator(subject: Subject, max_new_tokens: int, batch_size: int, ranks: Ranks) -> Evaluator:
    backbone = subject.backbone
    return Evaluator(
        backbone.tokenizer,
        backbone.markers,
        METHODS[subject.card.method],
        subject.card.spec,
        subject.card.text_format,
        max_new_tokens,
        batch_size,
        context_length(backbone.model),
        ranks,
    )


def _answers(
    subject: Subject, problems: list[Problem], max_new_tokens: int, batch_size: int, ranks: Ranks, bf16: bool = False
) -> Evaluation:
    backbone, card = subject.backbone, subject.card
    if bf16:
        # Parameters only: rotary tables stay in fp32, as in training.
        for parameter in backbone.model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return _evaluator(subject, max_new_tokens, batch_size, ranks).run(
        LatentLoop(backbone.model).to(ranks.device).eval(),
        problems,
        card.stage,
        card.num_latents,
        progress=ranks.is_first,
    )


def _report(subject: Subject, evaluation: Evaluation, split: str, out: Path) -> None:
    _write(evaluation, subject, out)
    sys.stdout.write(
        f"accuracy {evaluation.accuracy:.1%} on {len(evaluation.predictions):,} {split} problems, method "
        f"{subject.card.method}, {evaluation.num_thoughts} thoughts"
        f"{f', {evaluation.num_pauses} pauses' if evaluation.num_pauses else ''}; {out / 'scores.json'}\n"
    )


def _write(evaluation: Evaluation, subject: Subject, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prediction.as_dict(), ensure_ascii=False) for prediction in evaluation.predictions]
    (out / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    scores = {
        "checkpoint": subject.name,
        "accuracy": evaluation.accuracy,
        "wholly_right": evaluation.wholly_right,
        "problems": len(evaluation.predictions),
        "num_thoughts": evaluation.num_thoughts,
        "num_pauses": evaluation.num_pauses,
        "method": subject.card.method,
        "stage": subject.card.stage,
        "tokens_a_problem": sum(p.num_tokens for p in evaluation.predictions) / len(evaluation.predictions),
    }
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
