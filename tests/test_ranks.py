"""The device that a single process computes on."""

import torch

from coconut_ds.distributed.ranks import alone


def test_without_an_accelerator_the_processor_is_used(monkeypatch):
    """torch names the accelerator that it was built for even if the machine has none."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert alone().device.type == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert alone().device.type == "cuda"
