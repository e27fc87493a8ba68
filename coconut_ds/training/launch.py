"""One launch of a run: prepares the experiment, starts or resumes an attempt, trains, and writes a summary."""

import copy
import json
import time
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

from coconut_ds.data.tokenizer_files import check_saving
from coconut_ds.distributed.agreement import refuse_disagreement
from coconut_ds.distributed.background import open_background
from coconut_ds.distributed.interrupts import Interrupts
from coconut_ds.distributed.random_states import seed_generators
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.watchdog import Watchdog
from coconut_ds.files import remove, shell_word
from coconut_ds.model.precision import multiplies_bf16, no_bf16, use_tf32
from coconut_ds.runs.attempts import SOLVED, Start, complete_text
from coconut_ds.runs.fencing import Fence
from coconut_ds.runs.folder import ENGINE, RUN_LINE, RunFolder
from coconut_ds.runs.launch_facts import refuse_unequal_launch, without_code
from coconut_ds.runs.resume_state import Position
from coconut_ds.settings import Config
from coconut_ds.training.claim import Claim, claim_attempt
from coconut_ds.training.engine import Engine
from coconut_ds.training.engine_file import read_engine_file, zero_stage
from coconut_ds.training.engine_state import convert_state
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.ingredients import run_ingredients
from coconut_ds.training.iterations import start_notes
from coconut_ds.training.problems import Notify
from coconut_ds.training.progress_bar import ProgressBar, peak_memory
from coconut_ds.training.run_record import open_record
from coconut_ds.training.saver import RunSaver
from coconut_ds.training.trainer import Trainer

SEED_STEP = 1_000_003
"""Distance between the seeds of two consecutive updates; the seeds of two ranks differ by 1. Where a resume cannot
restore the random states, this seed makes sure that it does not repeat the random numbers drawn before it."""


def train(config: Config, ranks: Ranks) -> RunFolder:
    """Starts or resumes the run of ``config`` and trains to the end, unless it is complete. All ranks call it.

    Raises:
        Interrupted: the launch was asked to stop, and has saved; the same call resumes the run.
    """
    started = time.perf_counter()
    memory = partial(peak_memory, ranks.device)
    progress = ProgressBar(ranks.is_first, config.run.log_every, config.run.debug, memory)
    ranks.progress.begin()
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(ranks.launched))
        watchdog = stack.enter_context(Watchdog(ranks, config.run.watchdog_s, config.run.watchdog_ends))
        refuse_unequal_launch(ranks, "training", config)
        read_engine_file(config)
        tf32 = use_tf32("run.tf32=true", config.run.tf32, config.run.bf16, ranks.device)
        experiment = Experiment.prepare(config, ranks, progress.line)
        claim = _claim(experiment, stack, watchdog, progress.line)
        start = ranks.from_first(None if claim is None else claim.start)
        assert start is not None
        if start.is_complete:
            ranks.on_first(lambda: progress.line(f"{RUN_LINE}{shell_word(start.path)}\n{complete_text(start.folder)}"))
            return start.folder
        engine = _start_engine(experiment, start, None if claim is None else claim.fence, progress.line)
        with open_record(experiment, claim, start.path, progress.line) as record:
            manifest, metrics = (None, None) if record is None else (record.manifest, record.metrics)
            lock, fence = (None, None) if claim is None else (claim.lock, claim.fence)
            background = open_background(ranks, progress.line) if config.run.async_save else None
            saver = RunSaver(experiment, start.folder, fence, manifest, metrics, lock, background, notify=progress.line)
            if start.checkpoint is not None and start.resume_state is not None:
                saver.resume_from(start.checkpoint, start.resume_state.scores)
                position = copy.deepcopy(start.resume_state.position)
            else:
                position = Position(epoch=config.run.resume)
            progress.line(f"{RUN_LINE}{shell_word(start.path)}\n{_describe(experiment, tf32)}")
            if start.checkpoint is not None:
                progress.line(f"resuming from {start.checkpoint.name}: {position.global_step:,} updates done")
            if start.checkpoint is None and fence is not None:
                _write_problems(experiment, start.folder, fence)
            with closing(saver):
                Trainer(experiment, engine, saver, progress, metrics, interrupts).fit(position)
            if manifest is not None and fence is not None:
                _write_summary(start.folder, position, saver, fence, time.perf_counter() - started)
                manifest.reason = SOLVED if position.solved else None
    best = start.folder.path / str(saver.scores.best_checkpoint or saver.scores.last_checkpoint)
    progress.line(
        f"done: {saver.scores.best_accuracy:.1%} on validation problems at stage {saver.scores.best_stage}, "
        f"{shell_word(best)}"
    )
    return start.folder


def _claim(experiment: Experiment, stack: ExitStack, watchdog: Watchdog, notify: Notify) -> Claim | None:
    """Compares the ingredients of the signature on all ranks; rank 0 then locks the run and chooses an attempt."""
    ranks, backbone = experiment.ranks, experiment.backbone
    # Checked now rather than when the first checkpoint is written, so that no training is lost.
    ranks.on_first(lambda: check_saving(backbone.tokenizer, backbone.model.config))
    ingredients, kernels = run_ingredients(experiment), experiment.kernels.describe(backbone.model)
    refuse_disagreement(ranks, lambda: {**without_code(ingredients), "kernels": kernels})
    with ranks.progress.during("waiting for the lock of the run", excused=True):
        return ranks.on_first(lambda: claim_attempt(experiment, ingredients, stack, notify, lambda: watchdog.stalled))


def _describe(experiment: Experiment, tf32: str | None) -> str:
    """What is trained, and how precisely, for the log."""
    description = experiment.describe()
    device = experiment.ranks.device
    if experiment.config.run.bf16 and not multiplies_bf16(device):
        description += f"\nrun.bf16=true, but {no_bf16(device)}: fp32 would be faster here"
    notes = [experiment.kernels.describe(experiment.backbone.model), tf32, *start_notes(experiment)]
    notes += experiment.objective.notes(experiment.problems.train(experiment.config.run.resume))
    return "\n".join([description, *(note for note in notes if note)])


def _start_engine(experiment: Experiment, start: Start, fence: Fence | None, notify: Notify) -> Engine:
    """Builds the engine and loads the state of the checkpoint, if there is one. All ranks call it; rank 0 passes the
    fence of the run."""
    config, ranks, resume_state = experiment.config, experiment.ranks, start.resume_state
    saved_by = ranks.size if resume_state is None else resume_state.world_size
    converts = saved_by != ranks.size and zero_stage(config) > 0
    engine = Engine(experiment.loop(), config, experiment.geometry, ranks, load_universal=converts)
    # All ranks had the same random state while the weights were drawn; dropout must differ from rank to rank.
    updates = 0 if resume_state is None else resume_state.position.global_step
    seed_generators(config.run.seed + ranks.rank + SEED_STEP * updates)
    if start.checkpoint is None:
        return engine
    folder = start.checkpoint / ENGINE
    engine.load_directions(folder)
    if not converts:
        engine.load_state(folder, same_ranks=saved_by == ranks.size)
        return engine
    notify(f"converting the state of {saved_by} ranks for {ranks.size}")
    out = ranks.from_first(None if fence is None else fence.part("universal"))
    assert out is not None
    with ranks.progress.during("converting a checkpoint", excused=True):
        ranks.first_decides(lambda: _convert(folder, out, fence))
    engine.load_state(out, same_ranks=False)
    ranks.wait()
    ranks.first_decides(lambda: remove(out))
    return engine


def _convert(folder: Path, out: Path, fence: Fence | None) -> None:
    assert fence is not None
    with fence.explained():
        convert_state(folder, out)


def _write_problems(experiment: Experiment, folder: RunFolder, fence: Fence) -> None:
    """Writes generated problems to the folder of the attempt, for inspection."""
    part = fence.part(folder.problems.name)
    with fence.explained():
        experiment.problems.write(part)
        for number, problems in enumerate(experiment.earlier):
            problems.write(part / f"schedule_{number}", with_test=False)
    if part.is_dir():
        fence.put(part, folder.problems)


def _write_summary(folder: RunFolder, position: Position, saver: RunSaver, fence: Fence, seconds: float) -> None:
    """Writes ``summary.json``: what the finished run has reached."""
    scores = saver.scores
    values: dict[str, Any] = {
        "epochs": position.epoch,
        "updates": position.global_step,
        "stage_switches": position.stage_switches,
        **({"data_switches": position.data_switches} if position.data_switches else {}),
        "best_checkpoint": _path(folder, scores.best_checkpoint),
        "best_accuracy": scores.best_accuracy,
        "best_stage": scores.best_stage,
        "last_checkpoint": _path(folder, scores.last_checkpoint),
        "last_accuracy": scores.last_accuracy,
        "duration_s": round(seconds, 1),
        "saving_s": round(saver.seconds, 1),
    }
    fence.write(folder.summary, json.dumps(values, indent=2) + "\n")


def _path(folder: RunFolder, name: str | None) -> str | None:
    return None if name is None else str(folder.path / name)
