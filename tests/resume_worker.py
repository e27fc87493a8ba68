"""Ends, damages and resumes a tiny run in many ways in one process, and writes down what came of it.

    python tests/resume_worker.py OUT.json FOLDER alone
    deepspeed --num_accelerators 2 tests/resume_worker.py OUT.json FOLDER before|after

Started by ``test_resume.py``, which judges. ``before`` and ``after`` are what two ranks do of a run whose number of
ranks changes, before and after one process had its turn. ``SCENARIOS="grown kept"`` in the environment picks some.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from kill_matrix import RUN, differences
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.evaluation.evaluator import Evaluator
from coconut_ds.evaluation.session import evaluate
from coconut_ds.files import SEAL, damage, seal
from coconut_ds.runs.holder import Holder
from coconut_ds.runs.manifest import read_manifest
from coconut_ds.settings.compose import compose_config, compose_eval_config
from coconut_ds.training.engine import Engine, start_ranks, stop_ranks
from coconut_ds.training.launch import train
from coconut_ds.training.metrics import read_metrics
from coconut_ds.training.trainer import Trainer

SMALL = [*RUN, "size.train=128", "num_epochs=4", "save_every_steps=3"]
"""Four updates an epoch, so checkpoints 0_3, 1, 1_2, 2, 2_1, 3, 3_3 and 4; the last two are kept, and the best."""
DIES_AT = 11
"""After it the newest checkpoint is 2_1, of update 9, the one before it 2; updates 10 and 11 are in the record alone.
"""
Outcome = dict[str, Any]


class Died(BaseException):
    """A process that is gone. Nothing catches it; what the code writes on its way out is undone by ``killed``."""


def die(*arguments: Any) -> None:
    """The end."""
    raise Died


def asked_to_stop(number: signal.Signals) -> Callable[..., None]:
    """Signals this process."""
    return lambda *arguments: os.kill(os.getpid(), number)


@contextlib.contextmanager
def at(owner: Any, name: str, visit: int, action: Callable[..., Any], first: bool = False) -> Iterator[None]:
    """Calls ``action`` after (or before) the call of ``owner.name`` with this number."""
    original, calls = getattr(owner, name), 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls == visit
        if mine and first:
            action(*arguments)
        result = original(*arguments, **options)
        if mine and not first:
            action(*arguments)
        return result

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, original)


def after_update(count: int, action: Callable[..., Any] = die) -> contextlib.AbstractContextManager[None]:
    """``action`` once the launch has made and recorded so many updates."""
    return at(Trainer, "_log_update", count, action)


class Place:
    """A folder that the launches of one scenario share."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks

    def launch(self, *overrides: str, hook: contextlib.AbstractContextManager[Any] | None = None) -> Outcome:
        """The same command line again; what it said and how it ended."""
        said, error = io.StringIO(), None
        with contextlib.redirect_stdout(said), hook or contextlib.nullcontext():
            try:
                train(compose_config([*SMALL, *overrides, f"run.save_path={self.path}"]), self.ranks)
            except (Exception, Died, KeyboardInterrupt) as found:
                error = f"{type(found).__name__}: {found}"
        return {"error": error, "said": said.getvalue(), "attempts": [path.name for path in self.attempts()]}

    def killed(self, updates: int, *overrides: str) -> Outcome:
        """A launch that dies after so many updates and had no time to say so."""
        outcome = self.launch(*overrides, hook=after_update(updates))
        path = self.attempt / "run_manifest.yaml"
        if self.ranks.is_first:
            values = yaml.safe_load(path.read_text())
            path.write_text(yaml.safe_dump({**values, "status": "running", "reason": None, "ended": None}))
        return outcome

    def attempts(self) -> list[Path]:
        """All of them, the oldest first."""
        return sorted(path.parent for path in self.path.glob("*/*/*/config.yaml"))

    @property
    def attempt(self) -> Path:
        """The newest one."""
        return self.attempts()[-1]

    @property
    def newest(self) -> Path:
        """Its newest checkpoint."""
        return max(self.attempt.glob("checkpoint_*"), key=lambda path: [int(part) for part in path.name.split("_")[1:]])

    def state(self) -> Outcome:
        """What stands in the newest attempt."""
        attempt = self.attempt
        manifest = read_manifest(attempt / "run_manifest.yaml")
        lost = attempt / "metrics.lost.jsonl"
        return {
            "manifest": None if manifest is None else manifest.model_dump(mode="json"),
            "checkpoints": sorted(path.name for path in attempt.glob("checkpoint_*")),
            "damaged": [path.name for path in attempt.glob("checkpoint_*") if damage(path, hashes=True)],
            "hidden": sorted(path.name for path in attempt.glob(".*")),
            "steps": steps(attempt / "metrics.jsonl"),
            "lost": steps(lost) if lost.exists() else None,
        }

    def tree(self) -> dict[str, str]:
        """All files with a hash of their content."""
        return {
            str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.path.rglob("*"))
            if path.is_file()
        }


class Worker:
    """All scenarios, and the runs that several of them start from."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks
        self.undisturbed = self.place("undisturbed")
        self.killed = self.place("killed")

    def prepare(self) -> None:
        """The run left alone, and one that died."""
        done = self.undisturbed.launch()
        assert done["error"] is None, done
        self.killed.killed(DIES_AT)

    def place(self, name: str) -> Place:
        """An empty place."""
        return Place(self.folder / name, self.ranks)

    def copy(self, name: str, of: Place | None = None) -> Place:
        """A copy of the run that died, or another."""
        shutil.copytree((of or self.killed).path, self.folder / name)
        return self.place(name)

    def end(self, place: Place, *overrides: str) -> Outcome:
        """Carries on to the end and compares with the run left alone."""
        outcome = place.launch(*overrides)
        found = differences(place.attempt, self.undisturbed.attempt) if outcome["error"] is None else None
        return {**outcome, **place.state(), "differences": found}

    # --- which attempt

    def grown(self) -> Outcome:
        """Two epochs, then four; then the same again in each mode."""
        place = self.place("grown")
        place.launch("num_epochs=2")
        first = place.state()
        ended = self.end(place)
        summaries = [
            {
                **(values := json.loads((one.attempt / "summary.json").read_text())),
                **{key: Path(values[key]).name for key in ("best_checkpoint", "last_checkpoint") if values[key]},
                "duration_s": None,
                "saving_s": None,
            }
            for one in (place, self.undisturbed)
        ]
        record = (place.attempt / "metrics.jsonl").read_bytes()
        forced = {**place.launch("resume_mode=force"), **place.state()}
        forced["same_record"] = (place.attempt / "metrics.jsonl").read_bytes() == record
        attempts = {}
        for name, mode in (("auto", "auto"), ("auto again", "auto"), ("never", "never"), ("forced", "force")):
            # Attempts of one second have no order.
            time.sleep(1)
            attempts[name] = place.killed(1, f"resume_mode={mode}")["attempts"]
        return {"first": first, "ended": ended, "summaries": summaries, "forced": forced, "attempts": attempts}

    def asked(self) -> Outcome:
        """``run.resume_attempt_id``, under the same and another signature."""
        place = self.copy("asked")
        before, wanted = place.tree(), f"resume_attempt_id={place.attempt.name}"
        unknown = place.launch("resume_attempt_id=19990101-000000-abcd")
        refused = place.launch(wanted, "lr=1e-3")
        untouched = place.tree() == before
        folders = sorted(path.name for path in place.path.glob("*/*"))
        half = place.launch(wanted, "lr=1e-3", "seed=1", "run.allow_mismatch=[training.lr]")
        allowed = place.launch(wanted, "lr=1e-3", "run.allow_mismatch=[training.lr]", hook=after_update(2))
        lines = read_metrics(place.attempt / "metrics.jsonl")
        rates = [line["train/lr"] for line in lines if "train/lr" in line]
        of_group = place.launch(wanted, "lr=1e-3", "run.allow_mismatch=[training]", hook=after_update(1))
        same = self.copy("asked_same")
        return {
            **{"unknown": unknown, "refused": refused, "untouched": untouched, "folders": folders, "half": half},
            **{"allowed": allowed, "rates": rates, "of_group": of_group, "state": place.state()},
            "same": self.end(same, wanted, "resume_mode=never"),
        }

    # --- damage

    def damaged(self) -> Outcome:
        """One damage after the other to the newest checkpoint, or to the manifest."""
        outcomes = {}
        for name, spoil in DAMAGES.items():
            place = self.copy(f"damaged_{name.replace(' ', '_')}")
            spoil(place.newest if name not in MANIFESTS else place.attempt)
            outcomes[name] = self.end(place)
            outcomes[name]["executed"] = (place.attempt / "executed").exists()
            shutil.rmtree(place.path)
        return outcomes

    def all_damaged(self) -> Outcome:
        """No checkpoint is left."""
        place = self.copy("all_damaged")
        for path in place.attempt.glob("checkpoint_*"):
            truncated(path)
        before = place.tree()
        outcome = place.launch()
        outcome["untouched"] = place.tree() == before
        return {**outcome, "never": place.launch("resume_mode=never", hook=after_update(1))}

    def fallen_back(self) -> Outcome:
        """One checkpoint is kept beside the best; the newest has another bit, so the best it is; then a stop."""
        place, accuracies = self.place("fallen_back"), [0.9, 0.5, 0.5, 0.5]
        only = ["keep_last=1", "save_every_steps=null", "epochs_per_stage=4"]
        with scored(accuracies):
            place.killed(13, *only)
            before = place.state()["checkpoints"]
            flipped(place.newest)
            stopped = place.launch(*only, hook=after_update(2, asked_to_stop(signal.SIGTERM)))
            between = place.state()
            ended = place.launch(*only)
        return {"before": before, "stopped": stopped, "between": between, "ended": {**ended, **place.state()}}

    # --- the record

    def record(self) -> Outcome:
        """The tail goes aside; a record that lost lines is refused."""
        place = self.copy("record")
        ended = self.end(place)
        short = self.copy("short_record")
        path = short.attempt / "metrics.jsonl"
        os.truncate(path, 300)
        before = short.tree()
        refused = short.launch()
        untouched = short.tree() == before
        path.unlink()
        return {"ended": ended, "refused": refused, "untouched": untouched, "gone": short.launch()}

    # --- disks

    def full_disk(self) -> Outcome:
        """Room for small files, for half a checkpoint, for none at all; then enough."""
        place = self.place("small_disk")
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
                # Whose process lives counts, and on a full disk it cannot be removed.
                (place.attempt.parent / "lock.json").unlink(missing_ok=True)
            mount(place.path, "remount,ro")
            whole = place.tree()
            read_only = place.launch()
            untouched = place.tree() == whole
            mount(place.path, "remount,rw")
            kept = [name for name in before if "checkpoint_" in name and place.tree().get(name) != before[name]]
            ended = self.end(place)
        finally:
            subprocess.run(["umount", "--lazy", str(place.path)], check=False)
        return {"cases": cases, "read_only": {**read_only, "untouched": untouched}, "changed": kept, "ended": ended}

    # --- what is kept

    def kept(self) -> Outcome:
        """Checkpoints after a run with given accuracies, left alone and with a death in between."""
        outcomes = {}
        for name, overrides in KEPT.items():
            found = []
            for deaths in ((), (5, 9)):
                place = self.place(f"kept_{name.replace(' ', '_')}_{len(deaths)}")
                with scored([0.5, 0.9, 0.7, 0.6] if name != "rising" else [0.1, 0.2, 0.3, 0.4]):
                    for updates in deaths:
                        place.killed(updates, "epochs_per_stage=4", *overrides)
                    outcome = place.launch("epochs_per_stage=4", *overrides)
                standings = sorted(place.attempt.glob("checkpoint_*/engine/resume_state.json"))
                scores = [json.loads(path.read_text())["scores"] for path in standings]
                found.append({**outcome, **place.state(), "scores": scores})
                shutil.rmtree(place.path)
            outcomes[name] = found
        return outcomes

    # --- the lock

    def locked(self) -> Outcome:
        """Another process holds the run, then dies."""
        place = self.copy("locked")
        hold = "import sys; from pathlib import Path; from coconut_ds.runs.lock import RunLock\n"
        hold += "with RunLock(Path(sys.argv[1]), print): print('held', flush=True); sys.stdin.read()"
        holder = subprocess.Popen(
            [sys.executable, "-c", hold, str(place.attempt.parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        before = place.tree()
        refused = [place.launch(f"resume_mode={mode}") for mode in ("auto", "never")]
        untouched = place.tree() == before
        holder.kill()
        holder.communicate()
        taken = self.end(place)
        left = sorted(path.name for path in place.attempt.parent.iterdir())
        return {"refused": refused, "untouched": untouched, "pid": holder.pid, "taken": taken, "left": left}

    def taken_over(self) -> Outcome:
        """Another machine takes the lock of a launch that slept, after update 7; then the launch wakes up."""
        place = self.place("taken_over")

        def sleep_too_long(*arguments: Any) -> None:
            path = place.attempt.parent / "lock.json"
            path.write_bytes(replace(Holder.this_process(), host="elsewhere").as_text())
            # What the other has begun to write.
            (place.attempt / ".checkpoint_2.part.other").mkdir()
            left["manifest"] = (place.attempt / "run_manifest.yaml").read_bytes()

        left: dict[str, bytes] = {}
        outcome = {**place.launch(hook=after_update(7, sleep_too_long)), **place.state()}
        same = left["manifest"] == (place.attempt / "run_manifest.yaml").read_bytes()
        return {**outcome, "same_manifest": same, "lock": json.loads((place.attempt.parent / "lock.json").read_text())}

    # --- being asked to stop

    def stopped(self) -> Outcome:
        """A signal at different moments, then the same command."""
        outcomes = {}
        for name, (hook, number) in STOPS.items():
            place = self.place(f"stopped_{name.replace(' ', '_')}")
            stopped = {**place.launch(hook=hook(asked_to_stop(number))), **place.state()}
            if stopped["checkpoints"]:
                resume_state = json.loads((place.newest / "engine" / "resume_state.json").read_text())
                stopped["knows"] = resume_state["metrics_bytes"]
                stopped["bytes"] = (place.attempt / "metrics.jsonl").stat().st_size
            outcomes[name] = {"stopped": stopped, "ended": self.end(place)}
            shutil.rmtree(place.path)
        return outcomes

    # --- evaluation

    def evaluation(self) -> Outcome:
        """Which files an evaluation opens, and that it refuses a damaged folder."""
        place = self.copy("evaluated", self.undisturbed)
        opened: list[str] = []
        watch = True

        def note(event: str, arguments: tuple[Any, ...]) -> None:
            if watch and event == "open":
                opened.append(str(arguments[0]))

        sys.addaudithook(note)
        data = ["data=modular_sum", "size={train: 160, valid: 24, test: 24}", "max_new_tokens=8"]
        config = [f"checkpoint={place.newest}", *data, f"out={place.path / 'out'}"]
        scores = []
        with contextlib.redirect_stdout(io.StringIO()):
            scores.append(evaluate(compose_eval_config(config))[0].predictions)
            watch = False
            for path in place.newest.glob("engine/**/*.pt"):
                path.write_bytes(bytes(path.stat().st_size))
            scores.append(evaluate(compose_eval_config(config))[0].predictions)
        refused = {}
        for name in ("truncated", "missing shard"):
            spoiled = self.copy(f"evaluated_{name.replace(' ', '_')}", self.undisturbed)
            DAMAGES[name](spoiled.newest)
            try:
                evaluate(compose_eval_config([f"checkpoint={spoiled.newest}", *data, f"out={place.path / 'out'}"]))
            except Exception as error:
                refused[name] = f"{type(error).__name__}: {error}"
        inside = [name.removeprefix(f"{place.newest}/") for name in opened if name.startswith(str(place.newest))]
        return {"opened": inside, "refused": refused, "same": scores[0] == scores[1]}

    # --- another number of ranks

    def other_ranks(self) -> Outcome:
        """One process continues what two began, and begins what two will continue."""
        outcomes = {}
        for zero in ZEROS:
            options = [f"deepspeed={zero}", *STEADY]
            alone, from_two, to_two = (self.place(f"{zero}_{name}") for name in ("alone", "from_two", "to_two"))
            alone.launch(*options)
            outcome = {**from_two.launch(*options), **from_two.state(), "losses": losses(from_two)}
            outcomes[zero] = {"alone": losses(alone), "from_two": outcome}
            to_two.killed(DIES_AT, *options)
        return outcomes

    def before(self) -> Outcome:
        """Two ranks begin."""
        return {zero: self.place(f"{zero}_from_two").killed(DIES_AT, f"deepspeed={zero}", *STEADY) for zero in ZEROS}

    def after(self) -> Outcome:
        """Two ranks end; a record that lost lines is every rank's error."""
        outcomes = {}
        for zero in ZEROS:
            place = self.place(f"{zero}_to_two")
            outcome = {**place.launch(f"deepspeed={zero}", *STEADY), **place.state(), "losses": losses(place)}
            outcomes[zero] = outcome
        place = self.place("short_record_of_two")
        place.killed(DIES_AT)
        if self.ranks.is_first:
            os.truncate(place.attempt / "metrics.jsonl", 300)
        self.ranks.wait()
        outcomes["refused"] = self.ranks.gather(place.launch()["error"])
        outcomes["one cannot write"] = [self._one_cannot_write(rank) for rank in range(self.ranks.size)]
        return outcomes

    def _one_cannot_write(self, rank: int) -> Outcome:
        """The disk of one rank is full when it writes its part of the second checkpoint; then there is room."""
        place, began = self.place(f"full_disk_of_{rank}"), time.monotonic()

        def fail(*arguments: Any) -> None:
            if self.ranks.rank == rank:
                raise OSError(errno.ENOSPC, "No space left on device")

        # Each rank saves its shard of the optimizer's state, rank 0 the weights before.
        broken = at(torch, "save", 5 if rank == 0 else 3, fail, first=True)
        errors = self.ranks.gather(place.launch(hook=broken)["error"])
        seconds = time.monotonic() - began
        state = place.state()
        self.ranks.wait()
        return {"errors": errors, "seconds": seconds, "failed": state, "ended": {**place.launch(), **place.state()}}


def truncated(checkpoint: Path) -> None:
    """Half of the weights."""
    path = checkpoint / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def flipped(checkpoint: Path) -> None:
    """One bit of the optimizer's state."""
    (path,) = checkpoint.glob("engine/state/*optim_states.pt")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Trap:
    """Its pickle writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "")


def without_engine(checkpoint: Path) -> None:
    """A whole model, sealed, but nothing to resume from."""
    shutil.rmtree(checkpoint / "engine")
    (checkpoint / SEAL).unlink()
    seal(checkpoint)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncated,
    "flipped bit": flipped,
    "missing shard": lambda path: (path / "engine/state/mp_rank_00_model_states.pt").unlink(),
    "no resume state": lambda path: (path / "engine/resume_state.json").unlink(),
    "trap": lambda path: (path / "engine/random_0.pt").write_bytes(pickle.dumps(Trap(path.parent / "executed"))),
    "no seal": lambda path: (path / SEAL).unlink(),
    "broken seal": lambda path: os.truncate(path / SEAL, 100),
    "misspelt seal": lambda path: (path / SEAL).write_text((path / SEAL).read_text().replace('"bytes"', '"bytez"', 1)),
    "no engine": without_engine,
    "empty manifest": lambda path: os.truncate(path / "run_manifest.yaml", 0),
    "half manifest": lambda path: os.truncate(path / "run_manifest.yaml", 200),
    "no manifest": lambda path: (path / "run_manifest.yaml").unlink(),
}
MANIFESTS = ("empty manifest", "half manifest", "no manifest")
ROOMS: dict[str, tuple[list[str], int, tuple[Any, str, int]]] = {
    "half of the state": ([], 400_000, (Trainer, "_log_update", 1)),
    "half of the weights": ([], 100_000, (Engine, "model_state", 1)),
    "no tokenizer": ([], 4096, (PreTrainedModel, "save_pretrained", 1)),
    "no resume state": ([], 0, (PreTrainedTokenizerBase, "save_pretrained", 1)),
    "no record": (["save_every=100", "save_every_steps=null"], 0, (Trainer, "_log_update", 1)),
    "nothing at the start": ([], 0, (Engine, "load_state", 1)),
}
"""Overrides, and how many bytes are free after which call."""
KEPT = {
    "default": [],
    "one": ["keep_last=1"],
    "all": ["keep_last=null"],
    "no best": ["keep_best=false"],
    "one and no best": ["keep_last=1", "keep_best=false"],
    "improving": ["save_only_improve=true"],
    "rising": ["save_only_improve=true"],
    "seldom": ["keep_last=null", "save_every=3", "save_every_steps=null"],
    "seldom and no best": ["keep_last=null", "keep_best=false", "save_every=3", "save_every_steps=null"],
    "steps": ["keep_last=null", "save_every=4", "save_every_steps=5"],
}
STOPS: dict[str, tuple[Callable[[Callable[..., Any]], contextlib.AbstractContextManager[None]], signal.Signals]] = {
    "update": (lambda action: after_update(5, action), signal.SIGTERM),
    "interrupt": (lambda action: after_update(5, action), signal.SIGINT),
    "saved anyway": (lambda action: after_update(3, action), signal.SIGTERM),
    "saving": (lambda action: at(Engine, "save_state", 2, action), signal.SIGTERM),
    "evaluation": (lambda action: at(Evaluator, "generate", 2, action, first=True), signal.SIGTERM),
    "last evaluation": (lambda action: at(Evaluator, "generate", 4, action), signal.SIGTERM),
    "before the first update": (lambda action: at(Trainer, "fit", 1, action, first=True), signal.SIGTERM),
}
ZEROS = ("zero0", "zero1", "zero3")
STEADY = ["model.model_config_overrides={resid_pdrop: 0, embd_pdrop: 0, attn_pdrop: 0}", "max_latent_stage=1"]
"""Ranks draw different dropout."""


@contextlib.contextmanager
def scored(accuracies: list[float]) -> Iterator[None]:
    """Validation finds what it is told to."""
    original = Trainer._validate

    def validate(trainer: Trainer, position: Any, *arguments: Any) -> Any:
        return SimpleNamespace(accuracy=accuracies[position.epoch], wholly_right=0.0, predictions=[])

    Trainer._validate = validate
    try:
        yield
    finally:
        Trainer._validate = original


def mount(path: Path, options: str) -> str | None:
    """A file system in memory; what hindered it."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else done.stderr.strip() or "mount failed"


def shrink(path: Path, room: int, *arguments: Any) -> None:
    """Leaves so many bytes free."""
    facts = os.statvfs(path)
    used = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    assert mount(path, f"remount,size={max(used + room, facts.f_frsize)}") is None


def steps(path: Path) -> list[int]:
    """Numbers of the updates in a record."""
    # A full disk leaves half a line, which the next launch puts aside.
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    return [line["global_step"] for line in lines if "train/loss" in line]


def losses(place: Place) -> list[float]:
    """Losses of the updates."""
    return [line["train/loss"] for line in read_metrics(place.attempt / "metrics.jsonl") if "train/loss" in line]


def main() -> None:
    """Command line."""
    # The launcher puts --local_rank in front.
    out, folder, part = sys.argv[-3:]
    ranks = start_ranks(timeout=timedelta(minutes=2))
    worker = Worker(Path(folder), ranks)
    if part == "alone":
        worker.prepare()
        scenarios = ["grown", "asked", "damaged", "all_damaged", "fallen_back", "record", "full_disk", "kept"]
        scenarios += ["locked", "taken_over", "stopped", "evaluation", "other_ranks"]
    else:
        scenarios = [part]
    outcomes: Outcome = {}
    for name in os.environ.get("SCENARIOS", " ".join(scenarios)).split():
        try:
            outcomes[name] = getattr(worker, name)()
        except Exception:
            outcomes[name] = {"crashed": traceback.format_exc()}
    if ranks.is_first:
        Path(out).write_text(json.dumps(outcomes))
    stop_ranks()


if __name__ == "__main__":
    main()
