"""Scenarios of ``resume_worker.py``: disks that are full or cannot be written to."""

import errno
import os
import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any

from resuming import Outcome, Worker, at
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coconut_ds.distributed.state_file import StateTree
from coconut_ds.training.engine import Engine
from coconut_ds.training.trainer import Trainer

ROOMS: dict[str, tuple[list[str], int, tuple[Any, str, int]]] = {
    "half of the state": ([], 400_000, (Trainer, "_log_update", 1)),
    "half of the weights": ([], 100_000, (Engine, "model_state", 1)),
    "no tokenizer": ([], 4096, (PreTrainedModel, "save_pretrained", 1)),
    # The first call is a trial at the start of the launch.
    "no resume state": ([], 0, (PreTrainedTokenizerBase, "save_pretrained", 2)),
    "no record": (["save_every=100", "save_every_steps=null"], 0, (Trainer, "_log_update", 1)),
    "nothing at the start": ([], 0, (Engine, "load_state", 1)),
}
"""For each case: overrides, the bytes that remain free, and the call after which only they are free."""


def full_disk(worker: Worker) -> Outcome:
    """Leaves less and less room on a disk, then enough again."""
    place = worker.place("small_disk")
    place.path.mkdir()
    mounted = mount(place.path, "size=64m")
    if mounted:
        return {"skipped": mounted}
    try:
        place.killed(7)
        before = place.tree()
        cases = {}
        for name, (overrides, room, after) in ROOMS.items():
            fill = partial(shrink, place.path, room)
            cases[name] = {**place.launch(*overrides, hook=at(*after, fill)), **place.state()}
            mount(place.path, "remount,size=64m")
            # A full disk keeps the launch from removing its lock, and its process, this one, is alive.
            (place.attempt.parent / "lock.json").unlink(missing_ok=True)
        mount(place.path, "remount,ro")
        whole = place.tree()
        read_only = place.launch()
        untouched = place.tree() == whole
        mount(place.path, "remount,rw")
        kept = [name for name in before if "checkpoint_" in name and place.tree().get(name) != before[name]]
        ended = worker.end(place)
    finally:
        subprocess.run(["umount", "--lazy", str(place.path)], check=False)
    return {"cases": cases, "read_only": {**read_only, "untouched": untouched}, "changed": kept, "ended": ended}


def one_cannot_write(worker: Worker, rank: int) -> Outcome:
    """Fills the disk of one of two ranks while it writes its part of the second checkpoint; then makes room."""
    place, began = worker.place(f"full_disk_of_{rank}"), time.monotonic()

    def fail(*arguments: Any) -> None:
        if worker.ranks.rank == rank:
            raise OSError(errno.ENOSPC, "No space left on device")

    # Each rank saves its shard of the optimizer's state, rank 0 the weights before.
    broken = at(StateTree, "write", 5 if rank == 0 else 3, fail, first=True)
    errors = worker.ranks.gather(place.launch(hook=broken)["error"])
    seconds = time.monotonic() - began
    state = place.state()
    worker.ranks.wait()
    return {"errors": errors, "seconds": seconds, "failed": state, "ended": {**place.launch(), **place.state()}}


def mount(path: Path, options: str) -> str | None:
    """Mounts a file system in memory; returns the error, or None."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else done.stderr.strip() or "mount failed"


def shrink(path: Path, room: int, *arguments: Any) -> None:
    """Shrinks the file system until ``room`` bytes are free."""
    facts = os.statvfs(path)
    used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    assert mount(path, f"remount,size={max(used + room, facts.f_frsize)}") is None
