"""The message of a rank that ends is the last thing that its launcher's user sees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from imports import ROOT
from launching import environment
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from coconut_ds import train

LAUNCHER = """
import os, psutil, subprocess, sys, time
command = [sys.executable, *sys.argv[2:]]
ranks = [
    subprocess.Popen(command, env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"})
    for rank in (0, 1)
]
while not (code := next((rank.returncode for rank in ranks if rank.poll()), 0)):
    time.sleep(0.02)
for rank in ranks:
    try:
        tree = [*psutil.Process(rank.pid).children(recursive=True), psutil.Process(rank.pid)]
    except psutil.NoSuchProcess:
        continue
    for process in tree:
        process.terminate()
    psutil.wait_procs(tree, timeout=30)
time.sleep(0.2)
print(f"[ERROR] {command} exits with return code = {code}", flush=True)
sys.exit(code)
"""
"""What DeepSpeed's launcher does when a rank fails: it terminates all of them and their children, prints, and exits. It
looks once a second; this one looks all the time."""


def test_under_deepspeed_the_error_follows_the_dump_of_all_arguments() -> None:
    command = [sys.executable, "-c", LAUNCHER, "deepspeed.launcher.launch", str(ROOT / "coconut_ds" / "train.py")]
    done = subprocess.run(
        [*command, "lrr=1e-5", "run.save_path=it's (1)"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
        env=environment(),
    )
    *before, dump, error = done.stdout.splitlines()
    assert (done.returncode, before) == (2, [])
    assert dump.startswith("[ERROR]")
    assert "lrr=1e-5" in dump
    assert error == "error: lrr=1e-5: no group has this key; did you mean lr?"


def test_torchrun_ends_its_summary_with_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert train.main(["lrr=1"]) == 2
    assert capsys.readouterr().err == "error: lrr=1: no group has this key; did you mean lr?\n"
    failure = ProcessFailure(0, os.getpid(), 2, str(tmp_path / "error.json"))
    *_, last, _ = ChildFailedError("train.py", {0: failure}).format_msg().splitlines()
    assert last.strip() == "traceback : error: lrr=1: no group has this key; did you mean lr?"
