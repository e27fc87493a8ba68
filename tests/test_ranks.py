"""The device that a single process computes on, and what ranks do while the first decides."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from waiting import wait_until

from coconut_ds.distributed import ranks as ranks_module
from coconut_ds.distributed.launcher import free_port
from coconut_ds.distributed.ranks import Ranks, alone
from coconut_ds.errors import CoconutError, ConfigError


def test_without_an_accelerator_the_processor_is_used(monkeypatch):
    """torch names the accelerator that it was built for even if the machine has none."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert alone().device.type == "cpu"
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert alone().device.type == "cuda"


@dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Two ranks as threads. They exchange values over lists; the number of collectives each has entered is counted."""

    values: list[Any] = field(default_factory=list)
    entered: list[int] = field(default_factory=list)

    def from_first(self, value: Any) -> Any:
        self.entered.append(self.rank)
        if self.is_first:
            self.values.append(value)
        wait_until(lambda: self.values)
        return self.values[0]


@pytest.mark.parametrize("fails", [None, ConfigError("no"), ValueError("no")])
def test_no_rank_enters_a_collective_before_the_first_has_decided(monkeypatch, fails):
    """So the timeout of collectives does not limit how long rank 0 may wait for a lock. Also when the call raises."""
    port = free_port()
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    clients = threading.local()

    def own_client() -> dist.TCPStore:
        if not hasattr(clients, "store"):
            clients.store = dist.TCPStore("127.0.0.1", port, is_master=False)
        return clients.store

    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", own_client)
    monkeypatch.setattr(ranks_module, "WAIT_S", 0.05)
    values, entered, results = [], [], {}

    def decide() -> int:
        time.sleep(0.4)
        assert entered == []
        if fails is not None:
            raise fails
        return 7

    def run(rank: int) -> None:
        try:
            results[rank] = ThreadRanks(rank, 2, values=values, entered=entered).first_decides(decide)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(entered) == [0, 1]
    if fails is None:
        assert results == {0: 7, 1: 7}
    else:
        assert results[0] is fails
        assert isinstance(results[1], CoconutError)
    del store
