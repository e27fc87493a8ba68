"""Training that kills itself at a named point. Only ``tests/kill_matrix.py`` starts it.

The environment variable ``KILL_AT`` holds ``point:count:rank``. When the process of that rank reaches the point for the
count-th time, it creates the file named by ``KILLED`` and kills itself with SIGKILL. Without ``KILL_AT``, the script
does the same as ``coconut_ds/train.py``.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.distributed.state_file import StateTree
from coconut_ds.generation import thinking_engine
from coconut_ds.runs.fencing import Fence
from coconut_ds.train import main
from coconut_ds.training import engine


def die() -> None:
    """Creates the file ``KILLED``, then kills this process without any cleaning up."""
    Path(os.environ["KILLED"]).touch()
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Counts the visits to a point."""

    def __init__(self, count: int) -> None:
        self.left = self.number = count

    def visit(self) -> None:
        """Kills the process on the last visit."""
        self.left -= 1
        if self.left == 0:
            die()


def before(owner: Any, name: str, countdown: Countdown) -> None:
    """Counts a visit before each call of a function."""
    wrap(owner, name, countdown, first=True)


def after(owner: Any, name: str, countdown: Countdown) -> None:
    """Counts a visit after each call of a function."""
    wrap(owner, name, countdown, first=False)


def wrap(owner: Any, name: str, countdown: Countdown, first: bool) -> None:
    """Replaces a function by one that counts a visit before or after the call."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if first:
            countdown.visit()
        result = original(*arguments, **options)
        if not first:
            countdown.visit()
        return result

    setattr(owner, name, wrapped)


def putting(countdown: Countdown, first: bool) -> None:
    """Dies before (``first``) or after a complete checkpoint gets its name."""
    original = Fence.put

    def put(fence: Fence, part: Path, target: Path) -> None:
        counts = target.name.startswith("checkpoint_")
        if counts and first:
            countdown.visit()
        original(fence, part, target)
        if counts and not first:
            countdown.visit()

    patch(Fence, "put", put)


def between_shards(countdown: Countdown) -> None:
    """Dies after it has written its part of the engine's state, before its random states."""
    original = StateTree.write

    def write(tree: StateTree, path: Path) -> None:
        if path.name.startswith("random_"):
            countdown.visit()
        original(tree, path)

    patch(StateTree, "write", write)


def half_pruned(countdown: Countdown) -> None:
    """Dies while a checkpoint is removed: it has been renamed and has lost one file."""
    original = Fence.discard

    def discard(fence: Fence, path: Path) -> None:
        if countdown.left == 1:
            gone = fence.part(path.name)
            path.rename(gone)
            (gone / "config.json").unlink()
        countdown.visit()
        original(fence, path)

    patch(Fence, "discard", discard)


def half_written_manifest(countdown: Countdown) -> None:
    """Dies while the manifest is replaced: half of the new one is in the launch folder."""
    original = Fence.write

    def write(fence: Fence, path: Path, text: str) -> None:
        if path.name == "run_manifest.yaml":
            if countdown.left == 1:
                fence.part(path.name).write_text(text[: len(text) // 2])
            countdown.visit()
        original(fence, path, text)

    patch(Fence, "write", write)


def disk_fault(countdown: Countdown) -> None:
    """A write meets an error of the disk: in turn, the disk is full or broken."""

    def refuse() -> None:
        countdown.left -= 1
        if countdown.left == 0:
            Path(os.environ["KILLED"]).touch()
            raise OSError((errno.ENOSPC, errno.EIO)[countdown.number % 2], "injected")

    for owner, name in ((os, "fsync"), (os, "replace"), (StateTree, "write"), (Path, "rename")):
        original = getattr(owner, name)

        def refusing(*arguments: Any, original: Any = original, **options: Any) -> Any:
            refuse()
            return original(*arguments, **options)

        patch(owner, name, refusing)


def stall(countdown: Countdown) -> None:
    """Tells that an update has begun; the program that started this one then stops one rank or all."""
    original = engine.Engine._step

    def step(*arguments: Any) -> Any:
        countdown.left -= 1
        if countdown.left == 0:
            Path(os.environ["KILLED"]).touch()
        return original(*arguments)

    patch(engine.Engine, "_step", step)


def patch(owner: Any, name: str, value: Any) -> None:
    """Replaces an attribute for the rest of the process."""
    setattr(owner, name, value)


POINTS: dict[str, Callable[[Countdown], None]] = {
    "mid_update": lambda countdown: before(engine.Engine, "_step", countdown),
    "between_shards": between_shards,
    "before_rename": lambda countdown: putting(countdown, first=True),
    "after_rename": lambda countdown: putting(countdown, first=False),
    "pruning": half_pruned,
    "manifest": half_written_manifest,
    "stage_switch": lambda countdown: after(engine.Engine, "reset_optimizer", countdown),
    "disk_fault": disk_fault,
    "stall": stall,
    "evaluation": lambda countdown: before(thinking_engine.ThinkingEngine, "step", countdown),
}


if __name__ == "__main__":
    if "KILL_AT" in os.environ:
        point, count, rank = os.environ["KILL_AT"].split(":")
        if rank == os.environ.get("RANK", "0"):
            POINTS[point](Countdown(int(count)))
    raise SystemExit(main())
