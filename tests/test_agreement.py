"""Validation on several ranks: which of them wait for each other, and how often they look whether to stop."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from coconut_ds.distributed.progress import Progress
from coconut_ds.evaluation.evaluator import CHECK_EVERY, _OwnPasses, _SamePasses


class Threads:
    """Ranks in threads. As in a process group, a collective ends when all ranks have called it."""

    def __init__(self, size: int) -> None:
        self.size, self.values, self.collectives = size, [0] * size, [0] * size
        self.barrier = threading.Barrier(size, timeout=10)

    def of(self, rank: int) -> "Rank":
        return Rank(self, rank)

    def largest(self, rank: int, value: int) -> int:
        self.collectives[rank] += 1
        self.values[rank] = value
        self.barrier.wait()
        found = max(self.values)
        self.barrier.wait()
        return found


class Rank:
    def __init__(self, group: Threads, rank: int) -> None:
        self.group, self.rank, self.progress = group, rank, Progress()

    def largest(self, value: int) -> int:
        return self.group.largest(self.rank, value)

    def any(self, flag: bool) -> bool:
        return bool(self.largest(int(flag)))


class Stop(Exception):
    """A request to stop."""


def evaluate(kind, counts: list[int], stop_at: int | None = None) -> tuple[list[int], list[int], list[str], Threads]:
    """Runs ranks with these numbers of operations. Returns how many each has made, its checks, and how it ended.

    The first rank is asked to stop when it makes its operation ``stop_at``.
    """
    group = Threads(len(counts))
    made, checks = [0] * len(counts), [0] * len(counts)

    def run(rank: int) -> str:
        here = group.of(rank)

        def check() -> None:
            checks[rank] += 1
            if here.any(rank == 0 and stop_at is not None and made[0] >= stop_at):
                raise Stop

        agree = kind(here, check)
        try:
            while agree(int(made[rank] < counts[rank])):
                made[rank] += 1
        except Stop:
            return "stopped"
        return "ended"

    with ThreadPoolExecutor(len(counts)) as pool:
        ends = list(pool.map(run, range(len(counts))))
    return made, checks, ends, group


@pytest.mark.parametrize("counts", [[5], [0, 0], [40, 3], [3, 40, 0], [CHECK_EVERY, 2 * CHECK_EVERY, 1], [100, 100]])
def test_ranks_with_whole_models_work_on_their_own_and_look_equally_often(counts):
    """No rank waits in vain, and there are two collectives for every ``CHECK_EVERY`` operations, not one for each."""
    made, checks, ends, group = evaluate(_OwnPasses, counts)
    assert made == counts
    assert ends == ["ended"] * len(counts)
    assert len(set(checks)) == 1
    assert checks[0] <= max(counts) // CHECK_EVERY + 2
    assert set(group.collectives) == {2 * checks[0]}


@pytest.mark.parametrize("counts", [[200, 200], [200, 10], [200, 0, 50]])
@pytest.mark.parametrize("kind", [_OwnPasses, _SamePasses])
def test_a_request_to_stop_ends_all_ranks_at_the_next_look(kind, counts):
    """Also those that have nothing left to do."""
    made, checks, ends, _ = evaluate(kind, counts, stop_at=20)
    assert ends == ["stopped"] * len(counts)
    assert len(set(checks)) == 1
    assert 20 <= made[0] <= 20 + CHECK_EVERY


def test_under_zero_3_all_ranks_make_every_operation():
    made, _, ends, group = evaluate(_SamePasses, [40, 3])
    assert ends == ["ended", "ended"]
    assert made == [40, 40]
    assert min(group.collectives) > 40
