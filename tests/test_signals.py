"""Real processes of runs: one of them gets a signal, or the shell that started the run ends."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest
from launching import Process
from making_signals import ENVIRONMENT, LONG, ROOT, not_saved, processes, signalled
from waiting import wait_until

from coconut_ds.distributed.interrupts import POLL_S, Interrupts


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
            wait_until(written, 300, tmp_path / "log")
            shell.stdin.close()
            assert shell.wait(30) is not None
            # Longer than ranks need to notice that their launcher is gone.
            time.sleep(3 * POLL_S)
            before = written()
            wait_until(lambda: written() > before, 30, tmp_path / "log")
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
    "launcher": (signal.SIGINT, None),
    "launcher, terminated": (signal.SIGTERM, None),
    "its child, killed": (signal.SIGKILL, "deepspeed.launcher.launch"),
}
"""The signal, and part of the command line of the only process that gets it; None: the process that the test starts.
The run "process" has no launcher; the others have two ranks under ``deepspeed``."""


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_to_one_process_alone_ends_all_ranks_and_saves(tmp_path, name):
    number, child = COMMANDS[name]
    ranks = 1 if name == "process" else 2

    def target(process: Process) -> int:
        return process.pid if child is None else next(pid for pid, line in processes(process.pid) if child in line)

    code = signalled(number, ranks, tmp_path, target)
    assert not_saved(tmp_path) == ""
    if name == "process":
        assert code == 75
