"""Scenarios of ``resume_worker.py``: checkpoints, manifests and records that are damaged or missing."""

import contextlib
import io
import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resuming import Outcome, Worker, after_update, scored, signals_this_process

from coconut_ds.evaluation.session import evaluate
from coconut_ds.files import SEAL, seal
from coconut_ds.settings.compose import compose_eval_config


def truncated(checkpoint: Path) -> None:
    """Cuts off half of the weights."""
    path = checkpoint / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def flipped(checkpoint: Path) -> None:
    """Flips one bit of the optimizer's state."""
    (path,) = checkpoint.glob("engine/state/*optim_states.safetensors")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class Trap:
    """An object whose pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "")


def trapped(checkpoint: Path) -> None:
    """Replaces the random states by a pickle that writes a file when it is loaded."""
    content = pickle.dumps(Trap(checkpoint.parent / "executed"))
    (checkpoint / "engine" / "random_0.safetensors").write_bytes(content)


def without_engine(checkpoint: Path) -> None:
    """Leaves a whole, sealed model without any state to resume from."""
    shutil.rmtree(checkpoint / "engine")
    (checkpoint / SEAL).unlink()
    seal(checkpoint)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncated,
    "flipped bit": flipped,
    "missing shard": lambda path: (path / "engine/state/mp_rank_00_model_states.safetensors").unlink(),
    "no resume state": lambda path: (path / "engine/resume_state.json").unlink(),
    "trap": trapped,
    "no seal": lambda path: (path / SEAL).unlink(),
    "broken seal": lambda path: os.truncate(path / SEAL, 100),
    "misspelt seal": lambda path: (path / SEAL).write_text((path / SEAL).read_text().replace('"bytes"', '"bytez"', 1)),
    "no engine": without_engine,
    "empty manifest": lambda path: os.truncate(path / "run_manifest.yaml", 0),
    "half manifest": lambda path: os.truncate(path / "run_manifest.yaml", 200),
    "no manifest": lambda path: (path / "run_manifest.yaml").unlink(),
}
MANIFESTS = ("empty manifest", "half manifest", "no manifest")


def damaged(worker: Worker) -> Outcome:
    """Damages the newest checkpoint or the manifest in each way of ``DAMAGES``, then launches again."""
    outcomes = {}
    for name, spoil in DAMAGES.items():
        place = worker.copy(f"damaged_{name.replace(' ', '_')}")
        spoil(place.newest if name not in MANIFESTS else place.attempt)
        outcomes[name] = worker.end(place)
        outcomes[name]["executed"] = (place.attempt / "executed").exists()
        shutil.rmtree(place.path)
    return outcomes


def all_damaged(worker: Worker) -> Outcome:
    """Damages all checkpoints."""
    place = worker.copy("all_damaged")
    for path in place.attempt.glob("checkpoint_*"):
        truncated(path)
    before = place.tree()
    outcome = place.launch()
    outcome["untouched"] = place.tree() == before
    return {**outcome, "never": place.launch("resume_mode=never", hook=after_update(1))}


def fallen_back(worker: Worker) -> Outcome:
    """Damages the newest checkpoint of a run that keeps one in addition to the best, then stops the next launch."""
    place, accuracies = worker.place("fallen_back"), [0.9, 0.5, 0.5, 0.5]
    only = ["keep_last=1", "save_every_steps=null", "epochs_per_stage=4"]
    with scored(accuracies):
        place.killed(13, *only)
        before = place.state()["checkpoints"]
        flipped(place.newest)
        stopped = place.launch(*only, hook=after_update(2, signals_this_process(signal.SIGTERM)))
        between = place.state()
        ended = place.launch(*only)
    return {"before": before, "stopped": stopped, "between": between, "ended": {**ended, **place.state()}}


def record(worker: Worker) -> Outcome:
    """Launches with updates in the record that are after the checkpoint; then with a record that lost lines."""
    place = worker.copy("record")
    ended = worker.end(place)
    short = worker.copy("short_record")
    path = short.attempt / "metrics.jsonl"
    os.truncate(path, 300)
    before = short.tree()
    refused = short.launch()
    untouched = short.tree() == before
    path.unlink()
    return {"ended": ended, "refused": refused, "untouched": untouched, "gone": short.launch()}


def evaluation(worker: Worker) -> Outcome:
    """Notes which files an evaluation opens, and evaluates damaged checkpoints."""
    place = worker.copy("evaluated", worker.undisturbed)
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
        for path in place.newest.glob("engine/**/*.safetensors"):
            path.write_bytes(bytes(path.stat().st_size))
        scores.append(evaluate(compose_eval_config(config))[0].predictions)
    refused = {}
    for name in ("truncated", "missing shard"):
        spoiled = worker.copy(f"evaluated_{name.replace(' ', '_')}", worker.undisturbed)
        DAMAGES[name](spoiled.newest)
        try:
            evaluate(compose_eval_config([f"checkpoint={spoiled.newest}", *data, f"out={place.path / 'out'}"]))
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}"
    inside = [name.removeprefix(f"{place.newest}/") for name in opened if name.startswith(str(place.newest))]
    return {"opened": inside, "refused": refused, "same": scores[0] == scores[1]}
