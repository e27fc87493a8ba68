"""Widths of the tensors that a pass computes with."""

CUDA_WIDTHS = 64
"""On CUDA, the numbers of columns that differ between passes are multiples of this. Libraries plan each new shape first
(on an H100, cuDNN's attention takes tens of milliseconds for it), so there should be few different shapes."""


def rounded_up(number: int, unit: int) -> int:
    """The smallest multiple of ``unit`` that is at least ``number``."""
    return -(-number // unit) * unit
