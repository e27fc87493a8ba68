"""The files of finished and unfinished runs of a sweep, for tests of its tables and pictures."""

import json
from pathlib import Path
from typing import Any

from coconut_ds.settings.sweep import SweepConfig
from coconut_ds.studies.job import Job, Shown
from coconut_ds.studies.jobs import record


def made(out: Path, row: str, seed: int, right: int | None, number: int = 0, **changes: Any) -> Job:
    """The files of a run: 10 problems, of which the first ``right`` are answered rightly; None: it is not finished."""
    more, status = changes.pop("more", ()), changes.pop("status", "started")
    paper, sweep = changes.pop("paper", None), SweepConfig(out=str(out), baseline="no_thoughts")
    shown = Shown("sums modulo 10", 0.1, paper, number)
    job = Job("sums", (("row", row),), seed, (f"method={row}", f"run.seed={seed}", *more), sweep, more, shown=shown)
    folder = job.folder()
    if right is not None:
        (folder / "evaluation").mkdir(parents=True)
        lines = [{"index": i, "question": f"{i}", "answer": "1", "correct": i < right} for i in range(10)]
        (folder / "evaluation" / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        result = {"overrides": list(job.overrides), "accuracy": right / 10, "wholly_right": right / 10, "updates": 50}
        result |= {"stage": 3, "num_thoughts": 6, "num_pauses": 0, "duration_s": 50.0, "evaluation_s": 1.0, **changes}
        (folder / "result.json").write_text(json.dumps(result))
    record(job, folder, status, **({"error": "it broke", "lines": ["one", "two"]} if status == "failed" else {}))
    return job
