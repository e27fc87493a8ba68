"""Sends each signal that asks a run to stop to each kind of its processes, and checks that the run has saved.

    python tests/signal_matrix.py --json

One rank without a launcher, and two ranks under ``deepspeed``: the signal goes to one rank, or to the launcher alone.
The last line of output is one JSON object.
"""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent)
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launching import Process
from making_signals import not_saved, processes, signalled

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
RANK = "--local_rank=1"
"""Part of the command line of the second rank under ``deepspeed``."""
CASES = {"process": (1, ""), "rank": (2, RANK), "launcher": (2, "")}
"""Number of ranks, and part of the command line of the process that gets the signal; empty: the one that is started."""


def main() -> int:
    """Runs all cases; returns 1 if a run has not saved."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=list(SIGNALS))
    parser.add_argument("--json", action="store_true", help="print only the result")
    options = parser.parse_args()
    failed: dict[str, str] = {}
    number = 0
    for name in options.signals:
        for case, (ranks, part) in CASES.items():

            def target(process: Process, part: str = part) -> int:
                return next(pid for pid, line in processes(process.pid) if part in line) if part else process.pid

            with tempfile.TemporaryDirectory() as folder:
                signalled(getattr(signal, name), ranks, Path(folder), target)
                found = not_saved(Path(folder))
            number += 1
            if found:
                failed[f"{name} to {case}"] = found
            if not options.json:
                print(f"{name} to {case}: {found or 'saved'}", flush=True)
    print(json.dumps({"runs": number, "saved": number - len(failed), "failed": failed}))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
