"""Starts ``resume_worker.py`` for the tests of resuming, and reads what it wrote."""

import json
from pathlib import Path
from typing import Any

from launching import environment, run

WORKER = Path(__file__).parent / "resume_worker.py"
ALL = list(range(1, 17))
"""The updates of the run, each once."""


class Outcomes(dict[str, Any]):
    """The outcome of each scenario."""

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        assert "crashed" not in found, found["crashed"]
        return found


def outcomes_of(folder: Path, *scenarios: str, ranks: int = 1) -> Outcomes:
    """Runs scenarios in one process per rank; scenarios of several calls may continue each other's runs."""
    out = folder / "outcomes.json"
    done = run([WORKER, out, folder, *scenarios], environment(DS_ACCELERATOR="cpu"), ranks)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return Outcomes(json.loads(out.read_text()))


def ended_as_if_undisturbed(outcome: dict[str, Any]) -> bool:
    """Checks that the run ended with the same bits as the run that was never ended, and that nothing is left over."""
    assert outcome["error"] is None
    assert outcome["differences"] == []
    assert outcome["steps"] == ALL
    assert (outcome["damaged"], outcome["hidden"]) == ([], [])
    assert outcome["manifest"]["status"] == "completed"
    return True
