"""An evaluation that stops after its first predictions until a file exists, so that a test can end it there.

python tests/held_evaluation.py FILE key=value …
"""

import sys
from pathlib import Path

from waiting import wait_until

from coconut_ds.evaluate import main
from coconut_ds.evaluation import session
from coconut_ds.evaluation.partial import PartialPredictions
from coconut_ds.evaluation.prediction import Prediction

HELD_AT = 40
"""Number of predictions that are kept by then. It is no multiple of the batch size of the tests."""


class HeldPredictions(PartialPredictions):
    """Waits once it has stored ``HELD_AT`` predictions."""

    release: Path
    count = 0

    def add(self, budget: int, prediction: Prediction) -> None:
        """See ``PartialPredictions``."""
        super().add(budget, prediction)
        self.count += 1
        if self.count == HELD_AT:
            wait_until(self.release.exists, limit_s=120)


if __name__ == "__main__":
    HeldPredictions.release = Path(sys.argv[1])
    session.PartialPredictions = HeldPredictions  # type: ignore[misc]
    sys.exit(main(sys.argv[2:]))
