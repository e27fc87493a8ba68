"""Clients of one model share it: slots, room in the queue, and time between forward passes and parts of functions."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from making_services import ask_of, hold_thread, thread_of
from waiting import until, wait_until

from coconut_ds.generation.slot_passes import SlotPasses
from coconut_ds.parts import all_parts, in_parts, on_another_thread
from serve.clients.client import Client
from serve.engine import functions, model_thread, pass_clock
from serve.engine.shares import Shares
from serve.errors import QueueFullError, TimeLimitError, UnavailableError
from serve.requests.asking import Ask

GREEDY, SMALL, THIRD = Client("key:greedy"), Client("key:small"), Client("key:third")


def ask(client: Client, tokens: int = 8, **options: Any) -> Ask:
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "temperature": 1.0, "client": client}
    return ask_of(**{**settings, **options})


def test_the_one_that_used_least_comes_first_and_absence_earns_no_credit():
    shares: Shares[str] = Shares()
    turns = []
    for _ in range(6):
        turns.append(shares.first(["a", "b"]))
        shares.charge(turns[-1], 1.0 if turns[-1] == "a" else 2.0)
    assert turns == ["a", "b", "a", "a", "b", "a"]
    shares.enter("c")
    assert shares.first(["a", "b", "c"]) == "c"
    shares.charge("c", 100.0)
    assert [shares.first(["a", "c"]) for _ in range(3)] == ["a"] * 3


def test_a_client_whose_long_requests_hold_all_slots_does_not_make_others_wait(make_service):
    """A newcomer gets the spare slot at once, and slots that become free go to clients that were served less."""
    service = make_service(slots=4)
    thread, ended = thread_of(service), []

    async def note(one: Ask, name: str) -> None:
        await service.answer(one)
        ended.append(name)

    async def crowd() -> None:
        greedy = [asyncio.ensure_future(note(ask(GREEDY, 40, samples=6), f"greedy {i}")) for i in range(2)]
        await until(lambda: thread.num_running >= 4)
        await asyncio.gather(*(note(ask(SMALL, 2), "small") for _ in range(6)))
        assert ended == ["small"] * 6
        await asyncio.gather(*greedy)

    asyncio.run(crowd())
    wait_until(lambda: thread.num_open == 0)


def test_one_client_alone_never_gets_the_spare_slot(make_service):
    service = make_service(slots=2)
    thread, most = thread_of(service), []
    due = thread._jobs.due
    thread._jobs.due = lambda: (due(), most.append(thread.num_running))[0]
    service.answer_now(ask(GREEDY, 4, samples=8))
    assert max(most) == 2


def test_a_full_queue_has_room_for_other_clients_and_for_the_limit_of_each(make_service):
    service = make_service(slots=1, max_waiting=40, max_completions=16, client_room=16)
    thread, hold = thread_of(service), threading.Event()
    held = hold_thread(thread, hold)
    limited = Client("key:limited", max_waiting=2)

    async def crowd() -> None:
        begun = []

        async def begin(one: Ask) -> None:
            before = thread.num_open
            begun.append(asyncio.ensure_future(service.answer(one)))
            await until(lambda: begun[-1].done() or thread.num_open > before)
            if begun[-1].done():
                await begun[-1]

        for _ in range(2):
            await begin(ask(GREEDY, 2, samples=16))
        await begin(ask(limited, 2, samples=2))
        with pytest.raises(QueueFullError, match="of this client"):
            await begin(ask(limited, 2))
        with pytest.raises(QueueFullError, match="the queue is full"):
            await begin(ask(GREEDY, 2, samples=16))
        for client in (SMALL, THIRD):
            await begin(ask(client, 2, samples=16))
            with pytest.raises(QueueFullError, match="the queue is full"):
                await begin(ask(client, 2))
        hold.set()
        await asyncio.gather(*begun, return_exceptions=True)

    asyncio.run(crowd())
    assert held.result()
    assert thread.num_open == 0


def test_requests_and_functions_of_several_clients_share_the_time(make_service, monkeypatch):
    """Three endless functions run beside a request: passes get two thirds of the time, and the clients of the
    functions equal parts of the rest. A pass takes 3 s, and a part 2 s, of a clock that only they move."""
    service, now = make_service(), [0.0]
    thread, used = thread_of(service), dict.fromkeys(("a", "b", "c"), 0.0)
    thread.run(lambda reasoner: None).result(20)
    for module in (functions, model_thread):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    step, at_passes = thread._jobs.step, []

    def slow_step(op: Any) -> None:
        at_passes.append((now[0], dict(used)))
        now[0] += 3
        step(op)

    monkeypatch.setattr(thread._jobs, "step", slow_step)

    def endless(name: str):
        while True:
            now[0] += 2
            used[name] += 2
            yield None

    def begin(name: str, client: Client) -> Future[None]:
        return thread.run_in_parts(lambda reasoner: endless(name), client)

    endlessly = [begin("a", GREEDY), begin("b", GREEDY), begin("c", SMALL)]
    wait_until(lambda: all(used.values()))
    service.answer_now(ask(THIRD, 100))
    (began, before), (ended, after) = at_passes[0], at_passes[-1]
    parts = {name: after[name] - before[name] for name in used}
    assert len(at_passes) >= 100
    assert sum(parts.values()) / (ended - began) == pytest.approx(1 / 3, rel=0.05)
    assert parts["a"] / parts["b"] == pytest.approx(1, rel=0.1)
    assert parts["c"] / (parts["a"] + parts["b"]) == pytest.approx(1, rel=0.1)
    for one in endlessly:
        assert one.cancel()
    wait_until(lambda: not thread._functions.can_run)
    thread.run(lambda reasoner: None).result(20)


def test_parts_give_the_whole_result_and_their_errors_are_their_callers(make_service):
    service = make_service()

    @in_parts
    def doubled(value: int):
        (value,) = yield from on_another_thread(lambda: [2 * value])
        yield None
        if value > 10:
            raise ZeroDivisionError
        return value

    assert doubled(4) == all_parts(doubled.parts(4)) == 8

    async def both() -> list[object]:
        calls = (service.call_in_parts("tiny", lambda reasoner, v=v: doubled.parts(v)) for v in (1, 5, 9))
        return await asyncio.gather(*calls, return_exceptions=True)

    two, ten, error = asyncio.run(both())
    assert (two, ten, type(error)) == (2, 10, ZeroDivisionError)


def test_work_on_other_threads_shares_two_and_is_not_begun_for_callers_that_have_left():
    go_on, begun = threading.Event(), []

    def wait(number: int) -> str:
        begun.append(number)
        assert go_on.wait(20)
        return threading.current_thread().name

    works = [on_another_thread(partial(wait, number)) for number in range(5)]
    needed = [next(work) for work in works]
    wait_until(lambda: len(begun) == 2)
    works[4].close()
    go_on.set()
    names = {future.result(20) for future in needed[:4]}
    assert (len(names) <= 2, sorted(begun), needed[4].cancelled()) == (True, [0, 1, 2, 3], True)


def test_the_first_pass_and_a_new_engine_are_reported_when_they_hang(make_service, monkeypatch):
    service = make_service()
    thread, hang = thread_of(service), threading.Event()
    assert pass_clock.PassClock().plausible_s == pass_clock.FIRST_S
    monkeypatch.setattr(pass_clock, "HUNG_S", 0.1)
    thread._clock.plausible_s = 0.1
    monkeypatch.setattr(thread._jobs, "recover", lambda error: None if hang.wait(20) else "too late")
    thread._inbox.put(lambda: 1 / 0)
    wait_until(lambda: thread.problem is not None)
    assert "a new engine" in thread.problem
    hang.set()
    wait_until(lambda: thread.problem is None)


def test_a_pass_that_hangs_is_reported_and_long_work_is_not(make_service, monkeypatch):
    service, now = make_service(), [0.0]
    thread, hangs, hang = thread_of(service), threading.Event(), threading.Event()
    wait_until(lambda: 0 < thread._clock.plausible_s < pass_clock.FIRST_S)
    thread.run(lambda reasoner: None).result(20)
    monkeypatch.setattr(pass_clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    thread._clock.plausible_s = 0.1

    def parts() -> Iterator[None]:
        for _ in range(12):
            now[0] += pass_clock.HUNG_S
            assert thread.problem is None
            yield None

    asyncio.run(service.call_in_parts("tiny", lambda reasoner: parts()))
    assert service.problems == {}
    encode = SlotPasses.encode

    def hung(*arguments: Any, **named: Any) -> None:
        hangs.set()
        hang.wait(20)
        encode(*arguments, **named)

    monkeypatch.setattr(SlotPasses, "encode", hung)
    waiting = threading.Thread(target=service.answer_now, args=(ask(SMALL),))
    waiting.start()
    assert hangs.wait(20)
    assert service.problems == {}
    now[0] += pass_clock.HUNG_S + 1
    wait_until(lambda: "a forward pass has been running" in service.problems.get("tiny", ""), 5)
    with pytest.raises(UnavailableError, match="forward pass"):
        service.answer_now(ask(SMALL))
    hang.set()
    waiting.join(20)
    assert service.problems == {}


def test_a_request_ends_at_its_own_time_limit_and_gets_no_slot_after_it(make_service):
    service = make_service(slots=1)
    thread, hold = thread_of(service), threading.Event()
    hold_thread(thread, hold)
    for answer in (lambda one: asyncio.run(service.answer(one)), service.answer_now):
        with pytest.raises(TimeLimitError, match="X-Request-Timeout"):
            answer(ask(SMALL, timeout_s=0.05))
    submitted = []
    submit = thread._jobs._engine.submit
    thread._jobs._engine.submit = lambda *arguments: (submitted.append(arguments), submit(*arguments))[1]
    hold.set()
    wait_until(lambda: thread.num_open == 0)
    assert submitted == []
    service.answer_now(ask(SMALL, timeout_s=20))
    assert len(submitted) == 1


def test_stopping_ends_functions_between_two_parts(make_service):
    service = make_service()

    def endless() -> Iterator[None]:
        while True:
            yield None

    future = thread_of(service).run_in_parts(lambda reasoner: endless())
    service.close()
    with pytest.raises(UnavailableError, match="stopping"):
        future.result(5)
