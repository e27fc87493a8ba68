"""A mirror of the metrics that dies, fails or hangs costs the run one warning and nothing else."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from launching import environment

from coconut_ds.training.child_processes import child_processes, kill
from coconut_ds.training.metrics import MetricsLog, read_metrics
from coconut_ds.training.mirror_thread import MirrorThread

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 0.2
KILL = """
import os, signal, sys, threading, time
from pathlib import Path
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.child_processes import child_processes
from coconut_ds.training.metrics import MetricsLog
from coconut_ds.training.mirror_thread import MirrorThread
from coconut_ds.training.wandb_mirror import WandbMirror
folder, number = Path(sys.argv[1]), int(sys.argv[2])
config = compose_config(["run=demo", "data=modular_sum", "model=gpt2_scratch_tiny", "training=demo"])
mirror = MirrorThread(WandbMirror(config, folder, "offline", "abc"), limit_s=2)
with MetricsLog(folder / "metrics.jsonl", [mirror], lambda line: print(line, flush=True)) as log:
    log.log({"global_step": 0})
    for child in child_processes():
        os.kill(child, number)
    for step in range(1, 40):
        print("a line", flush=True)
        log.log({"global_step": step})
        time.sleep(0.02)
print("end", flush=True)
"""
"""A run whose wandb process gets a signal."""


class Mirror:
    """Receives lines until a call of ``at`` fails or hangs."""

    name = "wandb"

    def __init__(self, at: str, error: BaseException | None = None) -> None:
        self.at, self.error, self.lines = at, error, 0
        self.abandoned = threading.Event()

    def _fail(self, name: str) -> None:
        if name == self.at and self.error is not None:
            raise self.error
        if name == self.at:
            # What hangs fails once it is abandoned.
            self.abandoned.wait(60)
            raise ConnectionError("gone")

    def log(self, values: dict[str, Any], step: int) -> None:
        if self.lines == 2:
            self._fail("log")
        self.lines += 1

    def close(self) -> None:
        self._fail("close")

    def abandon(self) -> None:
        self.abandoned.set()


@pytest.mark.parametrize("error", [None, ConnectionResetError("peer"), SystemExit(1), KeyboardInterrupt()])
@pytest.mark.parametrize("at", ["log", "close"])
def test_a_mirror_that_fails_or_hangs_is_given_up_with_one_warning(tmp_path, at, error):
    mirror, said = Mirror(at, error), []
    limit_s = LIMIT_S if error is None else 20.0
    began = time.monotonic()
    with MetricsLog(tmp_path / "metrics.jsonl", [MirrorThread(mirror, limit_s)], said.append) as log:
        for step in range(6):
            log.log({"global_step": step})
            if step > 2 and error is None:
                time.sleep(LIMIT_S)
    assert time.monotonic() - began < 15, "a mirror that hangs would do so for 60 s"
    assert [line["global_step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(6))
    name = f"did not answer for {1 if at == 'close' else 0} s" if error is None else f"{type(error).__name__}: {error}"
    name = name if isinstance(error, Exception) else f"MirrorError: {name}"
    assert said == [f"warning: wandb failed ({name}); metrics.jsonl has all metrics"]
    assert mirror.abandoned.is_set()
    assert mirror.lines == (2 if at == "log" else 6)


def test_a_mirror_that_works_gets_every_line_in_order(tmp_path):
    class Lines(Mirror):
        def log(self, values: dict[str, Any], step: int) -> None:
            lines.append((step, values["a"]))

    lines: list[tuple[int, int]] = []
    mirror, said = Lines("never"), []
    with MetricsLog(tmp_path / "metrics.jsonl", [MirrorThread(mirror)], said.append) as log:
        for step in range(100):
            log.log({"global_step": step, "a": -step})
    assert lines == [(step, -step) for step in range(100)]
    assert (said, mirror.abandoned.is_set()) == ([], False)


def test_the_end_waits_for_many_slow_lines_and_longer_for_the_last_call(tmp_path):
    class Slow(Mirror):
        def log(self, values: dict[str, Any], step: int) -> None:
            time.sleep(LIMIT_S / 4)
            super().log(values, step)

        def close(self) -> None:
            time.sleep(1.5 * LIMIT_S)

    mirror, said = Slow("never"), []
    with MetricsLog(tmp_path / "metrics.jsonl", [MirrorThread(mirror, LIMIT_S)], said.append) as log:
        for step in range(8):
            log.log({"global_step": step})
    assert (mirror.lines, said, mirror.abandoned.is_set()) == (8, [], False)


@pytest.mark.slow
def test_a_run_whose_wandb_process_is_killed_goes_on(tmp_path):
    done = kill_wandb(tmp_path, 9)
    assert done.stdout.count("a line\n") == 39


def kill_wandb(folder: Path, number: int) -> subprocess.CompletedProcess[str]:
    """A run whose wandb process gets this signal, to its end."""
    command = [sys.executable, "-c", KILL, str(folder), str(number)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning: wandb failed (") == 1
    assert done.stdout.endswith("end\n")
    assert "Traceback" not in done.stderr, done.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["global_step"] for line in lines] == list(range(40))
    return done


def test_only_own_children_are_killed():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert process.pid in child_processes()
        kill([process.pid, os.getppid()])
        assert process.wait() == -9
    assert process.pid not in child_processes()
