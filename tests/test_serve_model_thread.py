"""The engine's thread: many callers share one model."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch
from making_services import ask_of as ask
from making_services import hold_thread, service_of, thread_of
from waiting import until, wait_until

from coconut_ds import load_reasoner
from coconut_ds.generation.requests import Sampling
from serve.checkpoints.offered import find_checkpoints
from serve.clients.client import Client
from serve.errors import QueueFullError, RequestError, TimeLimitError, UnavailableError
from serve.limits import EngineSettings
from serve.models.pool import Models
from serve.requests.asking import Ask


@pytest.fixture(scope="module")
def service(tiny_checkpoint):
    """A service for tests that do not change it."""
    made = service_of(tiny_checkpoint)
    yield made
    made.close()


def test_many_threads_and_coroutines_get_the_reasoners_own_text(make_service, tiny_checkpoint):
    """Prompts, numbers of thoughts and samples, all at once; random draws depend on nothing else."""
    service, reasoner = make_service(slots=3), load_reasoner(tiny_checkpoint)
    kinds = [({"n_thoughts": count}, {"n_thoughts": count}) for count in range(4)] + [
        ({"temperature": 1.0, "seed": 7, "samples": 3}, {"temperature": 1.0, "seed": 7, "samples": 3}),
        ({"force_text_after": 1, "top_p": 0.5, "temperature": 2.0, "seed": 1},) * 2,
    ]
    prompts = ("hello", "the cat 😀")
    expected = [
        [one.completion.tokens for one in reasoner.generate(prompts, max_new_tokens=8, **theirs)] for _, theirs in kinds
    ]

    async def all_at_once():
        return await asyncio.gather(*(service.answer(ask(*prompts, **ours)) for ours, _ in kinds * 3))

    async def plainly(ours):
        return await asyncio.to_thread(service.answer_now, ask(*prompts, **ours))

    async def both():
        return await asyncio.gather(all_at_once(), *(plainly(ours) for ours, _ in kinds))

    answers, *plain = asyncio.run(both())
    assert [[one.completion.tokens for one in choices] for _, choices in answers] == expected * 3
    assert [[one.completion.tokens for one in choices] for choices in plain] == expected


def test_a_cancelled_request_frees_its_slot(make_service):
    service = make_service(slots=2)
    thread = thread_of(service)

    async def leave():
        tasks = [asyncio.ensure_future(service.answer(ask(max_new_tokens=200, min_new_tokens=200))) for _ in range(4)]
        await until(lambda: thread.num_running >= 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with service.streaming(ask(max_new_tokens=200, min_new_tokens=200)) as (_, pieces):
            await anext(pieces)

    asyncio.run(leave())
    wait_until(lambda: thread.num_open == 0)
    assert (thread.num_running, thread.cache_use) == (0, 0.0)


def test_the_queue_is_bounded_and_lets_in_all_or_none(make_service):
    service = make_service(slots=1, max_waiting=32, max_completions=32)
    thread, hold = thread_of(service), threading.Event()
    held = hold_thread(thread, hold)

    async def crowd():
        first = asyncio.ensure_future(service.answer(ask(samples=16, temperature=1.0)))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(service.answer(ask(samples=16, temperature=1.0)))
        await until(lambda: thread.num_open >= 32)
        with pytest.raises(QueueFullError) as full:
            await service.answer(ask(samples=2))
        assert full.value.retry_after_s
        third = asyncio.ensure_future(service.answer(ask()))
        await until(lambda: thread.num_open >= 33)
        hold.set()
        await asyncio.gather(first, second, third)

    asyncio.run(crowd())
    assert held.result()
    assert thread.num_open == 0


def test_all_steps_of_a_request_share_its_deadline(make_service):
    service, states = make_service(), torch.zeros(2, 32)
    thread_of(service)
    begun = service.begun(ask(timeout_s=0.3))

    async def steps():
        await service.answer(begun)
        await asyncio.sleep(begun.deadline.remaining_s)
        with pytest.raises(TimeLimitError):
            await service.decode_thoughts(begun, states, 1)
        assert await service.decode_thoughts(ask(), states, 1)

    asyncio.run(steps())


def test_the_piece_of_the_settings_also_limits_probing(tiny_checkpoint):
    models = Models(find_checkpoints([str(tiny_checkpoint)]), EngineSettings(2, piece=7), 8, 10**9)
    with models.holding("tiny") as thread:
        assert (thread.reasoner.pass_positions, thread._jobs._piece) == (14, 7)
    models.close()


def test_other_work_runs_between_two_passes_and_its_errors_are_its_callers(make_service):
    service = make_service()
    thread = thread_of(service)

    async def both():
        text = asyncio.ensure_future(service.answer(ask(max_new_tokens=100, min_new_tokens=100)))
        await until(lambda: thread.num_running)
        names = [await service.call("tiny", lambda reasoner: threading.current_thread().name) for _ in range(3)]
        with pytest.raises(ZeroDivisionError):
            await service.call("tiny", lambda reasoner: 1 / 0)
        assert not text.done()
        return names, await text

    names, (_, (choice,)) = asyncio.run(both())
    assert len(set(names)) == 1 != {threading.current_thread().name}
    assert (
        choice.completion.tokens == service.answer_now(ask(max_new_tokens=100, min_new_tokens=100))[0].completion.tokens
    )
    assert service.call_now("tiny", lambda reasoner: reasoner.card.method) == "coconut"


def test_requests_end_at_the_time_limit_and_when_the_service_stops(make_service):
    service = make_service(request_s=0.3)
    thread, hold = thread_of(service), threading.Event()
    hold_thread(thread, hold)
    with pytest.raises(TimeLimitError):
        service.answer_now(ask())
    with pytest.raises(TimeLimitError):
        asyncio.run(service.answer(ask()))
    hold.set()
    wait_until(lambda: thread.num_open == 0)

    async def stop():
        waiting = asyncio.ensure_future(service.answer(ask(max_new_tokens=200, min_new_tokens=200)))
        await until(lambda: thread.num_running)
        service.fail_all()
        with pytest.raises(UnavailableError):
            await waiting

    asyncio.run(stop())
    with pytest.raises(UnavailableError, match="stopping"):
        service.answer_now(ask())


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"max_new_tokens": 0}, "max_tokens"),
        ({"max_new_tokens": 10_000}, "max_tokens"),
        ({"max_new_tokens": 250}, "max_tokens"),
        ({"min_new_tokens": 9}, "min_tokens"),
        ({"samples": 0}, "n"),
        ({"samples": 17}, "n"),
        ({"n_thoughts": 65}, "n_thoughts"),
        ({"n_thoughts": -1}, "n_thoughts"),
        ({"stop": ("",)}, "stop"),
        ({"stop": ("a",) * 5}, "stop"),
        ({"num_likeliest": 51}, "logprobs"),
        ({"prompts": ()}, "prompt"),
        ({"prompts": ("a",) * 17}, "prompt"),
        ({"prompts": ("a" * 300,)}, "prompt"),
        ({"prompts": ((),)}, "prompt"),
        ({"prompts": ((10**6,),)}, "prompt"),
        ({"prompts": ((-1,),)}, "prompt"),
        ({"prompts": ("a" * 10**6,)}, "prompt"),
        ({"top_p": 0.0}, "top_p"),
        ({"temperature": float("nan")}, "temperature"),
        ({"min_thoughts": 9}, "min_thoughts"),
    ],
)
def test_invalid_requests_are_refused_by_field(service, options, param):
    with pytest.raises(RequestError, match=param) as refused:
        service.answer_now(replace(ask(), **options))
    assert refused.value.param == param


def test_without_a_number_the_text_is_as_long_as_there_is_room(service):
    (choice,) = service.answer_now(Ask("tiny", ("a" * 200,), min_new_tokens=1))
    assert choice.num_prompt_tokens + choice.completion.num_thoughts + len(choice.completion.tokens) == 256
    assert choice.finish_reason == "length"
    with pytest.raises(RequestError, match="room"):
        service.answer_now(Ask("tiny", ("a" * 252,)))


def test_samples_of_all_prompts_have_draws_of_their_own(tiny_checkpoint):
    """Prompt i's sample j draws as sample i·n + j, so that equal prompts differ."""
    reasoner = load_reasoner(tiny_checkpoint)
    made = reasoner.generate(["a", "a"], temperature=1.0, samples=2, seed=3, max_new_tokens=12)
    assert len({tuple(one.completion.tokens) for one in made}) == 4
    assert Sampling(1.0, seed=3, sample=2) != Sampling(1.0, seed=3)


def test_what_is_cached_of_a_prompt_is_told_to_its_client_only(make_service):
    service = make_service()
    question = "a question that two clients send"
    asked = [
        service.answer_now(ask(question, client=Client(name)))[0].completion
        for name in ("key:a", "key:a", "key:b", "key:b")
    ]
    assert [one.num_shared > 0 for one in asked] == [False, True, False, True]
    assert len({tuple(one.tokens) for one in asked}) == 1
