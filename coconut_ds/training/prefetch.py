"""Prepares the tensors of the next global batch in a thread while the engine computes on the current one.

The content of a batch is a pure function of its indices, so it does not matter when or in which thread it is prepared.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from coconut_ds.objectives.base import Tensors
from coconut_ds.training.engine import Engine
from coconut_ds.training.update_result import UpdateResult


@dataclass(frozen=True)
class Prepared:
    """One rank's share of a global batch."""

    indices: list[int]
    """Indices of all problems of the global batch (of every rank), in the epoch's training set."""
    micro_batches: list[Tensors]
    """In the memory of the host."""
    num_tokens: int
    """Number of tokens in the global batch, without padding."""

    def run(self, engine: Engine, lr: float, asked_to_stop: Callable[[], bool]) -> UpdateResult:
        """Makes the update."""
        return engine.update(self.micro_batches, lr, asked_to_stop)


def prepared_ahead(
    prepare: Callable[[Sequence[int]], Prepared], batches: Sequence[Sequence[int]], device: torch.device
) -> Iterator[Prepared]:
    """Yields the batches in order, each prepared while the caller uses the one before.

    An error raised by ``prepare`` is raised when its batch is due.

    Args:
        prepare: prepares the batch with these indices.
        batches: the indices of each batch.
        device: where the caller computes.
    """
    if not batches:
        return
    with ThreadPoolExecutor(max_workers=1, initializer=_use, initargs=(device,)) as pool:
        coming = [pool.submit(prepare, indices) for indices in batches[:1]]
        for following in (*batches[1:], None):
            current = coming.pop()
            prepared = current.result()
            if following is not None:
                coming.append(pool.submit(prepare, following))
            yield prepared


def _use(device: torch.device) -> None:
    """Makes a GPU the current one of this thread, which otherwise allocates pinned memory by way of the first GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
