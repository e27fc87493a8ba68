"""Which checkpoints of an attempt ``coconut-runs prune`` removes."""

from coconut_ds.files import damage
from coconut_ds.runs.catalogue import Attempt, Checkpoint


def superfluous(attempt: Attempt, keep_last: int | None, keep_best: bool) -> list[Checkpoint]:
    """Checkpoints that are neither among the newest ``keep_last`` nor the best, the oldest first.

    The checkpoints to keep are read and compared with their hashes, so that a damaged one is never kept in the place of
    an intact one. If all are damaged, nothing is removed.

    Args:
        attempt: an attempt that no launch is working on.
        keep_last: number of newest intact checkpoints to keep; None: all.
        keep_best: whether to keep the best checkpoint too.
    """
    assert keep_last is None or keep_last > 0
    if keep_last is None:
        return []
    kept: list[Checkpoint] = []
    for checkpoint in attempt.complete:
        if len(kept) < keep_last and not damage(checkpoint.path, hashes=True):
            kept.append(checkpoint)
    if not kept:
        return []
    if keep_best and attempt.best is not None:
        kept.append(attempt.best)
    return [checkpoint for checkpoint in reversed(attempt.checkpoints) if checkpoint not in kept]
