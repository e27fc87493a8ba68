"""The only module that imports deepspeed: the library itself, and parameters that ZeRO-3 divides into shards.

Under ZeRO-3 each rank holds one shard of every parameter. A model is never whole on any rank while it is built within
``in_shards``: transformers partitions each parameter as soon as it is created, and reads files on rank 0 only. To read
or write such a parameter, all ranks must enter ``whole`` together.
"""

import os
import warnings
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coconut_ds.cli.logs import quiet


def library() -> Any:
    """The deepspeed module. Imported on first use: it takes seconds, and evaluation does without it."""
    if not torch.accelerator.is_available():
        # Without this, DeepSpeed searches for an accelerator and warns that it found none.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls collectives by names that torch has deprecated.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    import deepspeed
    from deepspeed.utils import logger

    quiet(logger)
    return deepspeed


@contextmanager
def without_compiler() -> Iterator[None]:
    """Makes ``torch.compile`` return its argument unchanged.

    Creating an engine loads an optimizer that this project does not use (Muon), which compiles functions when it is
    imported; for that, torch would import its compiler, which takes more than a second.
    """
    compiler = torch.compile
    torch.compile = lambda model=None, **options: (lambda function: function) if model is None else model  # type: ignore
    try:
        yield
    finally:
        torch.compile = compiler


@contextmanager
def in_shards(values: Mapping[str, Any] | None) -> Iterator[None]:
    """Within it, transformers builds and loads models in shards. The process group must be initialized.

    Args:
        values: the complete configuration of the ZeRO-3 engine that will train the model; None: models are built whole.
    """
    if values is None:
        yield
        return
    library()
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # transformers keeps only a weak reference to this object.
    held = HfDeepSpeedConfig(dict(values))
    try:
        yield
    finally:
        # Models that this process builds later, for example for an evaluation, must be whole.
        unset_hf_deepspeed_config()
        del held


def is_sharded(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has divided this parameter, so that this rank holds only a shard of it."""
    return hasattr(parameter, "ds_id")


def whole_shape(parameter: Tensor) -> torch.Size:
    """The shape of the full parameter, whether or not it is sharded."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def whole(parameters: Iterable[Tensor], changed: bool = False) -> AbstractContextManager[None]:
    """Within it, each rank holds the full parameters. All ranks must enter it together, with the same parameters.

    Args:
        parameters: sharded or not.
        changed: whether the block modifies them; on exit, the values on rank 0 are distributed to all ranks.
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


def state_classes() -> dict[str, type]:
    """The classes of DeepSpeed whose objects occur in the state of an engine, by name. They hold numbers only."""
    library()
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return {one.__name__: one for one in (DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address)}


def convert_to_universal(source: Path, target: Path) -> None:
    """Runs DeepSpeed's converter, which makes of the state of some ranks one that any number of ranks can load."""
    library()
    from deepspeed.checkpoint import ds_to_universal

    options = Namespace(input_folder=str(source), output_folder=str(target), inject_missing_state=True)
    options.num_extract_workers, options.num_merge_workers = 4, 2
    options.keep_temp_folder, options.strict = False, True
    ds_to_universal.main(options)
