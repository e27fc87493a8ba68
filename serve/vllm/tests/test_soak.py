"""What the soak counts."""

import time
from collections import Counter

import pytest
from soak import Clients, are_right


def test_requests_that_fail_are_counted_and_no_answer_is_no_success():
    clients = Clients("http://127.0.0.1:9", time.monotonic() + 0.3)
    clients.run(0)
    assert clients.counts["ConnectError"] > 0
    assert not are_right(clients.counts)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [({"right": 1, "cancelled": 2}, True), ({"cancelled": 2}, False), ({"right": 1, "wrong": 1}, False), ({}, False)],
)
def test_only_right_answers_are_a_success(counts, expected):
    assert are_right(Counter(counts)) is expected
