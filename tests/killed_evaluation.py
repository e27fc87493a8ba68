"""Launches of an evaluation for ``kill_evaluations.py``: forks of a process that has loaded the model.

As far as they can see, all have one process id.

python tests/killed_evaluation.py REQUESTS key=value … reads a JSON line from the pipe REQUESTS for each launch, with
the keys ``out``, ``when`` and ``after_s``, and writes its exit code to standard output. The launch is killed after
``after_s`` seconds, unless that is null. ``when`` is "never", or "write PREDICTIONS SHARE ZEROS": at this prediction
the launch writes the given share of its line and some zeros, and dies.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401

from coconut_ds.distributed.ranks import alone
from coconut_ds.evaluation import session
from coconut_ds.evaluation.partial import PartialPredictions
from coconut_ds.evaluation.prediction import Prediction
from coconut_ds.settings import EvalConfig
from coconut_ds.settings.compose import compose_eval_config

PID = 7
"""In a container, the first process of an evaluation has the same small id each time."""


class Dying:
    """A file that writes a part of what it is given, and ends the process."""

    def __init__(self, file: IO[bytes], share: float, zeros: int) -> None:
        self._file, self._share, self._zeros = file, share, zeros

    def write(self, data: bytes) -> None:
        """Writes the beginning of ``data``."""
        self._file.write(data[: int(self._share * len(data))] + bytes(self._zeros))
        self._file.flush()
        signal.raise_signal(signal.SIGKILL)


class DyingPredictions(PartialPredictions):
    """Dies in the middle of writing a prediction."""

    left, share, zeros = 0, 0.0, 0

    def add(self, budget: int, prediction: Prediction) -> None:
        """See ``PartialPredictions``."""
        self.left -= 1
        if self.left == 0 and self._file is not None:
            dying: Any = Dying(self._file, self.share, self.zeros)
            self._file = dying
        super().add(budget, prediction)


def launch(config: EvalConfig, out: str, when: str) -> int:
    """Evaluates, in a new process. Returns the exit code."""
    os.getpid = lambda: PID
    kind, *values = when.split()
    if kind == "write":
        # The file is opened with the first prediction.
        DyingPredictions.left = int(values[0]) + 1
        DyingPredictions.share, DyingPredictions.zeros = float(values[1]), int(values[2])
        session.PartialPredictions = DyingPredictions  # type: ignore[misc]
    try:
        session.evaluate(config.model_copy(update={"out": out}))
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve(requests: Path, words: list[str]) -> None:
    """Makes the launches that are asked for, one after the other, until the pipe is closed."""
    config = compose_eval_config(words)
    reasoner = session.reasoner_of(config, alone())
    session.reasoner_of = lambda config, ranks: reasoner
    with requests.open() as asked:
        for line in asked:
            values = json.loads(line)
            # The threads that loaded the model are idle, and a launch does not use them.
            pid = os.fork()
            if pid == 0:
                os.dup2(2, 1)
                code = launch(config, values["out"], values["when"])
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            if values["after_s"] is not None:
                time.sleep(values["after_s"])
                os.kill(pid, signal.SIGKILL)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2:])
