"""Several processes, and compiled models."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
from conftest import SMALL_CACHE, answered, differences, options, preemptions


def in_a_process(folder, name, environment, changed):
    """The wrong answers and the preemptions of an engine in a process of its own."""
    import os

    os.environ.update(environment)
    from vllm import LLM

    llm = LLM(str(folder), **options(**(SMALL_CACHE | changed)))
    wrong = differences(answered(llm, name, 3), name)
    return wrong, preemptions(llm)


@pytest.mark.parametrize(
    ("name", "environment", "changed"),
    [
        ("llama", {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}, {"tensor_parallel_size": 2}),
        ("qwen2", {}, {"enforce_eager": False}),
    ],
    ids=["tensor parallelism over two processes", "compiled"],
)
def test_answers_equal_the_reference(checkpoint, name, environment, changed):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        wrong, preempted = pool.submit(in_a_process, checkpoint(name), name, environment, changed).result()
    assert wrong == []
    assert preempted >= 20
