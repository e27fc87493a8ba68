"""Real processes of runs: one of them gets a signal, or the shell that started the run ends."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launching
import pytest
import yaml
from kill_matrix import RUN
from launching import Process, environment, forking, starting

from coconut_ds.distributed.interrupts import POLL_S, Interrupts
from coconut_ds.distributed.launcher import launcher
from coconut_ds.files import damage

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = environment(DS_ACCELERATOR="cpu")
LONG = [*RUN, "num_epochs=1000", "save_every=1000", "save_every_steps=null", "max_latent_stage=0"]


@pytest.mark.slow
def test_a_run_in_the_background_outlives_the_shell_that_started_it(tmp_path):
    command = shlex.join([sys.executable, str(ROOT / "coconut_ds" / "train.py"), *LONG, f"run.save_path={tmp_path}"])
    script = f"{command} > {tmp_path}/log 2>&1 < /dev/null & echo $!; read"

    def written() -> int:
        return sum(path.stat().st_size for path in tmp_path.glob("*/*/*/metrics.jsonl"))

    with subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    ) as shell:
        process = int(shell.stdout.readline())
        try:
            assert until(written, 300), (tmp_path / "log").read_text()
            shell.stdin.close()
            assert shell.wait(30) is not None
            # Longer than ranks need to notice that their launcher is gone.
            time.sleep(3 * POLL_S)
            before = written()
            assert until(lambda: written() > before, 30), (tmp_path / "log").read_text()
        finally:
            os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_signals_of_terminals_and_schedulers_ask_to_stop(name):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with Interrupts(launched=False) as interrupts:
        assert not interrupts.requested
        signal.raise_signal(number)
        assert (interrupts.requested, interrupts.reason) == (True, name)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_a_signal_that_is_ignored_or_handled_stays_so(handler):
    """As SIGHUP under ``nohup``."""
    before = signal.signal(signal.SIGHUP, handler)
    try:
        with Interrupts(launched=False) as interrupts:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupts.requested
            assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


COMMANDS = {
    "process": (signal.SIGTERM, None),
    "process, before a time limit": (signal.SIGUSR1, None),
    "launcher": (signal.SIGINT, None),
    "launcher, terminated": (signal.SIGTERM, None),
    "its child, killed": (signal.SIGKILL, "deepspeed.launcher.launch"),
}
"""The signal, and part of the command line of the only process that gets it; None: the process that the test starts.
The runs whose name begins with "process" have no launcher; the others have two ranks under ``deepspeed``."""


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


def until(condition: Any, seconds: float) -> bool:
    """Waits until the condition holds; returns whether it did in time."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(holds)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_to_one_process_alone_ends_all_ranks_and_saves(tmp_path, name):
    number, child = COMMANDS[name]
    process = begin(number, 1 if name.startswith("process") else 2, tmp_path)
    try:
        records = lambda: [path for path in tmp_path.glob("*/*/*/metrics.jsonl") if path.stat().st_size > 1000]  # noqa: E731
        assert until(lambda: records() or process.poll() is not None, 300), (tmp_path / "log").read_text()
        target = process.pid
        if child is not None:
            (target,) = [pid for pid, line in processes(process.pid) if child in line]
        os.kill(target, number)
        assert until(lambda: process.poll() is not None and not list(processes(process.pid)), 90)
    finally:
        for pid, _ in processes(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    log_text = (tmp_path / "log").read_text()
    assert "saved; run the same command to resume" in log_text
    if name.startswith("process"):
        assert process.returncode == 75
    (record,) = records()
    manifest = yaml.safe_load((record.parent / "run_manifest.yaml").read_text())
    assert (manifest["status"], manifest["reason"]) == ("failed", "interrupted")
    checkpoint = record.parent / manifest["last_checkpoint"]
    assert damage(checkpoint, hashes=True) == []
    resume_state = json.loads((checkpoint / "engine" / "resume_state.json").read_text())
    assert resume_state["metrics_bytes"] == record.stat().st_size
