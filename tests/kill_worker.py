"""Training that kills itself at a named point: the entry point of ``tests/kill_matrix.py``, never of users.

``KILL_AT`` holds ``point:count:rank``: the process of that rank dies by SIGKILL when it comes to the point for the
count-th time and has made the file ``KILLED``. Without it, this is ``coconut_ds/train.py``.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from coconut_ds.generation import thinking_engine
from coconut_ds.runs import manifest
from coconut_ds.train import main
from coconut_ds.training import engine
from coconut_ds.training import saver as run_saver


def die() -> None:
    """No cleaning up, no last words but a file that says so."""
    Path(os.environ["KILLED"]).touch()
    os.kill(os.getpid(), signal.SIGKILL)


class Countdown:
    """Counts visits to the point."""

    def __init__(self, count: int) -> None:
        self.left = count

    def visit(self) -> None:
        """The last of them is the end."""
        self.left -= 1
        if self.left == 0:
            die()


def before(owner: Any, name: str, countdown: Countdown) -> None:
    """Dies before a call."""
    wrap(owner, name, countdown, first=True)


def after(owner: Any, name: str, countdown: Countdown) -> None:
    """Dies after a call."""
    wrap(owner, name, countdown, first=False)


def wrap(owner: Any, name: str, countdown: Countdown, first: bool) -> None:
    """Puts a visit before or after a function."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if first:
            countdown.visit()
        result = original(*arguments, **options)
        if not first:
            countdown.visit()
        return result

    setattr(owner, name, wrapped)


def half_pruned(countdown: Countdown) -> None:
    """The folder has lost its name and one file."""
    original = run_saver.remove_folder

    def remove(folder: Path) -> None:
        if countdown.left == 1:
            gone = folder.with_name(f".{folder.name}.gone.{os.getpid()}")
            folder.rename(gone)
            (gone / "config.json").unlink()
        countdown.visit()
        original(folder)

    run_saver.remove_folder = remove


def half_written_manifest(countdown: Countdown) -> None:
    """Half of the new manifest lies beside the old one."""
    original = manifest.write_whole

    def write(path: Path, text: str) -> None:
        if countdown.left == 1:
            path.with_name(f".{path.name}.{os.getpid()}.part").write_text(text[: len(text) // 2])
        countdown.visit()
        original(path, text)

    manifest.write_whole = write


POINTS: dict[str, Callable[[Countdown], None]] = {
    "mid_update": lambda countdown: before(engine.Engine, "_step", countdown),
    "between_shards": lambda countdown: before(engine, "random_state", countdown),
    "before_rename": lambda countdown: before(run_saver, "put_in_place", countdown),
    "after_rename": lambda countdown: after(run_saver, "put_in_place", countdown),
    "pruning": half_pruned,
    "manifest": half_written_manifest,
    "stage_switch": lambda countdown: after(engine.Engine, "reset_optimizer", countdown),
    "evaluation": lambda countdown: before(thinking_engine.ThinkingEngine, "step", countdown),
}
ON_FIRST_ONLY = ("before_rename", "after_rename", "pruning", "manifest")
"""Points that only rank 0 comes to."""


if __name__ == "__main__":
    if "KILL_AT" in os.environ:
        point, count, rank = os.environ["KILL_AT"].split(":")
        if rank == os.environ.get("RANK", "0"):
            POINTS[point](Countdown(int(count)))
    raise SystemExit(main())
