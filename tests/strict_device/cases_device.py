"""The strict device itself: what it refuses, what it counts, and what it lets pass."""

import pytest
import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException

import strict_device
from strict_device import HostSync

DEVICE = strict_device.device()


def test_operations_on_two_devices_raise(syncs):
    there, here = torch.zeros(3, device=DEVICE), torch.zeros(3)
    with pytest.raises(RuntimeError, match="same device"):
        there + here
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([there, here])


READS = {
    "item": lambda t: t[0].item(),
    "float": lambda t: float(t.sum()),
    "int": lambda t: int(t.argmax()),
    "bool": lambda t: bool(t[0] > 0),
    "tolist": lambda t: t.tolist(),
    "rows": lambda t: t.view(2, 2).tolist(),
    "cpu": lambda t: t.cpu(),
    "to": lambda t: t.to("cpu", torch.float64),
    "copy_": lambda t: torch.zeros(4).copy_(t),
    "equal": lambda t: torch.equal(t, t),
    "nonzero": lambda t: t.nonzero(),
    "mask": lambda t: t[t > 0],
    "mask_of_tensors": lambda t: t.index_put_((t > 0,), t[:1]),
}
COPIES = {
    "tensor": lambda t: torch.tensor([1, 2], device=t.device),
    "moved": lambda t: torch.zeros(3).to(t.device),
    "not_pinned": lambda t: torch.zeros(3).to(t.device, non_blocking=True),
    "blocking": lambda t: torch.zeros(3).pin_memory().to(t.device),
    "index": lambda t: t[[0, 1]],
    "index_put": lambda t: t.__setitem__([0, 1], 2.0),
}
NO_SYNCS = {
    "arange": lambda t: torch.arange(3, device=t.device),
    "slice": lambda t: t[1:].add_(t[0]),
    "number": lambda t: t.__setitem__(0, 2.0),
    "masked_fill": lambda t: t.masked_fill_(t > 0, 1.0),
    "pinned": lambda t: torch.zeros(3).pin_memory().to(t.device, non_blocking=True),
    "made_pinned": lambda t: torch.empty(3, pin_memory=True).to(t.device, non_blocking=True),
    "on_the_cpu": lambda t: torch.zeros(3).tolist(),
    "index_there": lambda t: t[torch.zeros(2, dtype=torch.long, device=t.device)],
}


@pytest.mark.parametrize("name", [*READS, *COPIES, *NO_SYNCS])
def test_each_sync_is_counted_once_and_can_be_refused(syncs, name):
    tensor = torch.zeros(4, device=DEVICE)
    operation = {**READS, **COPIES, **NO_SYNCS}[name]
    with syncs.counted() as counted:
        operation(tensor)
    assert (counted.reads, counted.copies) == (int(name in READS), int(name in COPIES)), counted
    if counted.total:
        with syncs.refused(), pytest.raises(HostSync, match="cases_device"):
            operation(tensor)


def test_other_shapes_that_depend_on_values_are_refused(syncs):
    tensor = torch.zeros(4, device=DEVICE)
    for operation in (tensor.unique, lambda: tensor.masked_select(tensor > 0)):
        with pytest.raises(DynamicOutputShapeException):
            operation()


def test_real_batches_are_moved_and_pinned_memory_is_known_in_other_threads(syncs):
    """The thread that prepares batches has real tensors: the modes of this thread do not reach it."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        plain, pinned = pool.submit(lambda: (torch.arange(4), torch.arange(4).pin_memory())).result()
        assert pool.submit(lambda: (plain.is_pinned(), pinned.is_pinned(), pinned[1:].tolist())).result() == (
            *(False, True),
            [1, 2, 3],
        )
    with syncs.counted() as counted:
        moved = pinned.to(DEVICE, non_blocking=True)
    assert (moved.device, moved.shape, counted.total) == (DEVICE, (4,), 0)
    with syncs.counted() as counted:
        plain.to(DEVICE, non_blocking=True)
    assert (counted.reads, counted.copies) == (0, 1)
    assert plain.tolist() == [0, 1, 2, 3]
