"""The weights of a feed in a model folder: ``latent/feed.safetensors``.

They are in a subfolder because the top of a model folder holds a Hugging Face model alone, which other programs load.
The card says which feed it is. A file that does not fit the card completely is an error, and so is a file without a
card that names a feed: without its feed, the model would compute other thoughts than those that it was trained with.

Shapes:
    D  hidden size
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save_file
from torch import Tensor

from coconut_ds.errors import CheckpointError
from coconut_ds.files import not_downloaded
from coconut_ds.model.feed import FEEDS, Feed, FeedSpec
from coconut_ds.model.support import refuse_partial
from coconut_ds.model.weights_file import read_header

FEED_FILE = Path("latent", "feed.safetensors")
"""The path of the weights within a model folder."""
AGAIN = "copy or download the folder again"


def write_feed(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Writes a feed's state dict, with whole tensors, into a model folder."""
    path = folder / FEED_FILE
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, path, {"format": "pt"})


def check_feed_file(folder: Path, spec: FeedSpec | None) -> None:
    """Refuses a model folder whose feed cannot be loaded; reads only the header of its file.

    Args:
        folder: the model folder.
        spec: the feed that its card names; None: the card names none, or there is no card.

    Raises:
        CheckpointError: the file is missing or no safetensors file, or there is one that no card names.
    """
    path = folder / FEED_FILE
    if spec is None and path.exists():
        raise CheckpointError(
            f"{path}: holds the weights of a feed, but no coconut.json of this folder names a feed, so these files are "
            "not of one checkpoint; copy the checkpoint's own coconut.json, or remove the file"
        )
    if spec is None:
        return
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; coconut.json names a feed ({spec}); {AGAIN}")
    if fault := not_downloaded(path):
        raise CheckpointError(f"{path}: {fault}")
    read_header(path)


def read_feed(folder: Path, spec: FeedSpec | None, size: int, dtype: torch.dtype) -> Feed | None:
    """The feed of a model folder, on the CPU; None if its card names none.

    Args:
        folder: the model folder.
        spec: see ``check_feed_file``.
        size: D.
        dtype: the type of the weights.

    Raises:
        CheckpointError: see ``check_feed_file``; or the file does not fit the card or the model, or holds values that
            are not finite.
    """
    check_feed_file(folder, spec)
    if spec is None:
        return None
    path = folder / FEED_FILE
    # Not mapped to the file, see ``checkpoint.py``.
    state = load(path.read_bytes())
    # Without memory and random numbers; ``assign`` puts the tensors of the file into it.
    with torch.device("meta"):
        feed = FEEDS[spec.kind](size, spec.width)
    wanted = feed.state_dict()
    refuse_partial(
        path,
        [name for name in wanted if name not in state],
        [name for name in state if name not in wanted],
        [name for name in state if name in wanted and state[name].shape != wanted[name].shape],
        f"coconut.json names a feed ({spec}) for states of {size} numbers; {AGAIN}",
    )
    for name, tensor in state.items():
        if not (tensor.is_floating_point() and bool(tensor.isfinite().all())):
            raise CheckpointError(f"{path}: {name} has values that are not finite numbers; {AGAIN}")
    feed.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    return feed
