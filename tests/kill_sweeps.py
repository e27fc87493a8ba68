"""Kills sweeps at random moments and continues them: ``python tests/kill_sweeps.py [--launchers basic joblib]``.

A sweep of three methods and two seeds on small sums runs once without a kill. Then, for each of Hydra's launchers, the
whole process group of the same sweep gets SIGKILL at a random moment, ``--kills`` times, and the same command completes
it. No finished run may be trained again, no run may begin again, and at the end the losses and the table, apart from
its durations, must be those of the sweep that was left alone. With ``--forks`` the trainings and evaluations of the
sweeps that are killed are forks of a process that has imported everything, which saves most of the time.
"""

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from launching import environment

from coconut_ds.files import train_script

METHODS, SEEDS = ("coconut", "pause_as_thought", "no_thoughts"), (0, 1)
WORDS = (
    *("-m", f"method={','.join(METHODS)}", f"run.seed={','.join(map(str, SEEDS))}", "baseline=no_thoughts"),
    *("run=demo", "data=modular_sum", "num_terms=3", "size.train=256", "size.valid=32", "size.test=64"),
    *("model=gpt2_scratch_tiny", "tokenizer=dataset", "model.model_config_overrides.n_embd=32", "training=demo"),
    *("max_latent_stage=2", "num_epochs=6", "max_epochs_per_stage=2", "batch_size_training=64", "threads=1"),
)
WORKER = "--worker"
JOBLIB = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


def start(folder: Path, launcher: str, forks: bool) -> subprocess.Popen[str]:
    """Starts the sweep in a process group of its own; its output goes to ``log.txt``."""
    words = [*WORDS, *(JOBLIB if launcher == "joblib" else ())]
    program = [str(Path(__file__).resolve()), WORKER] if forks else ["-m", "coconut_ds.sweep"]
    command = [sys.executable, *program, *words]
    folder.mkdir(exist_ok=True)
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(
            command, cwd=folder, env=environment(), stdout=log, stderr=log, text=True, start_new_session=True
        )


def work(words: list[str]) -> int:
    """The sweep, in a process whose trainings are forks of it or of joblib's workers."""
    from coconut_ds.studies import sweep
    from coconut_ds.sweep import main
    from coconut_ds.training import launch

    assert launch.train, "imported for the forks"
    sweep.whole_job = sweep.job  # type: ignore[attr-defined]
    sweep.job = forking_job
    return main(words)


def forking_job(config: Any) -> float:
    """One run of the sweep. Another process of joblib gets this function by its content, and has the original job."""
    from coconut_ds.studies import harness, scoring, sweep

    harness.run_program = scoring.run_program = run_forked
    return float(getattr(sweep, "whole_job", sweep.job)(config))


def run_forked(command: list[str], show: Callable[[str], object], threads: int | None) -> int:
    """As ``harness.run_program``, for a training or an evaluation that Python alone starts."""
    from coconut_ds import evaluate, train

    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(theirs, 1)
            os.dup2(theirs, 2)
            os.close(ours)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
            program = train if command[1] == str(train_script()) else evaluate
            code = program.main(command[2:])
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    os.close(theirs)
    with os.fdopen(ours) as lines:
        for line in lines:
            show(line)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def complete(folder: Path, launcher: str, forks: bool = False) -> float:
    """Runs the sweep to its end; returns how long that took, in seconds."""
    began = time.monotonic()
    assert start(folder, launcher, forks).wait() == 0, (folder / "log.txt").read_text()[-3000:]
    return time.monotonic() - began


def kill_after(folder: Path, launcher: str, forks: bool, seconds: float) -> bool:
    """Starts the sweep and kills its group; returns whether it was still running."""
    process = start(folder, launcher, forks)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def launches(folder: Path) -> dict[str, tuple[str, int]]:
    """Status and number of launches of each attempt."""
    found = {}
    for path in sorted(folder.glob("outputs/sweep/**/run_manifest.yaml")):
        manifest = yaml.safe_load(path.read_text())
        found[str(path.parent)] = (manifest["status"], len(manifest["launches"]))
    return found


def losses(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The losses of each run."""
    found = {}
    for path in sorted(folder.glob("outputs/sweep/*/seed_*/**/metrics.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        name = "/".join(path.relative_to(folder / "outputs" / "sweep").parts[:2])
        assert name not in found, f"{name} was begun twice"
        found[name] = [(line["global_step"], line["train/loss"]) for line in lines if "train/loss" in line]
    return found


def table(folder: Path) -> tuple[list[str], list[list[str]]]:
    """The table and its CSV of runs, without durations."""
    out = folder / "outputs" / "sweep"
    lines = [line.rpartition("|")[0].rpartition("|")[0] or line for line in (out / "table.md").read_text().splitlines()]
    with (out / "runs.csv").open() as file:
        rows = [[value for key, value in row.items() if not key.endswith("_s")] for row in csv.DictReader(file)]
    return lines, rows


def check(folder: Path, launcher: str, forks: bool, alone: Path, moments: list[float]) -> None:
    """Kills and completes the sweep in a folder, and compares it with the one that was left alone."""
    for moment in moments:
        was_running = kill_after(folder, launcher, forks, moment)
        before = launches(folder)
        finished = [attempt for attempt, (status, _) in before.items() if status == "completed"]
        print(f"{launcher}: killed after {moment:.1f} s: {was_running}; {len(before)} runs, {len(finished)} finished")
    complete(folder, launcher, forks)
    after = launches(folder)
    assert all(after[attempt] == before[attempt] for attempt in finished), "a finished run was trained again"
    assert len(after) == len(METHODS) * len(SEEDS), f"runs were begun again: {sorted(after)}"
    assert {status for status, _ in after.values()} == {"completed"}
    assert losses(folder) == losses(alone)
    assert table(folder) == table(alone)
    print(f"{launcher}: completed; losses and table are equal to those without a kill")


def main() -> None:
    """Runs the checks in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launchers", nargs="*", choices=("basic", "joblib"), default=["basic", "joblib"])
    parser.add_argument("--kills", type=int, default=1, help="kills of each sweep (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="seed of the moments")
    parser.add_argument("--folder", type=Path, help="kept, with the sweep left alone (default: a temporary one)")
    parser.add_argument("--forks", action="store_true", help="fork the runs of the sweeps that are killed")
    options = parser.parse_args()
    if options.folder is not None:
        check_all(options, options.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        check_all(options, Path(folder))


def check_all(options: argparse.Namespace, folder: Path) -> None:
    """Runs the checks of all launchers in a folder."""
    seed = options.seed if options.seed is not None else int(time.time())
    draws = random.Random(seed)
    print(f"moments from seed {seed}")
    alone = folder / "alone"
    alone.mkdir(parents=True, exist_ok=True)
    if not (alone / "seconds").exists():
        (alone / "seconds").write_text(str(complete(alone, "basic")))
    seconds = float((alone / "seconds").read_text())
    print(f"without a kill: {seconds:.0f} s")
    for launcher in options.launchers:
        share = 1.0 if launcher == "basic" else 0.6
        moments = [draws.uniform(0, share * seconds) for _ in range(options.kills)]
        check(folder / launcher, launcher, options.forks, alone, moments)


if __name__ == "__main__":
    if sys.argv[1:2] == [WORKER]:
        raise SystemExit(work(sys.argv[2:]))
    main()
