"""Starts and stops the process group, by which the ranks of a run communicate."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from coconut_ds.distributed.launcher import free_port, launched, launched_rank, launched_ranks
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.distributed.zero import library
from coconut_ds.errors import ConfigError

LAUNCHER_VARIABLES = ("WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_own_variables: dict[str, str] = {}
"""Environment variables that ``start_ranks`` has set in a process without a launcher, until ``stop_ranks``."""


def start_ranks(timeout: timedelta | None = None) -> Ranks:
    """Initializes the process group: all processes that the launcher started; without a launcher, this one only.

    Args:
        timeout: how long a collective may wait; None: DeepSpeed's default (10 minutes, or DEEPSPEED_TIMEOUT).

    Raises:
        ConfigError: some of the launcher's environment variables are missing.
    """
    deepspeed = library()
    missing = [name for name in LAUNCHER_VARIABLES if name not in os.environ]
    by_launcher = launched()
    if by_launcher and missing:
        raise ConfigError(
            f"environment: RANK is set, but {', '.join(missing)} not; start with deepspeed, torchrun or plain python"
        )
    if not by_launcher:
        # Without these variables, DeepSpeed would look for MPI.
        _own_variables.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"})
        _own_variables.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())})
        os.environ.update(_own_variables)
    # On a CPU, init_distributed would compile this op, which takes a minute and a C++ compiler. gloo does not need it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    arguments = {} if timeout is None else {"timeout": timeout}
    deepspeed.init_distributed(verbose=False, **arguments)
    accelerator = deepspeed.accelerator.get_accelerator()
    name = accelerator.device_name(int(os.environ["LOCAL_RANK"])) if accelerator.device_name() != "cpu" else "cpu"
    if name != "cpu":
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    return Ranks(launched_rank(), launched_ranks(), torch.device(name), by_launcher)


def stop_ranks() -> None:
    """Destroys the process group, and unsets the variables of ``start_ranks``, which child processes would inherit."""
    if dist.is_initialized():
        # With torch's function, DeepSpeed would keep the destroyed groups, and use them in this process's next engine.
        library().comm.destroy_process_group()
    for name in _own_variables:
        os.environ.pop(name, None)
    _own_variables.clear()
