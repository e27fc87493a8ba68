"""Long runs in real processes that get a signal, and whether they have saved."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import launching
import yaml
from kill_matrix import RUN
from launching import Process, environment, forking, starting
from waiting import wait_until

from coconut_ds.distributed.launcher import launcher
from coconut_ds.files import damage

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = environment(DS_ACCELERATOR="cpu")
LONG = [*RUN, "num_epochs=1000", "save_every=1000", "save_every_steps=null", "max_latent_stage=0"]


def begin(number: signal.Signals, ranks: int, folder: Path) -> Process:
    """Starts the run in a session of its own: with SIGINT in real processes, else forked."""
    script = [str(ROOT / "coconut_ds" / "train.py"), *LONG, f"run.save_path={folder}"]
    with (folder / "log").open("wb") as log:
        if number != signal.SIGINT:
            command = forking([*(launcher(ranks) if ranks > 1 else ()), *script])
            return launching.start(command, ENVIRONMENT, stdout=log, stderr=log)
        # A shell makes its background jobs ignore Ctrl-C, and processes started by these tests would inherit that.
        return subprocess.Popen(
            [*starting(ranks), *script],
            stdout=log,
            stderr=log,
            env=ENVIRONMENT,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def processes(session: int) -> Iterator[tuple[int, str]]:
    """Id and command line of each process of a session that is still running."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) == session and fields[0] not in (b"Z", b"X"):
                yield int(path.name), (path / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue


def records(folder: Path) -> list[Path]:
    """The record of the run in this folder, once it has made some updates."""
    return [path for path in folder.glob("*/*/*/metrics.jsonl") if path.stat().st_size > 1000]


def signalled(number: signal.Signals, ranks: int, folder: Path, target: Callable[[Process], int]) -> int | None:
    """Starts a run, signals one of its processes after some updates, and waits until all have ended; returns the exit
    code of the process that was started."""
    process = begin(number, ranks, folder)
    try:
        wait_until(lambda: records(folder) or process.poll() is not None, 300, folder / "log")
        os.kill(target(process), number)
        wait_until(lambda: process.poll() is not None and not list(processes(process.pid)), 90)
    finally:
        for pid, _ in processes(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    return process.returncode


def not_saved(folder: Path) -> str:
    """What is wrong with how the run has ended; empty if it was interrupted and has saved everything."""
    log = (folder / "log").read_text()
    if "saved; run the same command to resume" not in log:
        return log[-1000:]
    (record,) = records(folder)
    manifest = yaml.safe_load((record.parent / "run_manifest.yaml").read_text())
    if (manifest["status"], manifest["reason"]) != ("failed", "interrupted"):
        return f"status {manifest['status']}, reason {manifest['reason']}"
    checkpoint = record.parent / manifest["last_checkpoint"]
    if found := damage(checkpoint, hashes=True):
        return "; ".join(found)
    resume_state = json.loads((checkpoint / "engine" / "resume_state.json").read_text())
    if resume_state["metrics_bytes"] != record.stat().st_size:
        return "the record has lines of updates that were not saved"
    return ""
