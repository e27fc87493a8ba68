"""What ranks exchange in an update, counted: under ZeRO-3 each weight is gathered once, whatever the thoughts do."""

import json
from pathlib import Path

import pytest
from launching import environment, run

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "collectives.py"


def counted(ranks: int, *arguments: str) -> dict:
    """The counts of the benchmark."""
    done = run([BENCHMARK, "--json", *arguments], environment(), ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["ranks"] == ranks
    return counts


@pytest.fixture(scope="module")
def on_two() -> dict:
    """All counts, on two ranks."""
    return counted(2)


@pytest.fixture(scope="module", params=[2, 4])
def found(request, on_two) -> dict:
    """The counts on two ranks and on four; on four only what the tests compare."""
    return on_two if request.param == 2 else counted(4, "--settings", "zero2", "zero3", "--brief")


@pytest.mark.slow
def test_held_weights_are_gathered_once_for_an_update(found):
    """Before the forward pass; with and without thoughts; for two micro steps together, half a gather each."""
    assert (found["zero3_gathers_forward"], found["zero3_gathers_backward"]) == (1, 0)
    for counts in found["zero3"].values():
        for what in ("gathers", "gathered"):
            assert [counts[phase][what] for phase in ("forward", "backward", "step")] == [1, 0, 0]
    accumulating = found["zero3_accumulating"]
    assert [accumulating[phase]["gathers"] for phase in ("forward", "backward")] == [0.5, 0]


@pytest.mark.slow
def test_a_validation_gathers_once_and_leaves_the_weights_to_the_next_update(on_two):
    """Losses and generated texts together; DeepSpeed itself gathers for each pass."""
    assert on_two["zero3_validation"] == {"validation": 1, "update": 0}
    assert on_two["zero3_released_validation"]["validation"] > 20


@pytest.mark.slow
def test_a_new_number_of_thoughts_changes_neither_gathers_nor_losses(on_two):
    """Over five updates in one engine. Losses equal, bit for bit, those of weights that DeepSpeed gathers and releases
    for each module: with 6 thoughts 8 times in the forward and twice in the backward pass."""
    assert (on_two["zero3_released_gathers_forward"], on_two["zero3_released_gathers_backward"]) == (8, 2)
    held, released = on_two["zero3_changing"], on_two["zero3_released_changing"]
    assert [held[phase]["gathers"] for phase in ("forward", "backward")] == [1, 0]
    assert held["losses"] == released["losses"]
    assert len(set(held["losses"])) == 5
    assert on_two["zero3_accumulating"]["losses"] == on_two["zero3_released_accumulating"]["losses"]


@pytest.mark.slow
def test_thoughts_add_no_traffic(found):
    """What a rank receives in an update, with and without thoughts: relative to the bytes of all weights, and to the
    (w-1)/w of them that other ranks have, 2 for gradients that are reduced, 1 if they are scattered too, and 1 for
    weights that are gathered."""
    share = (found["ranks"] - 1) / found["ranks"]
    for name, expected in (("zero0", 2), ("zero1", 3), ("zero2", 3), ("zero3", 2)):
        if name not in found:
            continue
        without, with_thoughts = (found[name][number]["received"] for number in ("0", "6"))
        assert without == with_thoughts == pytest.approx(expected * share, abs=0.01), name
