"""One attempt at a run: its directory, its record, the trainer, and what came out."""

import json
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from coconut_ds.distributed import Ranks
from coconut_ds.engine import Engine, read_engine_file
from coconut_ds.errors import ConfigError
from coconut_ds.experiment import Experiment
from coconut_ds.metrics import MetricsLog
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.position import Position
from coconut_ds.progress import Progress
from coconut_ds.run_folder import RUN_LINE, RunFolder, start_attempt
from coconut_ds.run_saver import RunSaver
from coconut_ds.settings import Config
from coconut_ds.trainer import Trainer
from coconut_ds.wandb_mirror import open_mirror


def train(config: Config, ranks: Ranks) -> RunFolder:
    """One attempt at the run of ``config``. All ranks call it."""
    started = time.perf_counter()
    progress = Progress(ranks.is_first)
    read_engine_file(config)
    experiment = Experiment.prepare(config, ranks, progress.line)
    description = experiment.describe()
    engine = Engine(LatentLoop(experiment.backbone.model), config, experiment.geometry, ranks)
    # Weights are drawn; from here on ranks differ, so that dropout does.
    torch.manual_seed(config.run.seed + ranks.rank)
    # What can be refused is behind us, but for the record's mirror: only now something is written.
    folder = RunFolder(Path(ranks.from_first(str(start_attempt(config).path) if ranks.is_first else "")))
    with ExitStack() as stack:
        metrics = _open_metrics(config, folder, progress, stack) if ranks.is_first else None
        progress.line(f"{RUN_LINE}{folder.path}\n{description}")
        if ranks.is_first:
            experiment.problems.write(folder.problems)
        saver = RunSaver(experiment, folder)
        position = Trainer(experiment, engine, saver, progress, metrics).fit()
    if ranks.is_first:
        _write_summary(folder, position, saver, time.perf_counter() - started)
        progress.line(
            f"done: {saver.best_accuracy:.1%} on validation problems at stage {saver.best_stage}, "
            f"{saver.best_checkpoint}"
        )
    return folder


def _open_metrics(config: Config, folder: RunFolder, progress: Progress, stack: ExitStack) -> MetricsLog:
    try:
        mirror, line = open_mirror(config, folder.path)
    except ConfigError:
        folder.discard()
        raise
    if line:
        progress.line(line)
    return stack.enter_context(MetricsLog(folder.metrics, mirror))


def _write_summary(folder: RunFolder, position: Position, saver: RunSaver, seconds: float) -> None:
    values = {
        "epochs": position.epoch,
        "updates": position.global_step,
        "stage_switches": position.stage_switches,
        "best_checkpoint": saver.best_checkpoint,
        "best_accuracy": saver.best_accuracy,
        "best_stage": saver.best_stage,
        "last_checkpoint": saver.last_checkpoint,
        "last_accuracy": saver.last_accuracy,
        "duration_s": round(seconds, 1),
    }
    folder.summary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
