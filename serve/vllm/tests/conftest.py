"""Fixtures of the tests, which run vLLM on a CPU in the process of the test, unless they say otherwise."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SETTINGS = {
    "VLLM_USE_V2_MODEL_RUNNER": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONPATH": str(HERE / "stand_ins"),
}
# Before vLLM is imported, which reads them then; processes that vLLM starts inherit them.
os.environ.update(SETTINGS)
# The benchmark sets another number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, SETTINGS["PYTHONPATH"])

import tiny  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402

REFERENCE: dict[str, Any] = json.loads((HERE / "data" / "reference.json").read_text(encoding="utf-8"))
SMALL_CACHE: dict[str, Any] = {"num_gpu_blocks_override": 7, "max_num_batched_tokens": 32, "max_num_seqs": 8}
"""So few blocks that requests are preempted, and pieces of prompts so small that most take several steps."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a checkpoint of ``tiny.CHECKPOINTS``, once."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def built(name: str) -> Path:
        if not (folder / name).exists():
            tiny.build(name, folder)
            assert tiny.digest(folder / name) == REFERENCE[name]["digest"], "other weights than in make_reference.py"
        return folder / name

    return built


def options(**changed: Any) -> dict[str, Any]:
    """Arguments of an engine for a tiny checkpoint."""
    whole = {
        "enforce_eager": True,
        "dtype": "float32",
        "block_size": 32,
        "max_model_len": 128,
        "additional_config": {"coconut": {"max_thoughts": 8}},
        "async_scheduling": False,
        "disable_log_stats": False,
    }
    return whole | changed


@pytest.fixture
def engine(checkpoint: Callable[[str], Path]) -> Iterator[Callable[..., LLM]]:
    """Makes an engine for a checkpoint; it ends with the test."""
    made: list[LLM] = []

    def make(name: str, **changed: Any) -> LLM:
        made.append(LLM(str(checkpoint(name)), **options(**changed)))
        return made[-1]

    yield make
    for one in made:
        one.llm_engine.engine_core.shutdown()


def sampling(changed: dict[str, Any], **others: Any) -> SamplingParams:
    """Greedy sampling with the arguments of a question."""
    return SamplingParams(**({"temperature": 0, "max_tokens": tiny.NEW_TOKENS, "extra_args": changed} | others))


def answered(llm: LLM, name: str, times: int = 1, **others: Any) -> list[Any]:
    """vLLM's outputs for all questions to a checkpoint, asked together ``times`` times."""
    asked = tiny.asked(name) * times
    prompts = [text for text, _ in asked]
    return llm.generate(prompts, [sampling(changed, **others) for _, changed in asked], use_tqdm=False)


def split(output: Any, ids: dict[str, int], most: int | None = None) -> tuple[list[int], int]:
    """The tokens of the text of an output, and its number of thoughts; up to ``most`` tokens of text."""
    text: list[int] = []
    thoughts = 0
    for token in output.outputs[0].token_ids:
        if len(text) == most:
            break
        if token == ids["<|latent|>"]:
            thoughts += 1
        elif token != ids["<|end-latent|>"]:
            text.append(token)
    return text, thoughts


def differences(outputs: list[Any], name: str) -> list[int]:
    """The outputs, of one or more rounds of questions, that are not the answers of the project's own engine.

    Where the model decides about thoughts, vLLM's limit leaves room for the most, so its texts may go on.
    """
    ids, answers = tiny.tokenizer().get_vocab(), REFERENCE[name]["answers"]
    assert len(outputs) % len(answers) == 0
    wrong = []
    for index, output in enumerate(outputs):
        right = answers[index % len(answers)]
        if split(output, ids, len(right["tokens"])) != (right["tokens"], right["thoughts"]):
            wrong.append(index)
    return wrong


def whole(text: str) -> str:
    """A text without the bytes of a character that its end cuts off, which vLLM leaves out, as our own server does."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def preemptions(llm: LLM) -> int:
    """How many requests were preempted so far."""
    return sum(int(metric.value) for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions")
