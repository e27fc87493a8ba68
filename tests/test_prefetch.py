"""Batches prepared ahead: in order, each once, at most one ahead, errors raised at the batch that caused them."""

import threading

import pytest
import torch

from coconut_ds.training.prefetch import Prepared, prepared_ahead

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_each_batch_comes_once_in_order_and_one_is_made_ahead(count):
    asked, own = [], threading.get_ident()

    def prepare(indices):
        assert threading.get_ident() != own
        asked.append(indices)
        return Prepared(list(indices), [], len(indices))

    taken = []
    for prepared in prepared_ahead(prepare, [[n, n + 1] for n in range(count)], CPU):
        taken.append(prepared.indices)
        assert len(asked) <= len(taken) + 1
    assert taken == asked == [[n, n + 1] for n in range(count)]


def test_an_error_is_raised_in_place_of_its_batch():
    def prepare(indices):
        if indices == [2]:
            raise ValueError("broken")
        return Prepared(list(indices), [], 1)

    batches = prepared_ahead(prepare, [[1], [2], [3]], CPU)
    assert next(batches).indices == [1]
    with pytest.raises(ValueError, match="broken"):
        next(batches)


def test_the_preparing_thread_uses_the_ranks_gpu(monkeypatch):
    """A new thread would use the first GPU, so its pinned memory would take memory there on behalf of every rank."""
    used = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: used.append((device, threading.get_ident())))
    threads = []

    def prepare(indices):
        threads.append(threading.get_ident())
        return Prepared(list(indices), [], 1)

    assert len(list(prepared_ahead(prepare, [[1], [2]], torch.device("cuda", 3)))) == 2
    assert used == [(torch.device("cuda", 3), threads[0])]
    assert len(list(prepared_ahead(prepare, [[1]], CPU))) == len(used)
