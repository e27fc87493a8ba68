"""Drawing many problems shows how far it is, once and where somebody can see it."""

import threading

import pytest

from coconut_ds.data import drawing
from coconut_ds.data.problem import Problem


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """A clock on which each drawn problem takes half a second."""
    now = [0.0]
    monkeypatch.setattr(drawing.time, "monotonic", lambda: now[0])
    return now


def drawn(clock: list[float], count: int) -> list[str]:
    def draw(index: int) -> Problem:
        clock[0] += 0.5
        return Problem(str(index), (), "")

    return [problem.question for problem in drawing.draw_all(draw, count, "train")]


def test_a_log_gets_a_line_every_half_minute(clock, capsys):
    assert drawn(clock, 150) == list(map(str, range(150)))
    assert capsys.readouterr().err.splitlines() == [
        "drawing training problems: 60 of 150, 2 problems/s, time left 00:45",
        "drawing training problems: 120 of 150, 2 problems/s, time left 00:15",
    ]


def test_other_ranks_and_other_threads_are_silent(clock, capsys, monkeypatch):
    found = []
    thread = threading.Thread(target=lambda: found.extend(drawn(clock, 150)))
    thread.start()
    thread.join()
    assert found == list(map(str, range(150)))
    monkeypatch.setenv("RANK", "1")
    assert drawn(clock, 150) == found
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_goes_away(clock, capsys, monkeypatch):
    monkeypatch.setattr(drawing, "BAR_AFTER_S", 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert drawn(clock, 3) == ["0", "1", "2"]
    shown = capsys.readouterr().err
    assert "drawing training problems" in shown
    assert not shown.endswith("\n")
