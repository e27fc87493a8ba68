"""The only module that imports deepspeed: the library, models built in shards, and whole parameters out of shards.

Under ZeRO-3 each rank holds a piece of every parameter. A model that is built ``in_shards`` never stands whole on a
rank: transformers cuts each parameter as soon as it is made and reads files on rank 0 alone. Whoever looks at a
parameter then does so while it is ``whole``, which all ranks must ask for together.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor


def library() -> Any:
    """The deepspeed module. Imported late: it takes seconds, and configuration and evaluation do without it."""
    if not torch.accelerator.is_available():
        # Named, since the search for one ends in a warning.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # Names of collectives that DeepSpeed uses and torch is about to rename.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    return deepspeed


@contextmanager
def without_compiler() -> Iterator[None]:
    """Functions that are to be compiled stay as they are. An engine that is made loads an optimizer that is not used
    here (Muon) and has its functions compiled, for which torch imports its whole compiler: more than a second."""
    compiler = torch.compile
    torch.compile = lambda model=None, **options: (lambda function: function) if model is None else model  # type: ignore
    try:
        yield
    finally:
        torch.compile = compiler


@contextmanager
def in_shards(values: Mapping[str, Any] | None) -> Iterator[None]:
    """Within it, transformers builds and loads models in shards. The ranks must have been started.

    Args:
        values: all that the engine will be told, ZeRO stage 3; None: models are built whole, as ever.
    """
    if values is None:
        yield
        return
    library()
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # transformers keeps a weak reference: this one is what holds it.
    held = HfDeepSpeedConfig(dict(values))
    try:
        yield
    finally:
        # Another model of this process, for an evaluation say, must be whole.
        unset_hf_deepspeed_config()
        del held


def is_sharded(parameter: Tensor) -> bool:
    """Whether this rank holds only a piece of it."""
    return hasattr(parameter, "ds_id")


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of a parameter, all pieces together."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def whole(parameters: Iterable[Tensor], changed: bool = False) -> AbstractContextManager[None]:
    """Within it, the parameters are whole on this rank. All ranks must ask for the same ones.

    Args:
        parameters: sharded or not.
        changed: they are written to; what counts is what rank 0 writes.
    """
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    return _gathered(sharded, changed)


@contextmanager
def _gathered(parameters: list[Tensor], changed: bool) -> Iterator[None]:
    if not parameters:
        yield
        return
    with library().zero.GatheredParameters(parameters, modifier_rank=0 if changed else None):
        yield
