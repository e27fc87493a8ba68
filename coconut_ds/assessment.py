"""Evaluates a checkpoint: loads it, generates for each problem, writes ``scores.json`` and ``predictions.jsonl``.

Method and number of thoughts come from the checkpoint, never from the gold steps of the problems.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from coconut_ds.checkpoint import ModelCard, load_folder
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import open_source
from coconut_ds.distributed import Ranks, alone
from coconut_ds.errors import CheckpointError
from coconut_ds.evaluation import DecodedThought, Evaluation, Evaluator, decode_thoughts
from coconut_ds.experiment import card_of, starting_backbone
from coconut_ds.generation import GenerationSettings, generate
from coconut_ds.layout import lay_out_prompt
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.model.backbone import Backbone, context_length
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.scoring import extract_answer, is_correct
from coconut_ds.settings import Config, DataConfig, EvalConfig
from coconut_ds.tokens import decode, encode_questions


def evaluate(config: EvalConfig) -> Evaluation:
    """Loads the checkpoint, evaluates, writes and prints the scores."""
    backbone, card = _load(config)
    name = "-".join(Path(config.checkpoint).resolve().parts[-2:])
    out = Path(config.out or Path("outputs/eval") / name / config.data_name)
    problems, split = _problems(config.data, config.seed)
    return _evaluate(backbone, card, problems, split, config.batch_size, out, alone())


@dataclass(frozen=True)
class Trace:
    """One problem with what the model thought and answered."""

    problem: Problem
    thoughts: list[DecodedThought]
    answer: str
    correct: bool


def trace(config: EvalConfig, count: int) -> list[Trace]:
    """The first ``count`` problems with their decoded thoughts."""
    backbone, card = _load(config)
    problems = _problems(config.data, config.seed)[0][:count]
    loop = LatentLoop(backbone.model).to(alone().device).eval()
    questions = encode_questions(backbone.tokenizer, [problem.question for problem in problems])
    method = METHODS[card.method]
    prompts = [lay_out_prompt(method, ids, card.num_thoughts, backbone.markers) for ids in questions]
    eos = int(backbone.tokenizer.eos_token_id)
    settings = GenerationSettings(card.max_new_tokens, eos, backbone.markers.all(), context_length(backbone.model))
    made = generate(loop, prompts, settings)
    decoded = decode_thoughts(loop, backbone.tokenizer, made.thoughts)
    texts = [decode(backbone.tokenizer, tokens, backbone.markers) for tokens in made.tokens]
    return [
        Trace(problem, thoughts, extract_answer(text), is_correct(text, problem.answer))
        for problem, thoughts, text in zip(problems, decoded, texts, strict=True)
    ]


def _load(config: EvalConfig) -> tuple[Backbone, ModelCard]:
    """The checkpoint with its card, changed by what the configuration asks for."""
    folder = Path(config.checkpoint)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint={folder}: no such folder; set checkpoint to a model folder")
    backbone = load_folder(folder, config.attn_implementation)
    card = ModelCard.read(folder)
    if card is None:
        if config.method is None:
            raise CheckpointError(
                f"{folder}: has no coconut.json, so it does not say how it thinks; set method=cot (or another) and "
                "n_thoughts=0"
            )
        card = ModelCard(config.method, 0, config.n_thoughts or 0, 0, 0, config.data.max_new_tokens, {})
    if config.n_thoughts is not None:
        card = replace(card, num_thoughts=config.n_thoughts)
    if config.max_new_tokens is not None:
        card = replace(card, max_new_tokens=config.max_new_tokens)
    return backbone, card


def evaluate_config(config: Config, ranks: Ranks) -> Evaluation:
    """``run.only_eval``: evaluates ``run.load_model_path`` on the test file, else the validation file."""
    problems, split = _problems(config.data, config.run.seed, config.run.debug)
    card = card_of(config)
    backbone = starting_backbone(config, open_source(config.data, config.run.seed))
    if card is None:
        training, method = config.training, METHODS[config.method.kind]
        spec = CurriculumSpec(training.c_thought, training.max_latent_stage, training.pad_latent_to_max)
        # A state dict does not say its stage: the last one is what training ends with.
        stage = training.max_latent_stage
        thoughts = method.num_thoughts(stage, None, spec)
        card = ModelCard(method.name, stage, thoughts, spec.c_thought, stage, config.data.max_new_tokens, {})
    out = Path(config.run.save_path) / config.run.name / "eval"
    return _evaluate(backbone, card, problems, split, config.training.batch_size_eval, out, ranks)


def _problems(data: DataConfig, seed: int, debug: bool = False) -> tuple[list[Problem], str]:
    source = open_source(data, seed, debug)
    on_test = data.kind != "file" or data.test_path is not None
    return (source.test(), "test") if on_test else (source.valid(), "validation")


def _evaluate(
    backbone: Backbone,
    card: ModelCard,
    problems: list[Problem],
    split: str,
    batch_size: int,
    out: Path,
    ranks: Ranks,
) -> Evaluation:
    method = METHODS[card.method]
    spec = CurriculumSpec(card.c_thought, card.max_latent_stage)
    loop = LatentLoop(backbone.model).to(ranks.device).eval()
    context = context_length(backbone.model)
    evaluation = Evaluator(
        backbone.tokenizer, backbone.markers, method, card.max_new_tokens, batch_size, context, ranks
    ).run(
        loop,
        problems,
        card.num_thoughts,
        lambda num_steps: method.num_removed(card.stage, num_steps, spec),
        progress=ranks.is_first,
    )
    if ranks.is_first:
        _write(evaluation, card, out)
        sys.stdout.write(
            f"accuracy {evaluation.accuracy:.1%} on {len(problems):,} {split} problems, method {card.method}, "
            f"{card.num_thoughts} thoughts; {out / 'scores.json'}\n"
        )
    return evaluation


def _write(evaluation: Evaluation, card: ModelCard, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(prediction.as_dict(), ensure_ascii=False) for prediction in evaluation.predictions]
    (out / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    scores = {
        "accuracy": evaluation.accuracy,
        "wholly_right": evaluation.wholly_right,
        "problems": len(evaluation.predictions),
        "num_thoughts": evaluation.num_thoughts,
        "method": card.method,
        "stage": card.stage,
        "tokens_a_problem": sum(p.num_tokens for p in evaluation.predictions) / len(evaluation.predictions),
    }
    (out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
