"""Settings of all tests, and the fixtures that several test files share; nothing is downloaded."""

import gc

if gc.isenabled():
    # Until all tests are collected. Imports make millions of objects that live to the end; looking for garbage among
    # them takes a third of that time.
    gc.disable()

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

# Nothing here imports torch, which the process that only starts the workers of pytest-xdist does without.
import launching
import pytest

from coconut_ds.cli.logs import LIBRARIES, OWN
from coconut_ds.files import evaluate_script, train_script

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from serve.requests.service import Service

# Its assertions show values when they fail, like those of test modules.
pytest.register_assert_rewrite("resume_outcomes")

# For the tests of benchmarks; last, since some modules there have the names of modules here.
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

# Tests must not depend on the files in a user's home, nor use the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
# Where Triton is installed, its interpreter runs our kernels on the CPU. Triton reads this when it is first imported.
os.environ["TRITON_INTERPRET"] = "1"

# Tensors are tiny, so a second thread costs more time than it saves, above all with several processes at once.
os.environ["OMP_NUM_THREADS"] = "1"


LOGGERS = (*OWN, *LIBRARIES)
VERBOSITY = "TRANSFORMERS_VERBOSITY"

COSTLY = (
    *("test_engine", "test_app_browser", "test_train", "test_plan", "test_signals", "test_serve_process"),
    *("test_sweep", "test_resume_stops", "test_strict_device", "test_kill_matrix", "test_resume", "test_static"),
    *("test_evaluation_runs", "test_grpo_runs", "test_collectives", "test_layered", "test_lm_harness"),
    *("test_thinking_engine", "test_gpu_sections", "test_probe", "test_resume_damage", "test_serve_operation"),
    *("test_session", "test_sim_cot", "test_trainer", "test_codi", "test_gpu_check", "test_two_machines"),
    *("test_package", "test_serve_api", "test_serve_clients"),
)
"""Test files that take longest, the longest first."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Puts costly files first, then others with slow tests. Workers that take whole files then end almost together.

    Leaves out tests that build images, unless ``-m`` names them: they take minutes and need a network.
    """
    if "docker" not in config.getoption("-m"):
        items[:] = [item for item in items if item.get_closest_marker("docker") is None]
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    places = {name: place for place, name in enumerate(COSTLY)}
    items.sort(key=lambda item: places.get(item.path.stem, len(COSTLY) + (item.path not in slow)))


def pytest_configure(config: pytest.Config) -> None:
    """Starts the zygote before the workers of pytest-xdist, which then share it through their environment."""
    if config.getoption("numprocesses", None):
        # This process collects no tests.
        gc.enable()
        if not config.option.collectonly and launching.may_fork():
            launching.zygote(many=True)
        return
    import torch

    torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Begins to collect garbage, but not among the objects of imported modules, and less often than Python does."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


@pytest.fixture
def forked_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies fork the processes of their runs, without a launcher. (The demo's test uses one for one of its runs.)"""
    from coconut_ds.studies import harness

    def popen(command: list[str], *, text: bool, **options: Any) -> launching.Process:
        assert text
        # What precedes the script starts it: Python, or a launcher of one rank.
        scripts = (str(train_script()), str(evaluate_script()))
        first = next(place for place, word in enumerate(command) if word in scripts)
        return launching.start(command[first:], **options)

    replacement = SimpleNamespace(Popen=popen, PIPE=subprocess.PIPE, STDOUT=subprocess.STDOUT)
    monkeypatch.setattr(harness, "subprocess", replacement)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], "PreTrainedModel"]:
    """Gives one shared model per family; tests must not change its weights."""
    from tiny_models import make_model

    made: dict[str, PreTrainedModel] = {}

    def get(family: str) -> "PreTrainedModel":
        if family not in made:
            made[family] = make_model(family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny checkpoint named ``tiny``; tests must not change it."""
    from serving import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("services") / "tiny")


@pytest.fixture
def make_service(tiny_checkpoint: Path) -> Iterator[Callable[..., "Service"]]:
    """Makes services of the tiny checkpoint (arguments: see ``making_services.service_of``), closed after the test."""
    from making_services import services

    with services(tiny_checkpoint) as made:
        yield made


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """Undoes what a test changes in the logs of this process, as programs do that tests call without a process."""
    verbosity = os.environ.get(VERBOSITY)
    loggers = [logging.root, *map(logging.getLogger, LOGGERS)]
    states = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    # Handlers of pytest are at several loggers.
    handlers = {one for *_, found in states for one in found} | {logging.lastResort}
    levels = [(one, one.level) for one in handlers if one is not None]
    yield
    os.environ.pop(VERBOSITY, None)
    if verbosity is not None:
        os.environ[VERBOSITY] = verbosity
    for logger, (level, propagate, own) in zip(loggers, states, strict=True):
        if logger.level != level:
            # This empties a cache of each of the thousands of loggers, which adds up over all tests.
            logger.setLevel(level)
        logger.propagate, logger.handlers[:] = propagate, own
    for handler, level in levels:
        handler.setLevel(level)
    # Hydra's configuration of logs may disable every logger that exists.
    for logger in logging.root.manager.loggerDict.values():
        if isinstance(logger, logging.Logger):
            logger.disabled = False
