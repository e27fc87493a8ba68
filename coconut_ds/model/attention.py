"""Names of attention kernels, checked before anything is loaded."""

import importlib.util

import torch

from coconut_ds.errors import ModelError

PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Kernels that need a package, a CUDA device and half precision."""
BUILT_IN = ("sdpa", "eager")


def check_attention(name: str) -> None:
    """Refuses a kernel that is unknown or not to be had here.

    Raises:
        ModelError: says what is missing.
    """
    if name in BUILT_IN:
        return
    if name not in PACKAGES:
        raise ModelError(
            f"model.attn_implementation={name}: unknown; expected one of {', '.join([*BUILT_IN, *PACKAGES])}"
        )
    missing = []
    if importlib.util.find_spec(PACKAGES[name]) is None:
        missing.append(f"the package {PACKAGES[name]} (pip install 'coconut-ds[gpu]')")
    if not torch.cuda.is_available():
        missing.append("a CUDA device")
    if missing:
        raise ModelError(
            f"model.attn_implementation={name}: {' and '.join(missing)} is missing; set model.attn_implementation=sdpa"
        )
