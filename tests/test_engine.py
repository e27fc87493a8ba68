"""Training with the DeepSpeed engine equals training in plain torch, under each ZeRO stage, on one and two ranks."""

import json
from pathlib import Path

import pytest
import torch
from launching import environment, run
from safetensors.torch import load_file
from slow_loop import slow_generate, slow_loss
from slow_training import slow_training
from transformers import AutoModelForCausalLM
from zero_feeds import LR, PLAIN, PROMPT, THINKING, VARIANTS, parts
from zero_worker import (
    FAMILIES,
    GRPO_ZERO,
    LORA,
    OFFLOAD,
    OVERRIDES,
    RESUMED,
    SAVED,
    SUPERVISED_ZERO,
    ZERO,
    family_overrides,
    write_family,
)

from coconut_ds.distributed.ranks import ALONE
from coconut_ds.generation.requests import Request
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.experiment import Experiment

WORKER = Path(__file__).parent / "zero_worker.py"
FP32 = ["zero0", "zero1", "zero2", "zero3", "zero3_live0"]


def plain_torch_losses(overrides: list[str]) -> list[float]:
    """Losses of the same experiment in ``slow_training``."""
    return slow_training(Experiment.prepare(compose_config(overrides), ALONE, lambda line: None))[0]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, dict]:
    """The worker's results on one process without a launcher and on two ranks, by the number of ranks."""
    found = {}
    for ranks in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{ranks}")
        done = run([WORKER, folder / "out.json", folder], environment(), ranks)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "Virtual Memory" not in done.stdout + done.stderr
        found[ranks] = json.loads((folder / "out.json").read_text())
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder with the same models as the worker's, for training without an engine."""
    folder = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        write_family(family, folder)
    return folder


@pytest.mark.slow
def test_losses_equal_plain_torch_under_every_zero_stage_on_one_and_two_processes(results):
    """To 1e-5, over six updates without and with two thoughts, with replayed stages, an uneven last batch, clipping,
    warm-up, an optimizer reset at the switch of stages, and its state carried over the boundary between two epochs of
    the second stage. ZeRO-2 also saves a checkpoint before the last update."""
    expected = plain_torch_losses(OVERRIDES)
    assert len(expected) == 6
    for ranks in (1, 2):
        for variant in FP32:
            record = results[ranks][variant]
            assert record["stages"] == [0, 0, 1, 1, 1, 1]
            assert ("checkpoint_2_1" in record["checkpoints"]) == (variant == SAVED)
            assert record["losses"] == pytest.approx(expected, abs=1e-5), (ranks, variant)


@pytest.mark.slow
@pytest.mark.parametrize("variant", [*FAMILIES, "llama_lora"])
def test_other_families_and_adapters_give_the_losses_of_plain_torch_too(results, weights, variant):
    """From a folder without markers, so the embedding gets rows for them; weights are sharded under ZeRO-3; one family
    has a tied head and one an untied head."""
    family, lora = variant.split("_")[0], LORA if variant.endswith("lora") else []
    expected = plain_torch_losses([*family_overrides(family, weights), *lora])
    assert len(expected) == 4
    for ranks in (1, 2):
        for zero in (*ZERO, *(OFFLOAD if variant == "qwen3" else ())):
            assert results[ranks][f"{zero}_{variant}"]["losses"] == pytest.approx(expected, abs=1e-5), (ranks, zero)


@pytest.mark.slow
def test_self_distillation_is_the_same_under_every_zero_stage(results):
    """Two passes over each micro batch, a feed and an auxiliary decoder without gradients in the first updates, and a
    rank that repeats a problem of the other one."""
    reference = results[1]["zero0_llama_codi"]
    assert len(set(reference["losses"])) == 4
    for ranks in (1, 2):
        for zero in ZERO:
            record = results[ranks][f"{zero}_llama_codi"]
            assert record["losses"] == pytest.approx(reference["losses"], rel=1e-5), (ranks, zero)
            assert record["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-4), (ranks, zero)


@pytest.mark.slow
def test_supervised_thoughts_are_the_same_under_zero_stages(results):
    """Problems of the first two updates have no thoughts; in the others, some of a micro batch have none."""
    reference = results[1]["zero0_llama_supervised"]
    assert len(set(reference["losses"])) == 4
    assert [mass is None for mass in reference["masses"]] == [True, True, False, False]
    for ranks in (1, 2):
        for zero in SUPERVISED_ZERO:
            record = results[ranks][f"{zero}_llama_supervised"]
            assert record["losses"] == pytest.approx(reference["losses"], rel=1e-5), (ranks, zero)
            assert record["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-4), (ranks, zero)
            assert record["masses"][2:] == pytest.approx(reference["masses"][2:], rel=1e-4), (ranks, zero)


@pytest.mark.slow
def test_rollouts_and_their_updates_are_the_same_under_zero_stages(results):
    """Two updates for each sampling; the weights of the start take the place of the trained ones in between, and ranks
    have completions of different lengths."""
    reference = results[1]["zero0_llama_grpo"]
    assert len(set(reference["losses"])) == len(reference["losses"]) == 3
    for ranks in (1, 2):
        for zero in GRPO_ZERO:
            record = results[ranks][f"{zero}_llama_grpo"]
            assert record["rewards"] == reference["rewards"], (ranks, zero)
            assert record["losses"] == pytest.approx(reference["losses"], rel=1e-4), (ranks, zero)
            assert record["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-3), (ranks, zero)


@pytest.mark.slow
def test_what_is_saved_is_plain_and_frozen_weights_have_moved_by_what_the_adapters_add(results, weights):
    """Exported matrices differ from the source by a matrix of rank 2, the embedding in the rows of the markers; nothing
    else differs."""
    source = AutoModelForCausalLM.from_pretrained(weights / "llama").state_dict()
    for ranks in (1, 2):
        for zero in ZERO:
            saved = AutoModelForCausalLM.from_pretrained(results[ranks][f"{zero}_llama_lora"]["checkpoint"])
            for name, value in saved.state_dict().items():
                before = source[name]
                if name.startswith(("model.embed_tokens", "lm_head")):
                    # There is no row of `<<`, so the rows of the markers start at the mean.
                    assert torch.equal(value[: len(before)], before)
                    assert (value[len(before) :] - before.mean(dim=0)).abs().max() > 1e-4
                elif value.dim() == 2:
                    assert torch.linalg.matrix_rank(value - before, rtol=1e-4) == 2, name
                else:
                    assert torch.equal(value, before), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_feed_is_trained_sharded_saved_and_resumed_with_its_model(results, variant):
    """Equal to plain torch in loss, gradient norm, every weight of the feed and generated tokens. The first update has
    no thoughts: the gradients of the feed are zero, and only weight decay moves it."""
    config = compose_config(OVERRIDES)
    training, (backbone, feed) = config.training, parts(config)
    model, updates, parameters = backbone.model, [], [*backbone.model.parameters(), *feed.parameters()]
    options = {"betas": training.betas, "eps": training.eps, "weight_decay": training.weight_decay}
    optimizer = torch.optim.AdamW(parameters, lr=LR, **options)
    for rows in (PLAIN, THINKING):
        optimizer.zero_grad()
        loss = slow_loss(model, rows, [0.5, 0.5], feed=feed) + 0 * sum(each.sum() for each in feed.parameters())
        loss.backward()
        updates.append([loss.item(), float(torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm))])
        optimizer.step()
    tokens = slow_generate(model.eval(), Request(PROMPT, 4), 0, feed=feed)
    for ranks in (1, 2):
        found = results[ranks]["fed"][variant]
        assert found["sharded"] == ("zero3" in variant)
        assert found["resumed"]
        assert found["tokens"] == tokens
        for one, other in zip(found["updates"], updates, strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        for name, value in feed.state_dict().items():
            torch.testing.assert_close(torch.tensor(found["weights"][name]), value, rtol=0, atol=1e-3, msg=name)


@pytest.mark.slow
def test_adapters_resume_exactly(results):
    for ranks in (1, 2):
        whole, resumed = (results[ranks][name] for name in (RESUMED, "resumed"))
        assert resumed["losses"] == whole["losses"]
        one, two = (load_file(Path(each["checkpoint"]) / "model.safetensors") for each in (whole, resumed))
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_models_built_in_shards_are_those_built_whole(results, family):
    """Only the parameters that got rows for the markers are left for the engine to shard."""
    grown = {"llama": ["model.embed_tokens.weight", "lm_head.weight"], "qwen3": ["model.embed_tokens.weight"]}
    for ranks in (1, 2):
        for way, built in results[ranks]["built"][family].items():
            assert built == {"whole": grown[family], "same": True, "others_are_whole": True}, (ranks, way)


@pytest.mark.slow
def test_two_ranks_hold_half_of_what_one_holds_each(results):
    one, two = (results[ranks]["held"] for ranks in (1, 2))
    for kind in ("weights", "gradients", "optimizer"):
        assert 0.45 * one[kind] < two[kind] <= 0.55 * one[kind], kind


@pytest.mark.slow
def test_weights_norms_and_evaluations_do_not_depend_on_stage_or_ranks(results):
    reference = results[1]["zero0"]
    for ranks in (1, 2):
        for variant in FP32:
            record = results[ranks][variant]
            # Some gradients are zero in theory (key biases); Adam turns their rounding errors into full steps.
            assert record["weights_off"] < 1e-3
            assert record["dtype"] == "torch.float32"
            assert record["grad_norms"] == pytest.approx(reference["grad_norms"], rel=1e-4)
            for ours, theirs in zip(record["evaluations"], reference["evaluations"], strict=True):
                assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.mark.slow
def test_bf16_follows_fp32(results):
    """Master weights and accumulation are in fp32; the 8 bits of bf16 change a loss of about 3 by less than 0.02."""
    for ranks in (1, 2):
        record = results[ranks]["zero2_bf16"]
        assert record["losses"] == pytest.approx(results[1]["zero0"]["losses"], abs=0.02)
        assert record["dtype"] == "torch.bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["zero0", "zero1", "zero2", "zero3"])
def test_a_non_finite_loss_or_gradient_stops_all_ranks_before_the_optimizer_moves(results, stage):
    """On two ranks, only the last one has the non-finite value."""
    for ranks in (1, 2):
        assert results[ranks]["same_on_all_ranks"]
        for what, name in (("loss", "loss"), ("gradient", "gradient norm")):
            outcome = results[ranks][f"spoiled_{stage}"][what]
            assert outcome["error"].startswith(f"{name} is ")
            assert not outcome["moved"]


@pytest.mark.slow
def test_engines_do_without_torchs_compiler(results):
    """Importing it takes longer than importing all of DeepSpeed."""
    assert not any(found["compiler_imported"] for found in results.values())
