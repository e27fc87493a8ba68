"""One launch of an evaluation for ``kill_evaluations.py``: it always has the same process id.

python tests/killed_evaluation.py WHEN key=value …, where WHEN is "never", or "write PREDICTIONS SHARE ZEROS": at this
prediction the process writes the given share of its line and some zeros, and dies.
"""

import os
import signal
import sys
from typing import IO, Any

from coconut_ds.evaluate import main
from coconut_ds.evaluation import session
from coconut_ds.evaluation.partial import PartialPredictions
from coconut_ds.evaluation.prediction import Prediction

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
        os.kill(REAL_PID, signal.SIGKILL)


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


if __name__ == "__main__":
    REAL_PID = os.getpid()
    os.getpid = lambda: PID
    when, *values = sys.argv[1].split()
    if when == "write":
        # The file is opened with the first prediction.
        DyingPredictions.left = int(values[0]) + 1
        DyingPredictions.share, DyingPredictions.zeros = float(values[1]), int(values[2])
        session.PartialPredictions = DyingPredictions  # type: ignore[misc]
    sys.exit(main(sys.argv[2:]))
