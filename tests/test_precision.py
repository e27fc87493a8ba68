"""bf16 is native or emulated; TF32 is set on CUDA only, off unless asked for, explained, and part of what tells results
apart."""

import re

import pytest
import torch
from torch import nn

from coconut_ds.model.precision import describe, multiplies_bf16, no_bf16, tf32_note, use_tf32
from coconut_ds.runs.identity import ingredients, signature
from coconut_ds.settings.compose import compose_config, compose_eval_config

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """What torch was told, on a machine that seems to have an A100."""
    told: list[str] = ["highest"]
    monkeypatch.setattr(torch, "set_float32_matmul_precision", told.append)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: told[-1])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    return told


def test_the_setting_decides_on_cuda_and_changes_nothing_elsewhere(asked):
    model = nn.Linear(1, 1)
    use_tf32("tf32=true", True, False, CPU)
    assert asked == ["highest"]
    assert describe(torch.float32, model, CUDA) == describe(torch.float32, model, CPU) == "float32"
    use_tf32("tf32=true", True, False, CUDA)
    assert asked == ["highest", "high"]
    assert describe(torch.float32, model, CUDA) == "float32, products in TF32"
    assert describe(torch.float32, model, CPU) == "float32"
    assert describe(torch.bfloat16, model.bfloat16(), CUDA) == "bfloat16"
    use_tf32("tf32=true", False, False, CUDA)
    assert asked == ["highest", "high", "highest"]


@pytest.mark.parametrize(
    ("tf32", "bf16", "capability", "words"),
    [
        (True, False, None, "run.tf32=true has no effect: only CUDA devices"),
        (True, True, None, "run.tf32=true has no effect"),
        (True, True, (9, 0), "run.tf32=true has no effect: the products are computed in bf16"),
        (True, False, (7, 5), "run.tf32=true has no effect: this GPU has no TF32"),
        (True, False, (8, 0), "run.tf32=true: products of fp32 matrices in TF32.* 156 instead of 19.5 TFLOP/s"),
        (False, False, (8, 0), "fp32 without TF32; with run.tf32=true, .* 156 instead of 19.5 TFLOP/s"),
        (False, True, (8, 0), None),
        (False, False, (7, 0), None),
        (False, False, None, None),
    ],
)
def test_users_are_told_what_it_gives_or_why_it_has_no_effect(tf32, bf16, capability, words):
    note = tf32_note("run.tf32=true", tf32, bf16, capability)
    assert (note is None) == (words is None)
    if note is not None:
        assert re.match(words, note)


def test_only_the_value_true_is_in_the_signature_of_a_run():
    """Runs that were begun before there was the setting keep their signature."""

    def table(*overrides: str) -> dict:
        config = compose_config(["data=modular_sum", "model=gpt2_scratch_tiny", "tokenizer=dataset", *overrides])
        given = {"global_batch_size": 1, "engine_file": {}, "data": {}, "weights": None}
        return ingredients(config, **given, tokenizer="", code={}, batch="", micro_batch=1)

    plain = table()
    assert "run.tf32" not in plain
    assert table("run.tf32=false") == plain
    assert table("run.tf32=true") == plain | {"run.tf32": True}
    assert signature(table("run.tf32=true")) != signature(plain)
    assert table("training.defer_gradients=true") == plain, "it changes only the order of a sum"


def test_evaluations_have_the_setting_too():
    assert compose_eval_config(["checkpoint=x", "data=modular_sum", "tf32=true"]).tf32
    assert not compose_eval_config(["checkpoint=x", "data=modular_sum"]).tf32


@pytest.mark.parametrize(("capability", "native"), [((7, 0), False), ((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_before_ampere_do_not_compute_in_bf16(monkeypatch, capability, native):
    """``torch.cuda.is_bf16_supported`` is true for a V100 or T4, since torch emulates what they lack."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert multiplies_bf16(CUDA) is native
    assert "this GPU" in no_bf16(CUDA)
