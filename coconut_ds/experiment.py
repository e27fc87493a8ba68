"""Puts a run together from its configuration, trains, and says what came out."""

import json
import random
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from coconut_ds.checkpoint import ModelCard, load_folder, load_state_dict
from coconut_ds.curriculum import Curriculum
from coconut_ds.data.batches import BatchGeometry
from coconut_ds.data.sources import Source, open_source
from coconut_ds.distributed import Ranks
from coconut_ds.engine import Engine, read_engine_file
from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.evaluation import Evaluator
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.metrics import MetricsLog
from coconut_ds.model.backbone import Backbone, build_backbone, context_length
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.progress import Progress
from coconut_ds.run_folder import RunFolder, start_attempt
from coconut_ds.run_saver import RunSaver
from coconut_ds.settings import Config
from coconut_ds.tokens import build_word_tokenizer, load_tokenizer
from coconut_ds.trainer import RunProblems, Trainer, check_lengths, summary_of
from coconut_ds.wandb_mirror import open_mirror


def train(config: Config, ranks: Ranks) -> RunFolder:
    """One attempt at the run of ``config``. All ranks call it."""
    started = time.perf_counter()
    progress = Progress(ranks.is_first)
    geometry = BatchGeometry.derive(config.training, ranks.size)
    check_start(config)
    read_engine_file(config)
    torch.manual_seed(config.run.seed)
    random.seed(config.run.seed)
    source = open_source(config.data, config.run.seed, config.run.debug)
    backbone = starting_backbone(config, source)
    method = METHODS[config.method.kind]
    training = config.training
    spec = CurriculumSpec(training.c_thought, training.max_latent_stage, training.pad_latent_to_max)
    first_problems = source.train(config.run.resume)
    curriculum = Curriculum.of(
        training, method, max(len(problem.steps) for problem in first_problems), config.run.resume
    )
    problems = RunProblems(source, backbone.tokenizer)
    context = context_length(backbone.model)
    check_lengths(
        [*problems.train(config.run.resume), *problems.valid_tokens], method, curriculum.last_stage, spec, context
    )
    description = _describe(backbone, len(first_problems), len(problems.valid))
    engine = Engine(LatentLoop(backbone.model), config, geometry, ranks)
    # The last thing that can be refused is behind us: only now something is written.
    folder = RunFolder(Path(ranks.from_first(str(start_attempt(config).path) if ranks.is_first else "")))
    with ExitStack() as stack:
        metrics = _open_metrics(config, folder, progress, stack) if ranks.is_first else None
        progress.line(f"{folder.path}\n{geometry.describe()}; {description}")
        saver = RunSaver(config, method, spec, backbone, folder, ranks)
        trainer = Trainer(
            config=config,
            method=method,
            spec=spec,
            curriculum=curriculum,
            problems=problems,
            backbone=backbone,
            engine=engine,
            geometry=geometry,
            evaluator=Evaluator(
                backbone.tokenizer,
                backbone.markers,
                method,
                config.data.max_new_tokens,
                training.batch_size_eval,
                context,
                ranks,
            ),
            ranks=ranks,
            progress=progress,
            saver=saver,
            metrics=metrics,
        )
        position = trainer.fit()
        if ranks.is_first:
            summary = summary_of(
                position,
                {
                    "best_checkpoint": saver.best_checkpoint,
                    "best_accuracy": saver.best_accuracy,
                    "best_stage": saver.best_stage,
                    "last_checkpoint": saver.last_checkpoint,
                    "last_accuracy": saver.last_accuracy,
                    "duration_s": round(time.perf_counter() - started, 1),
                },
            )
            folder.summary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
            progress.line(
                f"done: {saver.best_accuracy:.1%} on validation problems at stage {saver.best_stage}, "
                f"{saver.best_checkpoint}"
            )
    return folder


def check_start(config: Config) -> None:
    """Refuses, before anything is built, what only a continued attempt could mean."""
    if config.run.resume_mode == "force" or config.run.resume_attempt_id is not None:
        key = "resume_mode" if config.run.resume_mode == "force" else "resume_attempt_id"
        raise ConfigError(
            f"run.{key}={getattr(config.run, key)}: every launch starts a new attempt; "
            "set run.resume_mode=auto or never, and run.resume_attempt_id=null"
        )


def starting_backbone(config: Config, source: Source) -> Backbone:
    """Weights and tokenizer to start from: ``run.load_model_path`` where given, else what ``model`` describes."""
    path = config.run.load_model_path
    if path is None:
        return build_backbone(config.model, _tokenizer(config, source))
    place = Path(path)
    if place.is_dir():
        return load_folder(place, config.model.attn_implementation)
    if place.is_file():
        return load_state_dict(place, config.model, _tokenizer(config, source))
    raise CheckpointError(
        f"run.load_model_path={path}: no such file or folder; set a checkpoint folder or a state dict"
    )


def card_of(config: Config) -> ModelCard | None:
    """The card of the checkpoint to start from, where it has one."""
    path = config.run.load_model_path
    return ModelCard.read(Path(path)) if path is not None and Path(path).is_dir() else None


def _tokenizer(config: Config, source: Source) -> PreTrainedTokenizerBase:
    name = config.model.tokenizer or config.model.model_id
    return build_word_tokenizer(source.vocabulary()) if name == "dataset" else load_tokenizer(name)


def _open_metrics(config: Config, folder: RunFolder, progress: Progress, stack: ExitStack) -> MetricsLog:
    mirror, line = open_mirror(config, folder.path)
    if line:
        progress.line(line)
    return stack.enter_context(MetricsLog(folder.metrics, mirror))


def _describe(backbone: Backbone, num_train: int, num_valid: int) -> str:
    parameters = sum(parameter.numel() for parameter in backbone.model.parameters())
    return (
        f"{type(backbone.model).__name__}, {parameters / 1e6:.2f} M parameters, {len(backbone.tokenizer)} tokens; "
        f"{num_train:,} training and {num_valid:,} validation problems"
    )
