"""Global batches as tensors, made one ahead in a thread while the engine computes.

What a batch holds is a pure function of its indices, so it does not matter who makes it, or when.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from coconut_ds.model.collate import LatentInputs, Targets


@dataclass(frozen=True)
class Prepared:
    """One rank's share of a global batch."""

    indices: list[int]
    """Of all problems of the global batch, in the epoch's training set."""
    micro_batches: list[tuple[LatentInputs, Targets]]
    num_tokens: int
    """Of the global batch, no pads."""


def prepared_ahead(
    prepare: Callable[[Sequence[int]], Prepared], batches: Sequence[Sequence[int]]
) -> Iterator[Prepared]:
    """Each batch, prepared while the one before is in use; an error comes where its batch would."""
    if not batches:
        return
    with ThreadPoolExecutor(max_workers=1) as pool:
        coming = [pool.submit(prepare, indices) for indices in batches[:1]]
        for following in (*batches[1:], None):
            current = coming.pop()
            prepared = current.result()
            if following is not None:
                coming.append(pool.submit(prepare, following))
            yield prepared
