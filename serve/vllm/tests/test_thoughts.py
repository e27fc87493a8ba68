"""Which states are kept, for how long, and what each position of a request is; without an engine."""

import random

import pytest
import torch

from coconut_vllm.card import Markers
from coconut_vllm.thoughts import Plan, Thoughts

MARKERS = Markers(start=7, end=8, thought=9, pause=None)
SLOTS, MOST, SIZE, VOCABULARY = 4, 3, 2, 12


def made():
    return Thoughts(SLOTS, MOST, SIZE, MARKERS, torch.float32, torch.device("cpu"))


def step(thoughts, slot, next_position, state, likeliest=1):
    """One step of decoding in a slot: the token that is written."""
    logits = torch.zeros(1, VOCABULARY)
    logits[0, likeliest] = 1
    slots, places = torch.tensor([slot]), torch.tensor([next_position])
    decision = thoughts.decide(logits, torch.full((1, SIZE), state), None, slots, places, torch.tensor([True]))
    sampled = torch.where(decision.forced >= 0, decision.forced, logits.argmax(-1))
    thoughts.begin_where_started(decision, sampled, slots, places)
    return int(sampled[0])


def inputs(thoughts, slot, positions):
    """The input embeddings of positions whose tokens have the embedding -1."""
    out = torch.zeros(len(positions), SIZE)
    slots = torch.full((len(positions),), slot, dtype=torch.int64)
    thoughts.embed(torch.full_like(out, -1), torch.tensor(positions, dtype=torch.int64), slots, out)
    return out[:, 0].tolist()


def test_thoughts_follow_the_prompt_and_are_fed_back_one_position_later():
    thoughts = made()
    thoughts.enter("a", 2, Plan(2, 2, True), [1, 2, 7], 3)
    thoughts.apply()
    written = [step(thoughts, 2, 3 + i, 10.0 + i) for i in range(4)]
    assert written == [9, 9, 8, 1]
    assert inputs(thoughts, 2, [0, 2, 3, 4, 5]) == [-1, -1, 10, 11, -1]


def test_a_text_never_contains_a_marker():
    thoughts = made()
    thoughts.enter("a", 0, None, [1], 1)
    thoughts.apply()
    assert all(
        step(thoughts, 0, 1 + i, 0.0, likeliest=marker) not in MARKERS.all for i, marker in enumerate(MARKERS.all)
    )


def test_the_model_may_end_thinking_after_the_least_number():
    thoughts = made()
    thoughts.enter("a", 0, Plan(3, 1, True), [7], 1)
    thoughts.apply()
    assert [step(thoughts, 0, 1 + i, 1.0, likeliest=8) for i in range(3)] == [9, 8, 0]


def test_the_model_may_begin_to_think_once():
    thoughts = made()
    thoughts.enter("a", 0, Plan(1, 1, False), [1], 1)
    thoughts.apply()
    assert [step(thoughts, 0, 1 + i, 5.0, likeliest) for i, likeliest in enumerate([2, 7, 3, 3, 7])] == [2, 7, 9, 8, 0]
    assert inputs(thoughts, 0, [2, 3, 4]) == [-1, 5, -1]


@pytest.mark.parametrize(
    ("ids", "rest"),
    [([7], [9, 9, 9, 8]), ([7, 9], [9, 9, 8]), ([7, 9, 9, 9], [8]), ([7, 9, 8], [1]), ([7, 9, 9, 9, 8, 4], [1])],
)
def test_a_request_goes_on_where_it_was_preempted(ids, rest):
    """In another slot, with what it has written so far; after an early end too."""
    thoughts = made()
    thoughts.enter("a", 0, Plan(3, 0, True), [7], 1)
    thoughts.apply()
    known = ids.count(9)
    assert [step(thoughts, 0, 1 + i, float(i)) for i in range(known)] == [9] * known
    thoughts.leave("a")
    thoughts.enter("b", 0, Plan(3, 3, True), [7], 1)
    thoughts.enter("a", 1, Plan(3, 0, True), ids, 1)
    thoughts.apply()
    assert inputs(thoughts, 1, list(range(1, 1 + known))) == [float(i) for i in range(known)]
    assert [step(thoughts, 1, len(ids) + i, 50.0) for i in range(len(rest))] == rest


def test_the_states_of_preempted_requests_outlast_those_that_finish():
    """Random requests under first come, first served: a request that comes back finds its own states."""
    chance, thoughts = random.Random(0), made()
    running: dict[str, int] = {}
    preempted: list[str] = []
    for number in range(2000):
        free = sorted(set(range(SLOTS)) - set(running.values()))
        if running and (not free or chance.random() < 0.5):
            name = chance.choice(sorted(running))
            running.pop(name)
            thoughts.leave(name)
            if chance.random() < 0.5:
                preempted.append(name)
        elif free:
            name = preempted.pop() if preempted else f"request {number}"
            is_new = name == f"request {number}"
            slot = running[name] = chance.choice(free)
            thoughts.enter(name, slot, Plan(1, 1, True), [7] if is_new else [7, 9], 1)
            thoughts.apply()
            value = float(name.split()[1])
            if is_new:
                assert step(thoughts, slot, 1, value) == 9
            assert inputs(thoughts, slot, [1]) == [value]


def test_a_request_whose_states_are_gone_is_an_error():
    thoughts = made()
    with pytest.raises(RuntimeError, match="no longer kept"):
        thoughts.enter("a", 0, Plan(2, 2, True), [7, 9], 1)


def test_the_states_take_the_memory_that_the_documentation_says():
    """(2 × max_num_seqs + 1) × max_thoughts × hidden size numbers."""
    assert made().num_bytes == (2 * SLOTS + 1) * MOST * SIZE * 4
    large = Thoughts(256, 6, 768, MARKERS, torch.bfloat16, torch.device("meta"))
    assert round(large.num_bytes / 1e6, 1) == 4.7
