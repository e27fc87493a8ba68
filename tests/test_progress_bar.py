"""Progress in a log that is no terminal: rare lines with loss, rate, time left and memory."""

import io
import re

import pytest
import torch

from coconut_ds.training.progress_bar import ESTIMATE_AFTER, ProgressBar, peak_memory


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def updates_logged(capsys: pytest.CaptureFixture[str], every: int | None, seconds: float, count: int) -> list[int]:
    """The numbers of the updates that get a line, if each takes ``seconds``."""
    clock = Clock()
    progress = ProgressBar(True, every, memory=lambda: 3 * 2**29, clock=clock)
    progress.start(1000 + count, 1000)
    for _ in range(count):
        clock.now += seconds
        progress.update(2, 0.5, 1234.0, {"ce": 0.25})
    progress.close()
    out = capsys.readouterr().out
    expected = (
        r"update (\S+)/\S+, stage 2, loss 0\.5000 \(ce 0\.2500\), 1,234 tokens/s, time left \S+, memory 1\.50 GiB"
    )
    lines = [re.fullmatch(expected, line) for line in out.splitlines()]
    assert None not in lines, out
    return [int(line[1].replace(",", "")) for line in lines if line is not None]


@pytest.mark.parametrize(
    ("every", "seconds", "count", "logged"),
    [
        (10, 1.0, 100, [1030, 1060, 1090]),
        (10, 5.0, 35, [1010, 1020, 1030]),
        (4, 8.0, 9, [1004, 1008]),
        (None, 60.0, 9, []),
        (1, 1.0, 29, []),
    ],
)
def test_a_line_comes_after_n_updates_or_30_s_whichever_is_later(every, seconds, count, logged, capsys) -> None:
    assert updates_logged(capsys, every, seconds, count) == logged


def test_time_left_is_that_of_the_updates_so_far(capsys) -> None:
    clock = Clock()
    progress = ProgressBar(True, 1, clock=clock)
    progress.start(80)
    for seconds in (500.0, 100.0):  # the first update, which may compile kernels, is not counted
        clock.now += seconds
        progress.update(0, 1.0, 10.0, {})
    first, second = capsys.readouterr().out.splitlines()
    assert (first.rsplit(", ", 1)[1], second.rsplit(", ", 1)[1]) == ("time left unknown", "time left 2:10:00")


def test_a_longer_epoch_changes_the_total(capsys) -> None:
    """The phases of data.schedule can have epochs of different lengths."""
    clock = Clock()
    progress = ProgressBar(True, 1, clock=clock)
    progress.start(4)
    for total in (4, 4, 10):
        progress.start(total, 99)
        clock.now += 60.0
        progress.update(0, 1.0, 10.0, {})
    assert "update 3/10, " in (last := capsys.readouterr().out.splitlines()[-1])
    assert "time left 0:07:00" in last


def test_a_run_for_debugging_says_once_how_long_it_will_take(capsys) -> None:
    clock = Clock()
    progress = ProgressBar(True, None, estimates=True, clock=clock)
    progress.start(111)
    for _ in range(60):
        clock.now += 0.5
        progress.update(0, 1.0, 10.0, {})
    assert ESTIMATE_AFTER == 10
    assert capsys.readouterr().out == (
        "the remaining 100 updates will take about 0:00:50 (hours:minutes:seconds), without validation\n"
    )


def test_a_terminal_has_the_bar_and_other_ranks_print_nothing(capsys, monkeypatch) -> None:
    clock = Clock()
    for is_first, terminal in ((True, True), (False, False)):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda terminal=terminal: terminal)
        monkeypatch.setattr("sys.stderr", stream)
        progress = ProgressBar(is_first, 1, estimates=not is_first, clock=clock)
        progress.start(50)
        for _ in range(20):
            clock.now += 31
            progress.update(0, 1.0, 10.0, {})
        progress.close()
        assert ("update" in stream.getvalue()) is terminal
    assert capsys.readouterr().out == ""


def test_the_memory_of_this_process_is_known() -> None:
    assert 2**24 < (peak_memory(torch.device("cpu")) or 0) < 2**40
