"""Which checkpoints of an attempt nobody asked to keep."""

from coconut_ds.files import damage
from coconut_ds.runs.catalogue import Attempt, Checkpoint


def superfluous(attempt: Attempt, keep_last: int | None, keep_best: bool) -> list[Checkpoint]:
    """Checkpoints that are neither among the last ones nor the best, the oldest first.

    Those that are to stay are read and compared with their hashes, since a damaged one may be all there is beside them.

    Args:
        attempt: one that no launch works on.
        keep_last: newest ones to keep; None: all.
        keep_best: whether the best one stays too.
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
