"""Ranks that work apart end together when one of them is interrupted, fails, dies or falls silent."""

import itertools
import signal
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from held_evaluation import HELD_AT
from launching import environment, start
from making_evaluations import arguments_of, count_kept, make_place, predictions, run_evaluation
from waiting import wait_until

from coconut_ds.distributed import peers as module
from coconut_ds.distributed.interrupts import Interrupted
from coconut_ds.distributed.launcher import free_port
from coconut_ds.distributed.peers import Peers, RankLost
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import CoconutError, DataError

HELD = Path(__file__).parent / "held_evaluation.py"


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ranks in one process, over one store, that beat often; receives the exit codes of those that would end.

    Only a test that says so ends a rank for silence, since a busy machine may stop a thread for seconds.
    """
    server = dist.TCPStore("127.0.0.1", free_port(), is_master=True, wait_for_workers=False)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: server)
    codes: list[int] = []
    monkeypatch.setattr(module.os, "_exit", codes.append)
    for name, value in {
        "BEAT_S": 0.01,
        "SILENT_BEATS": 100_000,
        "STARTING_BEATS": 100_000,
        "GRACE_S": 60.0,
        "_uses": itertools.repeat(0),
    }.items():
        monkeypatch.setattr(module, name, value)
    return codes


def trouble_of(peers: Peers) -> CoconutError:
    wait_until(peers.trouble)
    with pytest.raises(CoconutError) as caught:
        peers.check(lambda: "3 are kept")
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (Interrupted("SIGTERM"), Interrupted, "rank 1 was interrupted: SIGTERM"),
        (KeyboardInterrupt(), Interrupted, "rank 1 was interrupted: KeyboardInterrupt"),
        (DataError("no such file"), CoconutError, "rank 1: no such file"),
        (RuntimeError("out of memory"), CoconutError, "rank 1: RuntimeError: out of memory"),
    ],
)
def test_all_ranks_end_when_one_is_interrupted_or_fails(exits, error, kind, words):
    first, last = Peers(Ranks(0, 3)), Peers(Ranks(2, 3))
    with pytest.raises(CoconutError) as caught, first, last:  # noqa: PT012
        with pytest.raises(type(error)), Peers(Ranks(1, 3)):
            raise error
        told = [trouble_of(each) for each in (first, last)]
        assert [(type(each), str(each)) for each in told] == [(kind, words)] * 2
        raise told[0]
    assert str(caught.value) == words
    assert exits == []


def test_a_silent_rank_counts_as_dead_and_a_slow_one_does_not(exits, monkeypatch):
    # The ranks wait for 1.5 s for a sign of life.
    for name, value in {"BEAT_S": 0.025, "SILENT_BEATS": 60, "GRACE_S": 0.1}.items():
        monkeypatch.setattr(module, name, value)
    with Peers(Ranks(0, 3)) as first, Peers(Ranks(2, 3)) as last:
        with Peers(Ranks(1, 3)):
            wait_until(lambda: first._heard[1] >= 0 and last._heard[0] >= 0)
            time.sleep(2)
            assert first.trouble() is last.trouble() is None
        lost = trouble_of(first)
        assert str(lost) == "rank 1 has ended or does not answer; 3 are kept"
        # Rank 0's main thread does nothing: it tells the others and ends where it waits.
        wait_until(lambda: 75 in exits)
        assert "rank 1 has ended" in str(trouble_of(last))


def test_ranks_meet_however_long_one_takes_and_not_without_it(exits, monkeypatch):
    order: list[str] = []
    with Peers(Ranks(0, 2)) as first, Peers(Ranks(1, 2)) as other:

        def late() -> None:
            time.sleep(0.3)
            order.append("late")
            other.meet(lambda: None)

        thread = threading.Thread(target=late)
        thread.start()
        first.meet(first.check)
        order.append("met")
        thread.join()
    assert order == ["late", "met"]
    monkeypatch.setattr(module, "_uses", itertools.repeat(1))
    monkeypatch.setattr(module, "SILENT_BEATS", 60)
    with pytest.raises(RankLost), Peers(Ranks(0, 2)) as first:  # noqa: PT012
        with Peers(Ranks(1, 2)):
            wait_until(lambda: first._heard[1] >= 0)
        first.meet(first.check)


@pytest.mark.slow
def test_an_evaluation_ends_on_all_ranks_when_one_is_killed_and_carries_on(tmp_path):
    """Without a launcher that would end the others. The rank that is killed holds the store of the process group."""
    place, out, release = make_place(tmp_path, 149), tmp_path / "out", tmp_path / "release"
    command = [HELD, release, *arguments_of(place, out), "batch_size=16"]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = []
    for rank in (0, 1):
        with (tmp_path / f"stderr_{rank}").open("w") as stderr:
            given = environment(RANK=str(rank), LOCAL_RANK=str(rank), **variables)
            processes.append(start(command, given, stderr=stderr))
    try:
        wait_until(lambda: count_kept(out) == 2 * HELD_AT or any(p.poll() is not None for p in processes), limit_s=120)
        processes[0].send_signal(signal.SIGKILL)
        assert processes[0].wait(60) == -signal.SIGKILL
        release.touch()
        began = time.monotonic()
        assert processes[1].wait(60) == 75, (tmp_path / "stderr_1").read_text()
        assert time.monotonic() - began < 20
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = (tmp_path / "stderr_1").read_text()
    assert "interrupted (rank 0 has ended or does not answer; at least" in said
    assert "run the same command to continue" in said
    assert count_kept(out) >= 2 * HELD_AT
    run_evaluation([*arguments_of(place, out), "batch_size=16"])
    assert [line["index"] for line in predictions(out)] == list(range(149))
