"""Scenarios of ``resume_worker.py``: which attempt a launch continues, what it keeps, who holds the lock."""

import json
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from resuming import Outcome, Worker, after_update, scored

from coconut_ds.runs.holder import Holder
from coconut_ds.training.metrics import read_metrics

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


def grown(worker: Worker) -> Outcome:
    """Trains for two epochs, then for four; then launches the complete run in each mode."""
    place = worker.place("grown")
    place.launch("num_epochs=2")
    first = place.state()
    ended = worker.end(place)
    summaries = [
        {
            **(values := json.loads((one.attempt / "summary.json").read_text())),
            **{key: Path(values[key]).name for key in ("best_checkpoint", "last_checkpoint") if values[key]},
            "duration_s": None,
            "saving_s": None,
        }
        for one in (place, worker.undisturbed)
    ]
    record = (place.attempt / "metrics.jsonl").read_bytes()
    forced = {**place.launch("resume_mode=force"), **place.state()}
    forced["same_record"] = (place.attempt / "metrics.jsonl").read_bytes() == record
    tree = place.tree()
    complete = {**place.launch(), "untouched": place.tree() == tree}
    attempts = {}
    for mode in ("never", "auto", "force"):
        # Names of attempts are ordered by the second of their start.
        time.sleep(1)
        attempts[mode] = place.killed(1, f"resume_mode={mode}")["attempts"]
    return {
        **{"first": first, "ended": ended, "summaries": summaries, "forced": forced},
        **{"complete": complete, "attempts": attempts},
    }


def asked(worker: Worker) -> Outcome:
    """Requests an attempt with ``run.resume_attempt_id``, under the same and under another signature."""
    place = worker.copy("asked")
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
    same = worker.copy("asked_same")
    return {
        **{"unknown": unknown, "refused": refused, "untouched": untouched, "folders": folders, "half": half},
        **{"allowed": allowed, "rates": rates, "of_group": of_group, "state": place.state()},
        "same": worker.end(same, wanted, "resume_mode=never"),
    }


def kept(worker: Worker) -> Outcome:
    """Trains with given accuracies, without an interruption and with two deaths."""
    outcomes = {}
    for name, overrides in KEPT.items():
        found = []
        for deaths in ((), (5, 9)):
            place = worker.place(f"kept_{name.replace(' ', '_')}_{len(deaths)}")
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


def locked(worker: Worker) -> Outcome:
    """Launches while another process holds the run, and after that process died."""
    place = worker.copy("locked")
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
    taken = worker.end(place)
    left = sorted(path.name for path in place.attempt.parent.iterdir())
    return {"refused": refused, "untouched": untouched, "pid": holder.pid, "taken": taken, "left": left}


def taken_over(worker: Worker) -> Outcome:
    """Lets another machine take the lock of a launch that slept after update 7, then lets the launch continue."""
    place = worker.place("taken_over")

    def sleep_too_long(*arguments: Any) -> None:
        path = place.attempt.parent / "lock.json"
        path.write_bytes(replace(Holder.this_process(), host="elsewhere").as_text())
        # A checkpoint that the other machine has begun to write.
        (place.attempt / ".checkpoint_2.part.other").mkdir()
        left["manifest"] = (place.attempt / "run_manifest.yaml").read_bytes()

    left: dict[str, bytes] = {}
    outcome = {**place.launch("async_save=false", hook=after_update(7, sleep_too_long)), **place.state()}
    same = left["manifest"] == (place.attempt / "run_manifest.yaml").read_bytes()
    return {**outcome, "same_manifest": same, "lock": json.loads((place.attempt.parent / "lock.json").read_text())}
