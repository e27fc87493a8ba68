"""CODI's projection (arXiv 2502.21074): what a thought passes before it is fed back, in checkpoints that have it.

Shapes:
    D  hidden size
    P  size of the projection's hidden layer
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from coconut_vllm.card import Feed
from coconut_vllm.errors import NotSupported

FEED_FILE = "latent/feed.safetensors"


class Projection(nn.Module):
    """A linear layer, the exact GELU, a linear layer and a layer norm."""

    def __init__(self, size: int, width: int) -> None:
        """``size``: D; ``width``: P."""
        super().__init__()
        self.inner, self.outer = nn.Linear(size, width), nn.Linear(width, size)
        self.norm = nn.LayerNorm(size, eps=1e-5)

    def forward(self, states: Tensor) -> Tensor:
        """The input embeddings [..., D] that states [..., D] become."""
        made: Tensor = self.norm(self.outer(F.gelu(self.inner(states))))
        return made


def load_feed(path: Path, feed: Feed, size: int, dtype: torch.dtype, device: torch.device) -> Projection:
    """Reads a feed's weights, which must fit completely.

    Args:
        path: the file.
        feed: what the card says about it.
        size: D.
        dtype: the type that the model computes in.
        device: where the model is.

    Raises:
        NotSupported: the file is missing, damaged, or does not fit the card and the model.
    """
    try:
        state = load(path.read_bytes())
    except Exception as error:
        raise NotSupported(f"{path}: cannot be read ({error}); copy the checkpoint again") from error
    with torch.device("meta"):
        module = Projection(size, feed.width)
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if found != expected:
        raise NotSupported(f"{path}: has weights of the shapes {found}; expected {expected}; copy the checkpoint again")
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise NotSupported(f"{path}: has values that are not finite numbers; copy the checkpoint again")
    module.load_state_dict({name: tensor.to(device, dtype) for name, tensor in state.items()}, assign=True)
    return module.eval().requires_grad_(False)
