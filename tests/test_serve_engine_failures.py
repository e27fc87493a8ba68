"""A failure of the engine affects only the requests that it hit, and a new engine takes its place."""

import asyncio

import pytest
from making_services import ask_of as ask
from making_services import thread_of
from waiting import until, wait_until

from coconut_ds.model.latent_loop import LatentLoop
from serve.errors import EngineFailedError, UnavailableError
from serve.limits import EngineSettings


def test_a_failing_pass_fails_its_requests_and_the_next_ones_are_served(make_service, caplog):
    service = make_service()
    thread, good = thread_of(service), service.answer_now(ask())[0].completion.tokens
    states = LatentLoop.states

    def broken(*arguments, **named):
        raise RuntimeError("a kernel failed")

    def fail_once(loop, *arguments, **named):
        thread.reasoner.loop.states = states.__get__(thread.reasoner.loop)
        raise RuntimeError("a kernel failed")

    thread.reasoner.loop.states = fail_once.__get__(thread.reasoner.loop)
    with pytest.raises(EngineFailedError, match="request's id"):
        service.answer_now(ask("one", "two"))
    assert "in-process" in caplog.text
    assert "a kernel failed" in caplog.text
    assert service.answer_now(ask())[0].completion.tokens == good
    assert service.problems == {}
    thread.reasoner.loop.states = broken
    with pytest.raises(EngineFailedError):
        service.answer_now(ask())
    wait_until(lambda: service.problems)
    with pytest.raises(UnavailableError, match="cannot be used"):
        service.answer_now(ask())
    assert thread.num_open == 0


def test_clients_are_answered_when_the_engine_cannot_even_cancel(make_service, monkeypatch):
    """As after an error that a CUDA device keeps: everything that touches it fails."""

    def broken(*arguments, **named):
        raise RuntimeError("the device failed")

    service = make_service(slots=1, request_s=10)
    thread = thread_of(service)
    for name in ("step", "cancel", "close"):
        monkeypatch.setattr(thread._jobs._engine, name, broken)
    with pytest.raises((EngineFailedError, UnavailableError)):
        service.answer_now(ask("one", "two", "three"))
    with pytest.raises(UnavailableError, match="cannot be used"):
        service.answer_now(ask())
    wait_until(lambda: thread.num_open == 0)
    assert (thread.num_running, thread._thread.is_alive()) == (0, True)
    other = make_service(slots=1, request_s=10)
    thread = thread_of(other)
    monkeypatch.setattr(thread._jobs._engine, "step", broken)
    monkeypatch.setattr(thread._jobs, "recover", broken)
    with pytest.raises(UnavailableError, match="could not be replaced"):
        other.answer_now(ask("one", "two"))
    assert thread._thread.is_alive()


def test_neither_a_request_nor_a_function_that_fails_by_itself_affects_others(make_service, monkeypatch):
    service = make_service(request_s=10)
    thread = thread_of(service)
    engine, submit = thread._jobs._engine, thread._jobs._engine.submit

    def refuse(request, *arguments):
        if request.max_new_tokens == 7:
            raise ZeroDivisionError
        return submit(request, *arguments)

    def parts(reasoner):
        try:
            while True:
                yield
        finally:
            raise ZeroDivisionError("cannot clean up")

    monkeypatch.setattr(engine, "submit", refuse)

    async def both():
        text = asyncio.ensure_future(service.answer(ask(max_new_tokens=100, min_new_tokens=100)))
        await until(lambda: thread.num_running)
        work = thread.run_in_parts(parts)
        with pytest.raises(EngineFailedError, match="could not accept"):
            await service.answer(ask(max_new_tokens=7))
        assert work.cancel()
        return await text

    assert asyncio.run(both())[1][0].completion.tokens
    wait_until(lambda: thread.num_open == 0)
    assert thread._jobs._engine is engine


def test_a_request_that_fails_alone_ends_with_an_error_and_the_others_go_on(make_service, caplog):
    """Its observer raises at its second token; the engine stays the same one."""
    service = make_service()
    thread, good = thread_of(service), service.answer_now(ask(min_new_tokens=8))[0].completion.tokens
    observer, engine = thread._jobs.observer, thread._jobs._engine

    def on_token(job, previous):
        if job.request_id == "bad" and previous:
            raise ZeroDivisionError

    observer.on_token = on_token

    async def both():
        return await asyncio.gather(
            service.answer(ask(min_new_tokens=8), "good"),
            service.answer(ask(min_new_tokens=8), "bad"),
            return_exceptions=True,
        )

    (_, (choice,)), error = asyncio.run(both())
    assert choice.completion.tokens == good
    assert isinstance(error, EngineFailedError)
    assert "the request failed, and no other" in str(error)
    assert "the request bad failed alone" in caplog.text
    assert thread._jobs._engine is engine
    assert thread.num_open == 0


def test_the_cache_is_taken_when_a_model_is_loaded_and_freed_before_there_is_another(make_service):
    service = make_service()
    thread = thread_of(service)
    thread.run(lambda reasoner: None).result()
    first = thread._jobs._engine.cache
    assert first.num_bytes == 2 * 2 * EngineSettings(4).num_rows * 256 * 32 * 4
    states = LatentLoop.states

    def fail_once(loop, *arguments, **named):
        assert first.num_bytes
        thread.reasoner.loop.states = held
        raise RuntimeError("a kernel failed")

    def held(*arguments, **named):
        assert not first.num_bytes, "the first cache is freed before the second engine makes a pass"
        return states(thread.reasoner.loop, *arguments, **named)

    thread.reasoner.loop.states = fail_once.__get__(thread.reasoner.loop)
    with pytest.raises(EngineFailedError):
        service.answer_now(ask())
    assert service.answer_now(ask())[0].completion.tokens
    assert first.num_bytes == 0
