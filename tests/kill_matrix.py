"""Kills a tiny run again and again, and compares its result bit for bit with a run that was never disturbed.

``python tests/kill_matrix.py --kills 25 --seed 0 --ranks 1`` kills the run at each of the named points, then at random
moments, and starts the same command again until the run is complete. In every fourth launch, one rank or all of them
are stopped for a while (SIGSTOP) before the kill; in another fourth, the disk refuses a random write instead (ENOSPC or
EIO). It compares the last checkpoint's weights, optimizer state, random states, position and scores, and
``metrics.jsonl`` without ``perf/*`` and times. The last line of output is one JSON object; ``kills`` counts every
launch that was disturbed. More overrides may follow, such as ``objective=codi deepspeed=zero3``. ``--signal TERM`` asks
the run to stop instead of killing it; then no update may be made twice. ``REAL_PROCESSES=1`` in the environment starts
each launch as a fresh process (see ``launching.py``).
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from equal_runs import differences
from launching import Process, start

from coconut_ds.runs.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
RUN = (
    *("run=demo", "run.name=killed", "data=modular_sum", "num_terms=3", "size={train: 160, valid: 24, test: 24}"),
    "max_new_tokens=8",
    *("model=gpt2_scratch_tiny", "tokenizer=dataset", "training=demo", "max_latent_stage=2", "c_thought=1"),
    *("advance=epochs", "epochs_per_stage=2", "num_epochs=6", "global_batch_size=32", "batch_size_training=16"),
    *("batch_size_eval=8", "save_every_steps=2", "keep_last=2", "run.wandb=disabled"),
    # Dropout draws random numbers in each update: a resume that forgets their state shows.
    "model.model_config_overrides={n_layer: 1, n_head: 2, n_embd: 32, "
    "resid_pdrop: 0.1, embd_pdrop: 0.1, attn_pdrop: 0.1}",
)
POINTS = {
    "mid_update": 9,
    "between_shards": 4,
    "before_rename": 3,
    "after_rename": 5,
    "pruning": 2,
    "manifest": 4,
    "stage_switch": 1,
    "evaluation": 40,
    "disk_fault": 30,
    "stall": 6,
}
"""The visit to each point at which the run dies, meets an error of the disk, or is stopped for a while, then killed."""
LAST_WRITE, LAST_OF_OTHERS = 60, 6
"""At random, the disk refuses one of this many first writes of rank 0, or of the writes of another rank."""
STALL_S = 0.3
ON_FIRST_ONLY = {"before_rename", "after_rename", "pruning", "manifest", "disk_fault"}
PATIENCE_S = 300.0
MISSES = 3
"""Launches that may end before they reach a point. A resumed launch visits it less often."""


class Matrix:
    """The launches of one run, in one folder, with one number of ranks."""

    def __init__(self, folder: Path, ranks: int, overrides: Sequence[str]) -> None:
        self.folder, self.ranks, self.overrides = folder, ranks, list(overrides)
        self.launches = 0
        self.died = folder / "died"
        """A file that a process makes when it dies at a point."""

    def start(self, name: str, kill_at: str | None = None) -> Process:
        """Launches the run called ``name``; with ``kill_at``, a rank dies at that point."""
        self.launches += 1
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "LOGLEVEL": "ERROR"}
        environment.pop("KILL_AT", None)
        if kill_at is not None:
            environment |= {"KILL_AT": kill_at, "KILLED": str(self.died)}
        # A global batch is at least one micro batch of each rank.
        micro_batch = f"batch_size_training={min(16, 32 // self.ranks)}"
        options = [*RUN, micro_batch, *self.overrides, f"run.save_path={self.folder / name}"]
        worker = [ROOT / "tests" / "kill_worker.py", *options]
        with (self.folder / f"{name}.log").open("ab") as log:
            return start(worker, environment, self.ranks, stdout=log, stderr=log)

    def attempt(self, name: str) -> Path | None:
        """The only attempt of a run, or None."""
        found = list((self.folder / name).glob("killed/*/*/config.yaml"))
        assert len(found) <= 1, f"a killed run was continued in another attempt: {found}"
        return found[0].parent if found else None

    def updates(self, name: str) -> int:
        """Number of updates in the record so far; updates that were made again count once."""
        attempt = self.attempt(name)
        path = attempt / "metrics.jsonl" if attempt else None
        return path.read_text().count('"train/loss"') if path and path.exists() else 0

    def finish(self, name: str) -> None:
        """Launches the run until it is complete."""
        for _ in range(3):
            process = self.start(name)
            if process.wait(PATIENCE_S) == 0:
                return
        raise SystemExit(f"{name} does not complete: see {self.folder / name}.log")


def end(process: Process, number: int) -> None:
    """Kills the process group, or signals the launched process, and waits until the whole group is gone."""
    # The launch may have ended a moment ago.
    with contextlib.suppress(ProcessLookupError):
        if number == signal.SIGKILL:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
    process.wait(PATIENCE_S)
    for _ in range(600):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    raise SystemExit("ranks outlived their launcher by a minute")


def stall(process: Process, draw: random.Random) -> None:
    """Stops all processes of a launch, or one of them, for a while."""
    pids = group(process.pid)
    chosen = pids if draw.random() < 0.5 else [draw.choice(pids)] if pids else []
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for pid in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        time.sleep(STALL_S)


def group(leader: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        # A process may end while this looks at it.
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[2]) == leader:
                found.append(int(path.parent.name))
    return found


def kill_at_random(matrix: Matrix, draw: random.Random, number: int, stalls: bool) -> bool:
    """Lets the run make some updates, then ends it; before, with ``stalls``, it is stopped for a while. Returns whether
    it was ended; it may have completed before."""
    before = matrix.updates("killed")
    process = matrix.start("killed")
    wanted, since = before + draw.randint(0, 4), time.monotonic()
    while process.poll() is None and matrix.updates("killed") < wanted and time.monotonic() - since < PATIENCE_S:
        time.sleep(0.01)
    time.sleep(draw.random() * 0.2)
    if stalls and process.poll() is None:
        stall(process, draw)
    code = process.poll()
    if code is None:
        end(process, number)
    elif code != 0:
        raise SystemExit(f"a launch ended by itself with exit code {code}: see {matrix.folder / 'killed.log'}")
    return code is None


def disk_fault_at_random(matrix: Matrix, draw: random.Random) -> bool:
    """Launches the run so that the disk refuses a write of a rank. Returns whether it came to that write."""
    rank = draw.randrange(matrix.ranks)
    return die_at_point(matrix, "disk_fault", draw.randint(1, LAST_OF_OTHERS if rank else LAST_WRITE), draw, rank)


def die_at_point(matrix: Matrix, point: str, visit: int, draw: random.Random, rank: int | None = None) -> bool:
    """Launches the run so that a rank dies or meets an error of the disk at a point. Returns whether it came there."""
    if rank is None:
        rank = 0 if point in ON_FIRST_ONLY else draw.randrange(matrix.ranks)
    matrix.died.unlink(missing_ok=True)
    process = matrix.start("killed", f"{point}:{visit}:{rank}")
    if point == "stall":
        while process.poll() is None and not matrix.died.exists():
            time.sleep(0.01)
        stall(process, draw)
        time.sleep(draw.random() * 0.2)
        end_group(process)
    code = process.wait(PATIENCE_S)
    end_group(process)
    died = matrix.died.exists()
    if code != 0 and not died:
        raise SystemExit(f"a launch ended by itself with exit code {code}: see {matrix.folder / 'killed.log'}")
    return died


def end_group(process: Process) -> None:
    """Kills the ranks of a launch that have outlived it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def run_matrix(folder: Path, kills: int, seed: int, ranks: int, term: bool, overrides: Sequence[str]) -> dict[str, Any]:
    """Makes all kills and compares each run that was killed with the undisturbed one."""
    draw = random.Random(seed)
    matrix = Matrix(folder, ranks, overrides)
    matrix.finish("undisturbed")
    points = [] if term else list(POINTS.items())
    if "objective=grpo" in overrides:
        # All of its epochs are at the last stage. With ``grpo.steps_per_generation=2``, the tenth update is the second
        # one of an iteration.
        visits = {**POINTS, "mid_update": 10}
        points = [(point, visits[point]) for point, _ in points if point != "stage_switch"]
    found: list[str] = []
    done = lost = runs = missed = stalls = faults = 0
    matrix.launches = 0
    while done < kills:
        kind = "kill" if term else draw.choice(("kill", "kill", "stall", "fault"))
        if not points and kind == "fault":
            came = disk_fault_at_random(matrix, draw)
            done, faults = done + came, faults + came
        elif not points:
            ended = kill_at_random(matrix, draw, signal.SIGTERM if term else signal.SIGKILL, kind == "stall")
            done, stalls = done + ended, stalls + (ended and kind == "stall")
        elif die_at_point(matrix, *points[0], draw):
            point, _ = points.pop(0)
            done, missed = done + 1, 0
            stalls, faults = stalls + (point == "stall"), faults + (point == "disk_fault")
        elif (missed := missed + 1) == MISSES:
            raise SystemExit(f"the run never reaches the point {points[0][0]}")
        attempt = matrix.attempt("killed")
        if done == kills or (attempt is not None and (attempt / "summary.json").exists()):
            lost += compare(matrix, found)
            runs += 1
            (folder / "killed").rename(folder / f"killed_{runs}")
    numbers = {"kills": done, "resumes": matrix.launches - runs, "mismatches": len(found), "lost_updates": lost}
    numbers |= {"stalls": stalls, "disk_faults": faults}
    return {**numbers, "points_left": [point for point, _ in points], "ranks": ranks, "differences": found[:10]}


def compare(matrix: Matrix, found: list[str]) -> int:
    """Completes the killed run and adds its differences to ``found``. Returns the number of updates made twice."""
    status = read_manifest(attempt / "run_manifest.yaml") if (attempt := matrix.attempt("killed")) else None
    if status is None or status.status != "completed":
        # A run that is complete would be started anew.
        matrix.finish("killed")
    left, right = matrix.attempt("killed"), matrix.attempt("undisturbed")
    assert left is not None
    assert right is not None
    found += differences(left, right)
    tail = left / "metrics.lost.jsonl"
    return tail.read_text().count('"train/loss"') if tail.exists() else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--signal", choices=("KILL", "TERM"), default="KILL")
    parser.add_argument("--keep", type=Path, help="folder for the runs; by default a temporary one")
    parser.add_argument("overrides", nargs="*", help="more overrides for the run, e.g. deepspeed=zero3")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        arguments = (options.kills, options.seed, options.ranks, options.signal == "TERM", options.overrides)
        result = run_matrix(folder, *arguments)
    print(json.dumps(result))
    return 1 if result["mismatches"] or (options.signal == "TERM" and result["lost_updates"]) else 0


if __name__ == "__main__":
    raise SystemExit(main())
