"""A run's memory, predicted before it starts: compared with what is allocated, and as a command."""

import json
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from launching import environment, run
from tiny_models import SHAPES
from transformers import AutoModelForCausalLM

from coconut_ds.memory import plan
from coconut_ds.memory.bundled import BUNDLED, known_architecture
from coconut_ds.memory.passes import update_bytes
from coconut_ds.memory.plan import GIB, kept_bytes, largest_that_fits
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.objectives.base import Examples
from coconut_ds.plan import main
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config, option_names

MEASURING_S = 120.0
"""Seconds that all measurements of one case may take. A measurement takes about two; none begins after half of them."""
ROOT = Path(__file__).resolve().parent.parent
BENCHMARK = ROOT / "benchmarks" / "memory.py"
LLAMA = ",".join(f"{key}:{value}" for key, value in {**SHAPES["llama"], "num_hidden_layers": 1}.items())
SMALL = ["model=gpt2_pretrained", "model_id=llama", "model_init=scratch", f"model.model_config_overrides={{{LLAMA}}}"]


@pytest.fixture(scope="module", autouse=True)
def _measured_once() -> Iterator[None]:
    """Plans of the same passes share their measurement, which takes a second."""
    found: dict[str, Any] = {}

    def once(config: Config, loop: LatentLoop, examples: Examples, widths: int) -> Any:
        # Neither the engine nor the data matter beyond these sequences.
        settings = config.model_dump(include={"method", "objective", "model", "training"})
        sequences = [[*view] for view in examples.views]
        key = repr((settings, loop.model.dtype, loop.model.config.vocab_size, sequences, widths))
        if key not in found:
            found[key] = update_bytes(config, loop, examples, widths)
        return found[key]

    with mock.patch.object(plan, "update_bytes", once):
        yield


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main([*SMALL, *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_plan_is_within_fifteen_percent_of_what_is_allocated():
    """Two updates with the engine, for several families, ZeRO stages, adapters and activation checkpointing."""
    cases = runpy.run_path(str(BENCHMARK))["CASES"]
    assert len(cases) == 7
    for name, case in cases.items():
        # With the six thoughts of the benchmark, the plans take twice as long.
        command, ratios = [BENCHMARK, "--case", name, "--thoughts", "2"], []
        # The plan is for ranks that run in step. On a busy machine, which delays one of two ranks, the measured peak is
        # sometimes a quarter higher than on a quiet one. Such a peak says nothing about the plan, so it is measured
        # again, up to three times. With a single rank this was not observed.
        ends = time.monotonic() + MEASURING_S
        for _ in range(4 if case.ranks > 1 else 1):
            done = run(command, environment(), case.ranks, cwd=ROOT, timeout=max(ends - time.monotonic(), 1))
            assert done.returncode == 0, done.stderr
            planned, measured = json.loads(done.stdout.splitlines()[-1])
            ratios.append(planned / measured)
            if ratios[-1] > 0.85 or time.monotonic() > ends - MEASURING_S / 2:
                break
        assert 0.85 < max(ratios) < 1.15, (name, ratios)


@pytest.mark.parametrize(
    ("overrides", "kept"),
    [
        # weights, gathered, gradients, optimizer, host; in bytes a parameter, on four ranks, all or a tenth trained
        (["deepspeed=zero0"], (4, 0, 4, 8, 0)),
        (["deepspeed=zero1"], (4, 0, 4, 3, 0)),
        (["deepspeed=zero2"], (4, 0, 1, 3, 0)),
        (["deepspeed=zero3"], (1, 4, 1, 3, 0)),
        (["deepspeed=zero1", "bf16=true"], (2, 0, 6, 3, 0)),
        (["deepspeed=zero3", "bf16=true"], (0.5, 2, 1, 3, 0)),
        (["deepspeed=zero2_offload"], (4, 0, 0, 0, 4)),
        (["deepspeed=zero3_offload", "bf16=true"], (0, 2, 0, 0, 4.5)),
        # With thoughts, DeepSpeed keeps all weights after the first use in the backward pass.
        (["deepspeed=zero3", "hold_weights=false"], (1, 4, 1, 3, 0)),
    ],
)
def test_memory_kept_between_passes_depends_on_the_zero_stage(overrides, kept):
    config, count = compose_config(overrides), 4_000_000
    found = kept_bytes(config, count, count, 4)
    per_parameter = [found.weights, found.gathered, found.gradients, found.optimizer, found.host]
    assert [size / count for size in per_parameter] == list(kept)
    frozen = kept_bytes(config, count, count // 10, 4)
    assert (frozen.weights, frozen.gathered) == (found.weights, found.gathered)
    assert frozen.gradients == found.gradients / 10


def test_weights_that_are_released_count_up_to_the_limit_if_there_are_no_thoughts(tmp_path):
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 1_000_000}}))
    base = [f"deepspeed.config={path}", "hold_weights=false"]
    for method, gathered in (("cot", 1_000_000), ("pause", 1_000_000), ("coconut", 4_000_000)):
        assert kept_bytes(compose_config([*base, f"method={method}"]), 4_000_000, 4_000_000, 4).gathered == 4 * gathered


def test_offloaded_weights_are_whole_on_the_device_even_on_one_rank():
    config = compose_config(["deepspeed=zero3_offload"])
    kept = kept_bytes(config, 4_000_000, 4_000_000, 1)
    assert (kept.weights, kept.gathered) == (0, 16_000_000)
    # ZeRO-2 keeps the weights on the device, and offloads only the optimizer.
    assert kept_bytes(config, 4_000_000, 4_000_000, 1, stage=2).weights == 16_000_000


def test_a_plan_for_zero_3_recommends_zero_2_where_it_needs_less(capsys):
    base = ("tokens=40", "batch_size_training=4", "max_latent_stage=1", "gpus=4")
    two, three = (planned(capsys, *base, f"deepspeed=zero{stage}") for stage in (2, 3))
    assert three["total_zero2"] == two["total"] < three["total"]
    assert two["total_zero2"] is None
    for memory, words in (([], "deepspeed=zero2 needs less"), (["gpu_memory_gib=1"], "does not fit either")):
        assert main([*SMALL, *base, "deepspeed=zero3", *memory]) == 0
        assert words in capsys.readouterr().out


def test_a_plan_counts_the_singular_vectors_and_names_what_it_leaves_out(capsys):
    base = ("tokens=40", "batch_size_training=1", "deepspeed=zero0", "max_latent_stage=1", "objective=grpo")
    found = planned(capsys, *base, "grpo.exploration=svp")["kept"]
    shape = SHAPES["llama"]
    width, heads = shape["hidden_size"], shape["num_attention_heads"]
    values = width // heads * shape.get("num_key_value_heads", heads)
    assert found["objective"] == 4 * min(width, values) * (width + 1 + values)
    assert found["start"] == found["weights"]
    assert main([*SMALL, *base, "grpo.exploration=svp"]) == 0
    table = capsys.readouterr().out
    assert "singular vectors" in table
    assert "Nor the rollouts of objective=grpo" in table


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=4), st.integers(0, 2000))
def test_the_largest_micro_batch_is_the_largest(lines, room):
    """Of any peak that is the maximum of linear functions, with few evaluations."""

    def peak(rows: int) -> int:
        return max(base + slope * rows for base, slope in lines)

    found = largest_that_fits(peak, room)
    assert found == max((rows for rows in range(1, 2002) if peak(rows) <= room), default=0)


@pytest.mark.slow
def test_the_plan_shows_what_deferred_gradients_take(capsys):
    """Fewer gradients of weights at a time, if they are larger than the inputs of all thoughts."""
    base = ("tokens=40", "targets=4", "batch_size_training=1", "global_batch_size=1", "deepspeed=zero0")
    deferred, plain = (
        planned(capsys, *base, "max_latent_stage=3", f"training.defer_gradients={choice}")
        for choice in ("true", "null")
    )
    assert sum(deferred["passes"].values()) < sum(plain["passes"].values())


def test_a_plan_counts_each_round_and_a_sequence_with_two_kinds_of_targets_once(capsys):
    base = ["tokens=60", "targets=10", "batch_size_training=4", "c_thought=4", "max_latent_stage=4"]
    plain = planned(capsys, *base)
    once, often = (planned(capsys, *base, "objective=lotus", f"iterations={rounds}") for rounds in (1, 5))
    assert once["keys_and_values"] == often["keys_and_values"] == plain["keys_and_values"]
    # The last round is one with the rest.
    assert 4 < often["passes"]["thoughts"] / once["passes"]["thoughts"] < 6
    assert often["passes"]["rest"] == pytest.approx(once["passes"]["rest"], rel=0.2)


@pytest.mark.slow
def test_a_plan_as_numbers_and_as_a_table(capsys):
    base = ("tokens=40", "batch_size_training=4", "deepspeed=zero0", "max_latent_stage=1")
    first = planned(capsys, *base, "gpu_memory_gib=0.06")
    more = planned(capsys, *base, "activation_checkpointing=true")
    assert first["largest_micro_batch"] > 4
    largest = planned(capsys, *base, f"batch_size_training={first['largest_micro_batch']}", "global_batch_size=null")
    assert 0.055 * GIB < largest["total"] <= 0.06 * GIB
    assert more["passes"]["prefix"] < first["passes"]["prefix"]
    adapters = planned(capsys, *base, "lora.rank=2")
    assert adapters["trained"] < 0.1 * adapters["parameters"]
    assert main([*SMALL, *base]) == 0
    table = capsys.readouterr().out
    assert f"{first['parameters'] / 1e6:,.1f} M parameters" in table
    assert "peak" in table


@pytest.mark.slow
def test_sequences_come_from_the_data_by_default(capsys):
    """The larger of the first and the last stage counts. Widths are multiples of 64, so the longer ones exceed 64."""
    data = [
        "data=modular_sum",
        "size.train=20",
        "size.valid=9",
        "size.test=9",
        "tokenizer=dataset",
        "batch_size_training=2",
        "max_latent_stage=2",
        "deepspeed=zero2",
    ]
    short, long = (planned(capsys, *data, f"num_terms={terms}") for terms in (3, 20))
    assert 0 < sum(short["passes"].values()) < sum(long["passes"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpus=none"], "gpus: found 'none', expected a number"),
        (["tokens=5"], "leave no question"),
        (["gpu_memory_gib=0"], "expected a number above 0"),
        (["targets=5"], "set tokens=T too"),
        (["lr=x"], "training.lr"),
    ],
)
def test_an_impossible_plan_is_refused(capsys, arguments, words):
    assert main([*SMALL, *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("gpt2_pretrained", 124.4),
        ("llama3_1b", 1235.8),
        ("llama3_8b", 8030.3),
        ("qwen3_0_6b", 596.0),
        ("qwen3_8b", 8190.7),
    ],
)
def test_the_presets_are_known_without_the_hub(preset, millions):
    """Numbers of parameters as published with the models."""
    config = compose_config([f"model={preset}"])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(known_architecture(config.model))
    assert round(model.num_parameters() / 1e6, 1) == millions


def test_every_pretrained_preset_is_bundled():
    names = {compose_config([f"model={name}"]).model.model_id for name in option_names()["model"]}
    assert {name for name in names if "/" in name} == set(BUNDLED)
