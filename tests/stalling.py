"""Training in which a rank skips a collective once it is told to, so that the ranks wait for each other for ever.

``test_watchdog.py`` starts it as ``stalling.py FILE [overrides]``: rank 1 leaves out a collective of the first update
after FILE has appeared. The lock's heartbeat is fast.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch.distributed as dist

from coconut_ds.runs.lock import RunLock
from coconut_ds.train import main
from coconut_ds.training import claim
from coconut_ds.training.engine import Engine


def skip_one(file: Path) -> None:
    """Leaves out a collective once the file exists."""
    make = Engine.update

    def one(self: Engine, *arguments: Any, **options: Any) -> Any:
        if not file.exists():
            return make(self, *arguments, **options)
        reduce, dist.all_reduce = dist.all_reduce, lambda *arguments, **options: None
        try:
            return make(self, *arguments, **options)
        finally:
            dist.all_reduce = reduce

    Engine.update = one  # type: ignore[method-assign]


if __name__ == "__main__":
    # The launcher puts an option in front.
    file, *overrides = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    claim.RunLock = partial(RunLock, heartbeat_s=0.1)  # type: ignore[misc, assignment]
    if os.environ.get("RANK") == "1":
        skip_one(Path(file))
    raise SystemExit(main(overrides))
