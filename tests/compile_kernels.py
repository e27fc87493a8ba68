"""Compiles the Triton kernels of the part attention for GPUs. Needs the package triton, but no GPU and no torch.

    python tests/compile_kernels.py

Prints one line of JSON for each kernel: its name, compute capability, type, number of queries that share a key head,
size of a head, and the bytes of shared memory that a block of the machine code takes.
"""

import json
import os

# The interpreter's functions cannot be compiled.
os.environ.pop("TRITON_INTERPRET", None)

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from coconut_ds.model import attention_kernels as kernels

NUMBERS = {"log_sums": "*fp32", "deltas": "*fp32", "pads": "*u8", "scale": "fp32"}
"""Types of the arguments that have another one than the model's."""
POINTERS = {"query", "output", "d_output", "d_query", "keys", "values", "d_keys", "d_values"} | {
    f"{place}_{what}" for place in ("prefix", "later") for what in ("keys", "values")
}
"""Arguments that are tensors of the model's type; all others are integers."""

CASES = ((80, "bf16", 80, 128), (80, "fp32", 80, 128), (90, "bf16", 1, 64))
"""Compute capability (of an A100 and of an H100), type, number of queries that share a key head, and size of a head."""


def compiled(kernel: Any, capability: int, dtype: str, n: int, size: int) -> dict[str, Any]:
    """Compiles one kernel for padded batches with n queries that share a key head, and describes the result."""
    constants = {**kernels.blocks(n, size, dtype == "fp32"), "HAS_PADS": True, "LATER": False}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: NUMBERS.get(name, f"*{dtype}" if name in POINTERS else "i32") for name in kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    made = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", capability, 32))
    shared = made.metadata.shared
    return {"kernel": kernel.__name__, "sm": capability, "dtype": dtype, "n": n, "size": size, "shared": shared}


if __name__ == "__main__":
    for kernel in (kernels.forward_kernel, kernels.query_gradient_kernel, kernels.key_gradient_kernel):
        for capability, dtype, n, size in CASES:
            print(json.dumps(compiled(kernel, capability, dtype, n, size)), flush=True)
