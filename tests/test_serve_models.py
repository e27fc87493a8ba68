"""Loaded models: checkpoints that appear, change and vanish, loads that fail or hang, and the memory budget."""

import asyncio
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from making_models import QUESTION, SETTINGS, make_versions, put, scan, served, text_of
from making_services import hold_thread
from waiting import wait_until

from coconut_ds import load_reasoner
from coconut_ds.files import remove_folder
from serve.checkpoints import offered as checkpoints_module
from serve.engine.engine_jobs import EngineJobs
from serve.errors import CheckpointFailedError, TimeLimitError, UnavailableError, UnknownModelError
from serve.limits import Limits
from serve.models import loading, room
from serve.models import loads as loads_module
from serve.models.memory import needed_bytes
from serve.requests.asking import Ask
from serve.requests.service import Service


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    return make_versions(tmp_path_factory.mktemp("versions"))


@pytest.fixture(autouse=True)
def always_scanned(monkeypatch):
    """Each request has the folders looked at, however long the last look has taken."""
    still = SimpleNamespace(monotonic=lambda: 0.0, thread_time=lambda: 0.0, sleep=time.sleep)
    monkeypatch.setattr(checkpoints_module, "time", still)
    monkeypatch.setattr(checkpoints_module, "SCAN_S", 0.0)
    monkeypatch.setattr(checkpoints_module, "REPLACING_S", 0.0)


def test_checkpoints_that_appear_change_and_vanish_are_noticed(versions, tmp_path):
    """A caller that holds the old model finishes with it; what nothing holds any more leaves memory."""
    (x, text_x), (y, text_y) = versions["x"], versions["y"]
    put(x, tmp_path / "one")
    models = served(tmp_path)
    with pytest.raises(UnknownModelError):
        models.hold("two")
    put(y, tmp_path / "two")
    with models.holding("two") as thread:
        assert text_of(thread) == text_y
    with models.holding("one") as old:
        assert text_of(old) == text_x
        put(y, tmp_path / "one")
        scan(models)
        with models.holding("one") as new:
            assert (text_of(new), text_of(old)) == (text_y, text_x)
    wait_until(lambda: old.problem is not None)
    remove_folder(tmp_path / "one")
    asyncio.run(models.checkpoints.up_to_date())
    assert models.checkpoints.names == ["two"]
    with pytest.raises(UnknownModelError, match="no checkpoint is named"):
        models.hold("one")
    one = needed_bytes(tmp_path / "two", SETTINGS)
    wait_until(lambda: (list(models.loaded), models.used_bytes) == (["two"], one))
    shutil.rmtree(tmp_path / "two")
    scan(models)
    assert models.checkpoints.names == []
    models.close()


def test_no_checkpoint_takes_the_name_of_another(versions, tmp_path):
    """With two attempts of one run, a server that started with the first keeps its names for it."""
    first, second = (tmp_path / "demo" / "abcdef" / f"2026010{day}-000000-aaaa" for day in (1, 2))
    put(versions["x"][0], first / "checkpoint_1")
    models = served(tmp_path)
    put(versions["y"][0], second / "checkpoint_1")
    scan(models)
    folders = {one.name: one.folder for one in models.checkpoints}
    assert folders["demo/checkpoint_1"] == first / "checkpoint_1"
    assert folders[f"demo/{second.name}/checkpoint_1"] == second / "checkpoint_1"
    models.close()


def test_a_model_goes_on_while_its_files_are_broken(versions, tmp_path):
    """In whatever way they break; the next version that is whole takes over."""
    text_x, text_y = versions["x"][1], versions["y"][1]
    put(versions["x"][0], tmp_path / "one")
    models, weights = served(tmp_path), tmp_path / "one" / "model.safetensors"
    models.release(models.hold("one"))
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        file.write(b"\xff\xff\xff\x7f")
    scan(models)
    with models.holding("one") as thread:
        assert text_of(thread) == text_x
    weights.write_bytes(b"")
    scan(models)
    with models.holding("one") as thread:
        assert text_of(thread) == text_x, "weights are not mapped to the file"
    assert str(weights) not in Path("/proc/self/maps").read_text(encoding="utf-8")
    put(versions["y"][0], tmp_path / "one")
    scan(models)
    with models.holding("one") as thread:
        assert text_of(thread) == text_y
    models.close()


@pytest.fixture
def loads(monkeypatch):
    """Names of the folders that are loaded, one for each time; ``held``: loads of folders of this name wait."""

    class Loads(list):
        held: str | None = None
        go_on = threading.Event()

    found = Loads()

    def load(folder, **options):
        found.append(folder.name)
        if folder.name == found.held:
            found.go_on.wait(60)
        return load_reasoner(folder, **options)

    monkeypatch.setattr(loading, "load_reasoner", load)
    yield found
    found.go_on.set()


def test_a_failed_load_is_remembered_until_the_files_change(versions, tmp_path, loads, monkeypatch):
    """All callers share one load, and the memory that it had reserved is free again."""
    for name in ("good", "bad"):
        put(versions["x"][0], tmp_path / name)
    weights = tmp_path / "bad" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\xff\xff\xff\x7f")
    models = served(tmp_path)

    def hold(_) -> str:
        with pytest.raises(CheckpointFailedError) as failed:
            models.hold("bad")
        return f"{failed.value.status} {failed.value.code}"

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(hold, range(16))) == {"500 checkpoint_failed"}
    assert (loads, models.used_bytes) == (["bad"], 0)
    monkeypatch.setattr(loads_module, "REMEMBER_S", 0.0)
    models._failures._clock = lambda: time.monotonic() + 3600
    hold(None)
    assert loads == ["bad", "bad"], "it is tried again after a while"
    put(versions["y"][0], tmp_path / "bad")
    scan(models)
    with models.holding("bad") as thread:
        assert text_of(thread) == versions["y"][1]
    models.close()


def test_a_model_that_cannot_run_is_remembered_like_one_that_cannot_be_loaded(versions, tmp_path, loads, monkeypatch):
    put(versions["x"][0], tmp_path / "one")
    models = served(tmp_path)

    def broken(self):
        raise RuntimeError("a kernel failed")

    with monkeypatch.context() as patched:
        patched.setattr(EngineJobs, "try_engine", broken)
        for _ in range(2):
            with pytest.raises(CheckpointFailedError, match="cannot run"):
                models.hold("one")
    assert (loads, models.used_bytes) == (["one"], 0)
    models.close()


def test_callers_are_answered_whatever_a_load_raises(versions, tmp_path, monkeypatch):
    """Also if there is no thread for it; both the load and the look at the folders then work later."""
    put(versions["x"][0], tmp_path / "one")
    models, start = served(tmp_path), threading.Thread.start

    def broken(*arguments, **named):
        raise RuntimeError("Symlink loop")

    def no_thread(thread):
        if thread.name.startswith(("load-", "checkpoints")):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(models, "_try_to_load", broken)
        with pytest.raises(CheckpointFailedError):
            models.hold("one", 10)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(UnavailableError, match="no thread"):
            models.hold("one", 10)
        scan(models)
    put(versions["y"][0], tmp_path / "two")
    scan(models)
    assert models.checkpoints.names == ["one", "two"]
    with models.holding("one", 60) as thread:
        assert text_of(thread) == versions["x"][1]
    models.close()


def test_links_in_a_circle_do_not_stop_the_look_at_the_folders(versions, tmp_path):
    for name in ("one", "two"):
        put(versions["x"][0], tmp_path / name)
    models = served(tmp_path)
    (tmp_path / "one" / "extra.json").symlink_to("extra.json")
    put(versions["y"][0], tmp_path / "three")
    scan(models)
    assert sorted(models.checkpoints.names) == ["one", "three", "two"]
    assert sorted(served(tmp_path).checkpoints.names) == ["three", "two"]
    models.close()


def test_the_memory_of_a_thread_that_ends_late_is_freed_then(versions, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "ENDS_S", 0.05)
    put(versions["x"][0], tmp_path / "one")
    models, go_on = served(tmp_path), threading.Event()
    with models.holding("one") as thread:
        work = hold_thread(thread, go_on)
    remove_folder(tmp_path / "one")
    scan(models)
    wait_until(lambda: any(one.name == "unload-one" for one in threading.enumerate()))
    time.sleep(0.2)
    assert models.used_bytes
    go_on.set()
    assert work.result(20)
    wait_until(lambda: models.used_bytes == 0)
    assert models.threads == []
    models.close()


def test_a_plain_caller_waits_for_a_load_until_its_deadline(versions, tmp_path, loads):
    put(versions["x"][0], tmp_path / "slow")
    models, loads.held = served(tmp_path), "slow"
    service = Service(models, Limits(request_s=0.1))
    with pytest.raises(TimeLimitError):
        service.answer_now(Ask("slow", (QUESTION,)))
    with pytest.raises(TimeLimitError):
        service.call_now("slow", lambda reasoner: None)
    loads.go_on.set()
    wait_until(lambda: "slow" in models.loaded)
    wait_until(lambda: models._loaded["slow"].holders == 0)
    service.close()


def test_a_load_that_hangs_delays_neither_other_models_nor_the_end(versions, tmp_path, loads):
    for name in ("good", "slow"):
        put(versions["x"][0], tmp_path / name)
    models, loads.held = served(tmp_path), "slow"
    slow = [models.hold_soon("slow") for _ in range(3)]
    assert slow[0].cancel()
    began = time.monotonic()
    with models.holding("good") as thread:
        assert text_of(thread) == versions["x"][1]
    assert loads.count("slow") == 1
    assert not slow[1].done()
    models.close()
    assert time.monotonic() - began < 15
    for waiting in slow[1:]:
        with pytest.raises(UnavailableError, match="stopping"):
            waiting.result(0)
    loads.go_on.set()
    wait_until(lambda: models.used_bytes == 0)


def test_a_caller_that_stops_waiting_does_not_hold_the_model(versions, tmp_path, loads):
    put(versions["x"][0], tmp_path / "one")
    models, loads.held = served(tmp_path), "one"
    late, early = models.hold_soon("one"), models.hold_soon("one")
    assert early.cancel()
    loads.go_on.set()
    thread = late.result(60)
    late.add_done_callback(models.release_unwanted)
    remove_folder(tmp_path / "one")
    scan(models)
    wait_until(lambda: thread.problem is not None)
    models.close()


def test_a_request_of_several_steps_gets_one_model(versions, tmp_path):
    """Its files change after the first step; the second one, such as decoding thoughts, still gets the same model."""
    put(versions["x"][0], tmp_path / "one")
    models = served(tmp_path)
    service, ask = Service(models, Limits()), Ask("one", (QUESTION,), max_new_tokens=8)

    async def ask_twice() -> list[str]:
        async with service.keeping(ask):
            texts = [(await service.answer(ask))[1][0].text]
            put(versions["y"][0], tmp_path / "one")
            await asyncio.to_thread(scan, models)
            models.release(await asyncio.to_thread(models.hold, "one"))
            texts.append((await service.answer(ask))[1][0].text)
        return [*texts, (await service.answer(ask))[1][0].text]

    assert asyncio.run(ask_twice()) == [versions["x"][1], versions["x"][1], versions["y"][1]]
    service.close()
