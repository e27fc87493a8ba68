"""How many positions one pass over several prompts may have.

On a CPU, a pass over 2,048 positions is as fast per position as a longer one. A GPU needs more positions to be busy, so
there the free memory decides.

Shapes:
    D  hidden size
"""

import math

import torch
from torch import Tensor

from coconut_ds.distributed.zero import whole_shape
from coconut_ds.generation.slots import SlotCache
from coconut_ds.model.latent_loop import LatentLoop

SHARE = 0.25
"""The largest part of a GPU's free memory that a pass may take."""
MOST = 32_768
"""More positions do not make a GPU busier, but make running requests wait longer."""


class PassSize:
    """The limit for the passes of one engine."""

    def __init__(self, loop: LatentLoop, cache: SlotCache) -> None:
        self._loop, self._cache, self._each = loop, cache, position_bytes(loop)

    def positions(self, least: int) -> int:
        """The largest number of positions in one pass, at least ``least``.

        On CUDA, the first pass has at most ``least``: it allocates the cache, and afterwards the memory is known.
        """
        device = self._loop.device
        if device.type != "cuda" or not self._cache.num_bytes:
            return least
        # Measured for each pass: other models of this process may have been loaded in the meantime.
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that torch holds but does not use.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return positions_within(free, self._each, least)


def positions_within(free: int, each: int, least: int) -> int:
    """The number of positions for ``free`` bytes of memory, of which a position takes ``each``; at least ``least``."""
    return max(least, min(MOST, int(free * SHARE) // each))


def position_bytes(loop: LatentLoop) -> int:
    """About how many bytes one position takes during a pass, cache excluded.

    A layer's activations have as many numbers as all its projections have outputs, that is its weights over the hidden
    size or fewer; twice as many are alive at a time.
    """
    parameters = list(loop.model.base_model.parameters())
    embeddings = sum(map(_count, loop.model.get_input_embeddings().parameters()))
    weights = sum(map(_count, parameters)) - embeddings
    hidden = int(loop.model.config.get_text_config().hidden_size)
    return max(1, 2 * weights // (loop.num_layers * hidden) * parameters[0].element_size())


def _count(parameter: Tensor) -> int:
    """Numbers in a parameter, whether or not ZeRO-3 has divided it."""
    return math.prod(whole_shape(parameter))
