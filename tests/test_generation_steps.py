"""Steps of fixed shape that graphs repeat give the tokens of plain steps, whatever requests share them."""

import random
from dataclasses import replace

import pytest
import torch
from making_requests import FAMILIES, LATENT, Ends, draw_request, prompt_of, run_with_arrivals
from recording import Recorder
from slow_loop import slow_generate
from tiny_models import make_model

from coconut_ds.generation import slot_passes, step_graphs, steps
from coconut_ds.generation.batch import generate
from coconut_ds.generation.choices import NO_TOKEN, ban
from coconut_ds.generation.pass_size import MOST, position_bytes, positions_within
from coconut_ds.generation.requests import AtOnce, Completion, Request, Sampling
from coconut_ds.generation.steps import column_bucket, row_bucket
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.latent_loop import LatentLoop


@pytest.fixture
def small_buckets(monkeypatch):
    """Several graphs even for tiny models, and captured soon."""
    monkeypatch.setattr(steps, "FEWEST_COLUMNS", 8)
    monkeypatch.setattr(steps, "FEWEST_BANNED", 1)
    monkeypatch.setattr(step_graphs, "WARM_UPS", 1)


def of_every_kind(model: torch.nn.Module, rng: random.Random, eos: int) -> list[Request]:
    """Requests that differ in everything that happens between two steps."""
    questions: list[list[int]] = []
    plain = [draw_request(rng, questions, model, eos) for _ in range(6)]
    long = Request(prompt_of([n % 30 + 1 for n in range(20)], 4), 8, suppress=(3, 5, LATENT), keep_thoughts=True)
    likeliest = slow_generate(model, long, eos)
    return [
        *plain,
        replace(long, at_once=AtOnce(Parallel("jacobi", 2), LATENT)),
        replace(long, sampling=Sampling(1.2, seed=7), log_probabilities=True, num_likeliest=3),
        replace(long, sampling=Sampling(0.9, top_k=4, top_p=0.9, seed=2)),
        replace(long, continuation=(7, 8, 9, 4)),
        replace(long, min_thoughts=1, end_thinking=likeliest[0], prompt=prompt_of([5, 6, 7], 5, ())),
        replace(long, edit_thought=lambda index, state: state * (0.5 if index == 1 else 1.0)),
        replace(long, prompt=prompt_of([9] * 88, 2), max_new_tokens=20),
    ]


def assert_equal(made: Completion, expected: Completion) -> None:
    assert made[:2] == expected[:2]
    assert [one.likeliest and one.likeliest[0][0] for one in made.scores] == [
        one.likeliest and one.likeliest[0][0] for one in expected.scores
    ]
    assert made.log_probabilities == pytest.approx(expected.log_probabilities, abs=1e-4)
    assert made.num_thoughts == expected.num_thoughts
    if expected.thoughts is not None:
        torch.testing.assert_close(made.thoughts, expected.thoughts, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_replayed_steps_equal_plain_ones(tiny_model, family, small_buckets):
    """Requests of every kind arrive at random; a replay reads and writes only addresses that the capture saw."""
    model, replays = tiny_model(family), 0
    for case in range(3):
        rng = random.Random(f"{family}/{case}")
        eos = rng.randrange(1, LATENT)
        requests = of_every_kind(model, rng, eos)
        plain = generate(LatentLoop(model), requests, [eos], slots=5)
        recorder = Recorder()
        engine = ThinkingEngine(LatentLoop(model), [eos], 5, 96, capturer=recorder)
        made = run_with_arrivals(engine, requests, rng)
        for one, expected in zip(made, plain, strict=True):
            assert_equal(one, expected)
        assert recorder.captures >= 3
        replays += recorder.replays
    assert replays > 40


def test_logits_of_a_step_are_not_taken_for_those_after_another_pass(tiny_model, small_buckets):
    """Where the first token follows an encoding or a Jacobi pass, but the slot took part in a step before."""
    model, ends = tiny_model("gpt2"), Ends()
    engine = ThinkingEngine(LatentLoop(model), [0], 1, 96, capturer=Recorder())
    ticket = engine.submit(Request(prompt_of([4, 5, 6], 8), 9), ends)
    for _ in range(4):
        engine.step(engine.due())
    assert engine.cancel(ticket)
    question = [n % 30 + 1 for n in range(20)]
    at_once = Request(prompt_of([*question, 3, 4], 3, ()), 5, at_once=AtOnce(Parallel("jacobi", 3), LATENT))
    requests = [Request(prompt_of([7, 8], 0), 5), Request(prompt_of(question, 0), 5), at_once]
    tickets = [engine.submit(request, ends) for request in requests]
    engine.run()
    assert [ends.completions[ticket].tokens for ticket in tickets] == [slow_generate(model, one, 0) for one in requests]
    assert ends.completions[tickets[2]].num_shared == 20


def test_what_cannot_be_captured_runs_without_graphs(tiny_model, small_buckets, caplog):
    """One warning, also if there are several shapes; steps go on where the capture failed."""
    model, recorder, ends = tiny_model("gpt2"), Recorder(fails=True), Ends()
    engine = ThinkingEngine(LatentLoop(model), [0], 2, 96, capturer=recorder)
    requests = [Request(prompt_of([n, 5, 6], 3), 9, min_new_tokens=9) for n in (1, 2, 3)]
    for request in requests:
        engine.submit(request, ends)
    engine.run()
    assert [ends.completions[n].tokens for n in range(3)] == [slow_generate(model, one, 0) for one in requests]
    assert (recorder.captures, recorder.replays) == (1, 0)
    assert [record.message for record in caplog.records] == [
        "generation runs without CUDA graphs, which is slower: this operation is not permitted when the stream is "
        "capturing"
    ]


def test_a_step_that_reads_a_value_cannot_be_captured(tiny_model, small_buckets, monkeypatch, caplog):
    """The recorder refuses what a captured stream refuses, so the test above would not pass with such a step."""
    step = slot_passes.SlotPasses.step

    def reading(self, inputs, places, columns, thinks=True):
        assert places.max().item() < columns
        step(self, inputs, places, columns, thinks)

    monkeypatch.setattr(slot_passes.SlotPasses, "step", reading)
    recorder = Recorder()
    engine = ThinkingEngine(LatentLoop(tiny_model("gpt2")), [0], 2, 96, capturer=recorder)
    engine.submit(Request(prompt_of([4, 5, 6], 3), 9, min_new_tokens=9))
    engine.run()
    assert (recorder.captures, recorder.replays) == (1, 0)
    assert "not permitted" in caplog.text


@pytest.mark.parametrize("family", FAMILIES)
def test_wider_passes_change_no_token(tiny_model, family, monkeypatch):
    """Widths are rounded up as on CUDA; padding reaches beyond the slot and beyond the model's context."""
    monkeypatch.setattr(slot_passes, "WIDENING", ("cpu",))
    model = tiny_model(family)
    question = [n % 30 + 1 for n in range(70)]
    requests = [
        Request(prompt_of(question, 3), 6),
        Request(prompt_of([*question[:60], 4, 4, 4, 4, 4, 4], 2), 6),
        Request(prompt_of([8, 9], 4), 6, at_once=AtOnce(Parallel("jacobi", 4), LATENT)),
        Request(prompt_of([7] * 90, 2), 20),
    ]
    made = generate(LatentLoop(model), requests, [0], slots=2)
    assert [one.tokens for one in made] == [slow_generate(model, request, 0, 96) for request in requests]
    assert made[1].num_shared == 60


def test_bans_are_those_of_each_row():
    logits = torch.randn(3, 9, generator=torch.Generator().manual_seed(0))
    expected = logits.clone()
    expected[0, [0, 4]] = expected[2, [0, 8, 3]] = float("-inf")
    ban(logits, torch.tensor([[0, 4, NO_TOKEN], [NO_TOKEN] * 3, [0, 8, 3]]))
    assert torch.equal(logits, expected)


def test_shapes_of_graphs_are_few_and_large_enough():
    for slots, capacity in ((1, 5), (32, 376), (48, 2048), (64, 131_072)):
        rows = {count: row_bucket(count, slots) for count in range(1, slots + 1)}
        columns = {count: column_bucket(count, capacity) for count in range(1, capacity + 1)}
        assert all(count <= size <= min(2 * count, slots) for count, size in rows.items())
        assert all(count <= size <= capacity for count, size in columns.items())
        assert max(rows.values()) == slots
        assert max(columns.values()) == capacity
        assert len(set(rows.values())) <= 8
        assert len(set(columns.values())) <= 8


def test_passes_grow_with_free_memory():
    each = position_bytes(LatentLoop(make_model("gpt2")))
    # 12 D² weights and 13 D biases and norms in each layer, in fp32.
    assert 2 * 4 * 12 * 32 < each < 2 * 4 * 16 * 32
    assert positions_within(0, each, 2048) == 2048
    assert positions_within(40_000 * each, each, 2048) == 10_000
    assert positions_within(10**15, each, 2048) == MOST
