"""Peak speeds of GPUs as their data sheets give them, and the model FLOP utilization (MFU) relative to them.

All values are for dense matrices (data sheets often print the double, which needs structured sparsity), with sums in
fp32. Sources, as published by NVIDIA:

* A100: "NVIDIA A100 Tensor Core GPU" data sheet, and the Ampere architecture white paper.
* H100, H200: "NVIDIA H100 Tensor Core GPU" and "NVIDIA H200 Tensor Core GPU" data sheets (halved where the sheet has
  an asterisk: with sparsity), and the Hopper architecture white paper.
* L4, L40S: "NVIDIA L4" and "NVIDIA L40S" data sheets.
* RTX 3090, RTX 4090, RTX A6000: the white papers "NVIDIA Ampere GA102 GPU Architecture" and "NVIDIA Ada GPU
  Architecture", rows "with FP32 Accumulate".
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """Peak speeds of one kind of GPU."""

    name: str
    pattern: str
    """A regular expression that is found in the name that torch reports for this kind of GPU, and for no other."""
    bf16: float
    """TFLOP/s of matrix products in bf16."""
    tf32: float
    """TFLOP/s of matrix products of fp32 matrices rounded to TF32."""
    fp32: float
    """TFLOP/s in fp32, without tensor cores."""
    bandwidth: float
    """GB/s between the GPU and its memory."""

    def peak(self, kind: str) -> float:
        """FLOP/s for ``kind``: bf16, tf32 or fp32."""
        return {"bf16": self.bf16, "tf32": self.tf32, "fp32": self.fp32}[kind] * 1e12


CARDS = (
    Card("A100 SXM 40 GB", r"A100-SXM.*-40GB", 312, 156, 19.5, 1555),
    Card("A100 SXM 80 GB", r"A100-SXM.*-80GB", 312, 156, 19.5, 2039),
    Card("A100 PCIe 40 GB", r"A100-PCIE-40GB", 312, 156, 19.5, 1555),
    Card("A100 PCIe 80 GB", r"A100 80GB PCIe", 312, 156, 19.5, 1935),
    Card("H100 SXM", r"H100 80GB HBM3", 989.4, 494.7, 66.9, 3350),
    Card("H100 PCIe", r"H100 PCIe", 756, 378, 51, 2000),
    Card("H100 NVL", r"H100 NVL", 835, 417, 60, 3900),
    Card("H200 SXM", r"H200(?! NVL)", 989.4, 494.7, 66.9, 4800),
    Card("H200 NVL", r"H200 NVL", 835, 417, 60, 4800),
    Card("L4", r"\bL4\b", 121, 60, 30.3, 300),
    Card("L40S", r"\bL40S\b", 362, 183, 91.6, 864),
    Card("RTX A6000", r"RTX A6000", 154.8, 77.4, 38.7, 768),
    Card("RTX 3090", r"RTX 3090(?! Ti)", 71, 35.6, 35.6, 936),
    Card("RTX 4090", r"RTX 4090(?! D)", 165.2, 82.6, 82.6, 1008),
)


def card_of(name: str) -> Card | None:
    """The entry of ``CARDS`` for the name that torch reports; None for other devices."""
    return next((card for card in CARDS if re.search(card.pattern, name)), None)


def mfu(operations: float, seconds: float, peak: float) -> float:
    """The share of the peak that useful arithmetic reaches: ``operations / (seconds · peak)``.

    Args:
        operations: floating point operations that the real tokens need. Padding and layers that are computed again do
            not count (Chowdhery et al. 2022, arXiv 2204.02311, appendix B); ``training_workload.operations`` counts
            them.
        seconds: duration of the update.
        peak: FLOP/s of the device, from ``Card.peak`` or measured.
    """
    return operations / (seconds * peak)
