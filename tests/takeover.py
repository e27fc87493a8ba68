"""Takes a run over from a launch that is suspended in the middle of a save, then lets that launch continue.

``python tests/takeover.py --trials 200 --json`` suspends a launch, the *loser*, at one of its steps: before it opens,
renames, makes or removes a file or folder, and before or after it flushes one. Another launch, the *winner*, finds the
lock silent, takes the run over and trains it to its end. Then the loser continues. Whatever changes below the run's
folder from then on was written by the loser; it may only remove the files with which it was releasing its lock. The
last line of output is one JSON object; ``bytes_by_the_loser`` must be 0.

Most trials run in this process, with real files and an engine whose state is small, and go through all steps in turn.
In each tenth trial, both launches are real processes that train with DeepSpeed, and the loser is stopped with SIGSTOP
at a random moment of a save.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kill_matrix import RUN
from launching import Process, environment, start
from making_saver import StillEngine, evaluation
from torch_engine import tiny_experiment

from coconut_ds.errors import CoconutError
from coconut_ds.runs.holder import Holder
from coconut_ds.runs.lock import FILE, RunLock
from coconut_ds.runs.resume_state import Position
from coconut_ds.train import main as train_main
from coconut_ds.training.claim import claim_attempt
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.ingredients import run_ingredients
from coconut_ds.training.run_record import open_record
from coconut_ds.training.saver import RunSaver

STEPS = (
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.listdir",
    "os.scandir",
    "os.utime",
    "os.truncate",
)
"""Audit events of Python before which the loser may be suspended."""
EPOCHS = 2
TRAIN = "--train"
"""First argument of a process that trains."""
OLD_S = 1000.0
OWN_LOCKS = f".{FILE}."
"""Beginning of the names of files with which a launch takes and releases the lock."""
ELSEWHERE = "COCONUT_TESTS_ELSEWHERE"
"""Environment variable: the process says that it runs on another machine, so others cannot check whether it runs."""


def launch(experiment: Experiment, host: str, holds: Callable[[], object] = lambda: None) -> None:
    """One launch of a tiny run on a machine of this name: claims the run, trains to the last epoch, completes it.
    ``holds`` is called once it holds the lock."""
    this, take = replace(Holder.this_process(), host=host, token=os.urandom(6).hex()), RunLock.__enter__

    def taken(lock: RunLock) -> RunLock:
        take(lock)
        holds()
        return lock

    with ExitStack() as stack:
        with (
            mock.patch.object(Holder, "this_process", return_value=this),
            mock.patch.object(RunLock, "__enter__", taken),
        ):
            claim = claim_attempt(experiment, run_ingredients(experiment), stack, lambda line: None)
        state = claim.start.resume_state
        engine, position = StillEngine(experiment), Position() if state is None else state.position
        with open_record(experiment, claim, claim.start.path, lambda line: None) as record:
            assert record is not None
            saver = RunSaver(
                experiment, claim.start.folder, claim.fence, record.manifest, record.metrics, claim.lock, notify=str
            )
            if claim.start.checkpoint is not None and state is not None:
                saver.resume_from(claim.start.checkpoint, state.scores)
            while position.epoch < EPOCHS:
                position.global_step += 1
                record.metrics.log({"global_step": position.global_step, "train/loss": 1.0})
                position.next_epoch(0)
                saver.after_epoch(engine, position, 0, evaluation(0.5), last=position.epoch == EPOCHS)


class Suspension:
    """Counts the steps of the loser, and calls a function at one of them, while all of the loser's threads wait."""

    def __init__(self) -> None:
        self._world, self._at, self._call = threading.RLock(), 0, lambda: None
        self._watching, self._busy, self.count = False, False, 0
        sys.addaudithook(self._note)
        fsync = os.fsync

        def slow_fsync(descriptor: int) -> None:
            self._visit()
            fsync(descriptor)
            self._visit()

        os.fsync = slow_fsync

    @contextmanager
    def at(self, step: int, call: Callable[[], None]) -> Iterator[None]:
        """Within it, ``call`` is made at this step, counted from 1; 0: never."""
        self.count, self._at, self._call = 0, step, call
        try:
            yield
        finally:
            self._watching = False

    def begin(self) -> None:
        """Counts from here on."""
        self._watching = True

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._watching and event in STEPS and not str(arguments[0]).endswith((".py", ".pyc")):
            self._visit()

    def _visit(self) -> None:
        with self._world:
            if not self._watching or self._busy:
                return
            self.count += 1
            if self.count != self._at:
                return
            self._busy = True
            try:
                self._call()
            finally:
                self._busy = False


def suspended_here(folder: Path, suspension: Suspension, step: int) -> tuple[int, int]:
    """The loser is suspended at this step in this process. Returns the number of bytes that it wrote afterwards, and 1
    if it ended with an error that does not say why, else 0."""
    experiment = tiny_experiment("run.name=tiny", f"run.save_path={folder}", "keep_last=1", "keep_best=false")
    before: dict[str, bytes] = {}
    unexplained = 0

    def take_over() -> None:
        make_silent(folder)
        launch(experiment, "winner")
        before.update(tree(folder))

    with suspension.at(step, take_over):
        try:
            launch(experiment, "loser", suspension.begin)
        except (CoconutError, OSError) as error:
            assert before, "only a launch that has lost its run may fail"
            unexplained += not isinstance(error, CoconutError)
    if step and not before:
        # This run took fewer steps than the one that was counted.
        shutil.rmtree(folder)
        return suspended_here(folder, suspension, suspension.count)
    return bytes_changed(before, tree(folder)) if step else 0, unexplained


def suspended_process(folder: Path, draw: random.Random) -> int:
    """Both launches are processes; the loser is stopped at a random moment of a save. Returns the bytes it wrote."""
    runs, log_file = folder / "runs", folder / "log"
    words = [Path(__file__), TRAIN, *RUN, "num_epochs=1", "save_every_steps=1", f"run.save_path={runs}"]
    environ = environment(DS_ACCELERATOR="cpu", LOGLEVEL="ERROR")
    with log_file.open("ab") as log:
        launched = [start(words, {**environ, ELSEWHERE: "1"}, stdout=log, stderr=log)]
        try:
            stop_in_a_save(launched[0], runs, draw)
            make_silent(runs)
            launched.append(start(words, environ, stdout=log, stderr=log))
            assert launched[1].wait(300) == 0, log_file.read_text()[-3000:]
            before = tree(runs)
            launched[0].send_signal(signal.SIGCONT)
            code = launched[0].wait(300)
        finally:
            for process in launched:
                process.kill()
                process.wait()
    # 0: it was stopped after it had completed the run, or was too fast to be stopped.
    assert code in (0, 2), f"the loser ended with {code}: {log_file.read_text()[-3000:]}"
    return bytes_changed(before, tree(runs))


def stop_in_a_save(process: Process, runs: Path, draw: random.Random) -> None:
    """Stops a launch a moment after it has begun to write one of its first checkpoints."""
    saves, wanted = set[str](), draw.randint(1, 3)
    while process.poll() is None and len(saves) < wanted:
        saves |= {str(path) for path in runs.glob("killed/*/.launch.*/*.checkpoint_*")}
    time.sleep(draw.random() * 0.03)
    process.send_signal(signal.SIGSTOP)


def make_silent(folder: Path) -> None:
    """Sets the last heartbeat of each lock back, as if the holder had been suspended for long."""
    for lock in folder.glob("*/*/lock.json"):
        then = lock.stat().st_mtime - OLD_S
        os.utime(lock, (then, then))


def tree(folder: Path) -> dict[str, bytes]:
    """What is below a folder: the content of files, by path, with an empty content for folders and links."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def bytes_changed(before: dict[str, bytes], after: dict[str, bytes]) -> int:
    """Bytes of files that are new, changed or gone; 1 for each other entry that is new or gone.

    A file with which the loser was releasing its lock, and which is gone, does not count: its name contains the loser's
    token.
    """
    changed = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    changed = [name for name in changed if name in after or not Path(name).name.startswith(OWN_LOCKS)]
    for name in changed:
        print(f"changed: {name}", file=sys.stderr)
    return sum(max(1, len(after.get(name, b"")), len(before.get(name, b""))) for name in changed)


def run_trials(folder: Path, trials: int, seed: int, processes: int) -> dict[str, Any]:
    """Makes the trials, of which some are with processes, and adds up what the losers wrote."""
    draw, suspension, written, unexplained = random.Random(seed), Suspension(), 0, 0
    for name in ("first", "counted"):
        suspended_here(folder / name, suspension, 0)
    steps, here = suspension.count, trials - processes
    for trial in range(here):
        # Spread over all steps, or through all of them again and again.
        step = 1 + (trial * steps // here if here < steps else trial % steps)
        more = suspended_here(folder / "trial", suspension, step)
        written, unexplained = written + more[0], unexplained + more[1]
        shutil.rmtree(folder / "trial")
    for trial in range(processes):
        (folder / f"processes_{trial}").mkdir()
        written += suspended_process(folder / f"processes_{trial}", draw)
    numbers = {"trials": trials, "with_processes": processes, "steps": steps}
    return {**numbers, "bytes_by_the_loser": written, "unexplained_errors": unexplained}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--processes", type=int, help="how many of them are with processes; by default a tenth")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="accepted for uniformity: the result is always JSON")
    options = parser.parse_args(argv)
    processes = options.trials // 10 if options.processes is None else options.processes
    with tempfile.TemporaryDirectory() as temporary:
        result = run_trials(Path(temporary), options.trials, options.seed, processes)
    print(json.dumps(result))
    return 1 if result["bytes_by_the_loser"] else 0


def train() -> int:
    """A training process, which may say that it runs on another machine."""
    sys.argv.remove(TRAIN)
    if ELSEWHERE in os.environ:
        this = Holder.this_process
        Holder.this_process = classmethod(lambda cls: replace(this(), host="elsewhere"))  # type: ignore[assignment]
    return train_main()


if __name__ == "__main__":
    raise SystemExit(train() if TRAIN in sys.argv else main())
