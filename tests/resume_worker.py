"""Ends, damages and resumes a tiny run in many ways in one process, and writes down the outcomes.

    python tests/resume_worker.py OUT.json FOLDER SCENARIO…
    deepspeed --num_accelerators 2 tests/resume_worker.py OUT.json FOLDER before

The tests (``test_resume*.py``) start it through ``resume_outcomes.py`` and check what it wrote.
"""

import json
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import resume_attempts
import resume_damage
import resume_ranks
import resume_stops
from resume_disks import full_disk
from resuming import Outcome, Worker

from coconut_ds.distributed.process_group import start_ranks, stop_ranks

SCENARIOS: tuple[Callable[[Worker], Outcome], ...] = (
    *(resume_attempts.grown, resume_attempts.asked, resume_attempts.kept),
    *(resume_attempts.locked, resume_attempts.taken_over),
    *(resume_damage.damaged, resume_damage.all_damaged, resume_damage.fallen_back),
    *(resume_damage.record, resume_damage.evaluation),
    *(full_disk, resume_stops.stopped),
    *(resume_ranks.before, resume_ranks.other_ranks, resume_ranks.after),
)


def main() -> None:
    """Command line."""
    out, folder, *names = (word for word in sys.argv[1:] if not word.startswith("--local_rank"))
    scenarios = {scenario.__name__: scenario for scenario in SCENARIOS}
    ranks = start_ranks(timeout=timedelta(minutes=2))
    worker = Worker(Path(folder), ranks)
    outcomes: Outcome = {}
    for name in names:
        try:
            outcomes[name] = scenarios[name](worker)
        except Exception:
            outcomes[name] = {"crashed": traceback.format_exc()}
    if ranks.is_first:
        Path(out).write_text(json.dumps(outcomes))
    stop_ranks()


if __name__ == "__main__":
    main()
