"""Settings of all tests, and tiny models that several test files share; nothing is downloaded."""

import gc
import os
from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

# Its assertions show values when they fail, like those of test modules.
pytest.register_assert_rewrite("resume_outcomes")

# Tests must not depend on the files in a user's home, nor use the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"

VOCABULARY = 40
SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    },
    "qwen3": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 96,
        "tie_word_embeddings": True,
    },
}

# Tensors are tiny, so a second thread costs more time than it saves, above all with several processes at once.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


COSTLY = (
    *(
        "test_engine",
        "test_plan",
        "test_study_methods",
        "test_train",
        "test_evaluation_runs",
        "test_resume",
        "test_package",
    ),
    *("test_resume_stops", "test_resume_damage", "test_serve_process", "test_signals", "test_static"),
    *("test_kill_matrix", "test_serve_api"),
)
"""Test files that take longest, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts costly files first, then others with slow tests. Workers that take whole files then end almost together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    places = {name: place for place, name in enumerate(COSTLY)}
    items.sort(key=lambda item: places.get(item.path.stem, len(COSTLY) + (item.path not in slow)))


def pytest_collection_finish() -> None:
    """Excludes the objects of imported modules, which live to the end, from garbage collection; it is faster then."""
    gc.freeze()


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A random model whose weights are large enough for every path through it to change the output."""
    torch.manual_seed(seed)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if family == "gpt2" else {}
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=0,
        **SHAPES[family],
        **no_dropout,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], PreTrainedModel]:
    """Gives one shared model per family; tests must not change its weights."""
    made: dict[str, PreTrainedModel] = {}

    def get(family: str) -> PreTrainedModel:
        if family not in made:
            made[family] = make_model(family)
        return made[family]

    return get
