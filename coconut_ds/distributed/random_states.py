"""Random number generators: seeding them, and saving and restoring their states."""

import random
from typing import Any

import numpy
import torch


def seed_generators(seed: int) -> None:
    """Seeds every generator that a library may use: Python's, numpy's and torch's, on all devices."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """States of all generators that this process may use, by name. Includes that of the accelerator if there is one."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.accelerator.is_available():
        module = torch.get_device_module(torch.accelerator.current_accelerator())
        state["device"] = module.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restores what ``random_state`` returned; ignores the accelerator's state if this machine has no accelerator."""
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "device" in state and torch.accelerator.is_available():
        torch.get_device_module(torch.accelerator.current_accelerator()).set_rng_state(state["device"])
