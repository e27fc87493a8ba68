"""A strict device: runs code without a GPU, and notices tensors on the wrong device and reads that wait for the device.

Tensors on it say that they are on that device; operations on them are computed on the CPU. An operation on tensors of
different devices raises. What is read from them is always 0, so that cases do not depend on numbers. Each time the host
would wait for a GPU, which is called a *sync* here, the sync is counted or refused::

    with strict_device.strict() as syncs:
        loop = LatentLoop(strict_device.make_model("gpt2"))
        with syncs.refused():
            loop(latent_loss, inputs.to(strict_device.device()), targets).backward()
        with syncs.counted() as counted:
            generate(loop, requests, eos_ids=(0,))
        assert counted.total == 12, counted

A device type cannot be unregistered, and torch then believes that an accelerator is there. So this runs only in
processes of its own: ``test_strict_device.py`` starts one, in which pytest runs the files ``cases_*.py``.
"""

from strict_device.models import make_feed, make_model
from strict_device.registering import device, strict
from strict_device.syncs import Counted, HostSync, Syncs

__all__ = ["Counted", "HostSync", "Syncs", "device", "make_feed", "make_model", "strict"]
