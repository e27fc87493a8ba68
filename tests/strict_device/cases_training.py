"""The latent loop in training: forwards and backwards on one device, and without a host sync."""

import pytest
import torch
from making_layouts import MARKERS, make_layout
from tiny_models import VOCABULARY
from torch import nn
from torch_engine import tiny_config

import strict_device
from coconut_ds.data.tokens import build_word_tokenizer
from coconut_ds.distributed.ranks import ALONE, Ranks
from coconut_ds.memory.passes import whole_micro_batch
from coconut_ds.methods import METHODS
from coconut_ds.methods.layouts import Layouts
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model import attention, loss
from coconut_ds.model.backbone import add_marker_rows
from coconut_ds.model.collate import Collator
from coconut_ds.model.digest import digest_parameters
from coconut_ds.model.feed import Projection, feed_state
from coconut_ds.model.last_layer import LastLayer
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.lora import add_adapters, merged_state
from coconut_ds.model.precision import cast, describe
from coconut_ds.model.tables import recompute_tables
from coconut_ds.model.trial import trial_of
from coconut_ds.objectives.base import Examples
from coconut_ds.objectives.codi import Codi, CodiExamples
from coconut_ds.objectives.lotus import Lotus, LotusBatch, with_step_labels
from coconut_ds.objectives.sim_cot import DECODER, SimCot, StepExamples
from coconut_ds.objectives.step_decoder import build_step_decoder
from coconut_ds.objectives.step_targets import StepTargets
from coconut_ds.settings import SimCotConfig
from coconut_ds.settings.compose import compose_config
from coconut_ds.settings.model import LoraConfig
from strict_device.batches import SHAPES, batch_of, layout_of, mixed_batch, on_device

DEVICE = strict_device.device()
TYPES = [torch.float32, torch.bfloat16]
JACOBI, LOOPED = Parallel("jacobi", 2), Parallel("looped", None, block=1)


def check_gradients(loop: nn.Module) -> None:
    for name, parameter in loop.named_parameters():
        found = None if parameter.grad is None else (parameter.grad.device, parameter.grad.dtype)
        assert found == ((DEVICE, parameter.dtype) if parameter.requires_grad else None), name


def run(syncs, loop, batch) -> None:
    """Forwards and backwards over one micro batch, without a host sync."""
    inputs, targets = on_device(batch)
    with syncs.refused():
        made = loop.train()(latent_loss, inputs, targets)
        made.backward()
    assert (made.device, made.dtype, made.shape) == (DEVICE, torch.float32, ())
    check_gradients(loop)


@pytest.mark.parametrize(
    ("family", "dtype", "parallel", "checkpointing"),
    [
        ("gpt2", torch.float32, None, False),
        ("gpt2", torch.bfloat16, JACOBI, True),
        ("llama", torch.bfloat16, None, True),
        ("llama", torch.float32, JACOBI, False),
        ("gpt2", torch.float32, LOOPED, True),
        ("llama", torch.bfloat16, LOOPED, False),
    ],
)
def test_the_loss_and_its_gradients(syncs, family, dtype, parallel, checkpointing):
    """Any two of family, type and way of thinking meet; half of the cases with activation checkpointing."""
    model = strict_device.make_model(family, dtype, layers=1 + checkpointing)
    run(syncs, LatentLoop(model, checkpointing, defer_gradients=False), mixed_batch(parallel))


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_deferred_gradients(syncs, family):
    run(syncs, LatentLoop(strict_device.make_model(family), defer_gradients=True), mixed_batch())


@pytest.mark.parametrize("parallel", [None, JACOBI, LOOPED], ids=["sequential", "jacobi", "looped"])
def test_a_feed(syncs, parallel):
    """Rows with and without thoughts; then only rows without, for which its gradients are zeros."""
    feed = strict_device.make_feed()
    loop = LatentLoop(strict_device.make_model("llama"), defer_gradients=True, feed=feed)
    run(syncs, loop, mixed_batch(parallel))
    loop.zero_grad()
    run(syncs, loop, batch_of([make_layout("no_cot", 0)] * 2))
    assert digest_parameters(loop.model, ALONE, feed) != digest_parameters(loop.model, ALONE)
    assert {value.device.type for value in feed_state(feed, is_first=True).values()} == {"cpu"}


@pytest.mark.parametrize("thinks", [True, False])
def test_every_method(syncs, thinks):
    """Problems at stages 0 to 3, of all methods with thoughts in one micro batch, and of all without in another."""
    layouts = [make_layout(method, stage) for method in METHODS for stage in range(4)]
    batch = batch_of([layout for layout in layouts if bool(layout.num_thoughts) == thinks])
    run(syncs, LatentLoop(strict_device.make_model("llama"), defer_gradients=False), batch)


@pytest.mark.parametrize("parallel", [None, JACOBI, LOOPED], ids=["sequential", "jacobi", "looped"])
def test_transformers_own_cache_and_attention(syncs, parallel):
    """With other kernels than ``sdpa`` the loop uses ``PlainPasses``. transformers copies constants for its masks to
    the device, so syncs are not refused."""
    model = strict_device.make_model("llama", sliding_window=8)
    model.set_attn_implementation("eager")
    loop, (inputs, targets) = LatentLoop(model, defer_gradients=False).train(), on_device(mixed_batch(parallel))
    loop(latent_loss, inputs, targets).backward()
    check_gradients(loop)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_only_the_ends_of_the_prefix_are_read(syncs, family):
    """In bf16, where every row thinks, the last layer computes the attention of the prefix only at its ends."""
    layouts = [layout_of(*shape) for shape in SHAPES if shape[1]]
    model = strict_device.make_model(family, torch.bfloat16)
    run(syncs, LatentLoop(model, defer_gradients=False), batch_of(layouts))


@pytest.mark.parametrize("in_loop", [False, True])
def test_lotus(syncs, in_loop):
    """Rows with two, one and no blocks of one thought, some of them without a step."""
    config = compose_config(["objective=lotus", "c_thought=1", f"lotus.in_loop={in_loop}"])
    written = Layouts.of([layout_of(*shape) for shape in SHAPES])
    steps = with_step_labels(written, [[(5,), (6,)], [(7,)], [(8,)], []], block=1)
    collator = Collator(0, config.parallel)
    batch = LotusBatch(*(collator(view, [0.1] * len(view), 2) for view in (written, steps))).to(DEVICE)
    loop = LatentLoop(strict_device.make_model("llama"), defer_gradients=False).train()
    with syncs.refused():
        made = loop(Lotus(config).loss, batch)
        made.sum().backward()
    assert (made.device, made.dtype, made.shape) == (DEVICE, torch.float32, (2,))
    check_gradients(loop)


def test_no_thoughts_and_no_padding(syncs):
    layouts = [make_layout("no_cot", 0)] * 2
    run(syncs, LatentLoop(strict_device.make_model("gpt2"), defer_gradients=False), batch_of(layouts))


def test_grouped_keys_are_repeated_in_fp32(syncs, monkeypatch):
    monkeypatch.setattr(attention, "NO_SHARED_KEYS", (DEVICE.type,))
    run(syncs, LatentLoop(strict_device.make_model("llama"), defer_gradients=False), mixed_batch())


def test_the_loss_in_chunks(syncs, monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_AT_A_TIME", 40 * 7)
    run(syncs, LatentLoop(strict_device.make_model("gpt2"), defer_gradients=False), mixed_batch())


@pytest.mark.parametrize(("family", "tied", "dtype"), [("gpt2", True, torch.bfloat16), ("llama", False, torch.float32)])
def test_lora_and_the_rows_of_the_markers(syncs, family, tied, dtype):
    model = strict_device.make_model(family, dtype, tie_word_embeddings=tied)
    with torch.device(DEVICE):
        add_adapters(model, MARKERS, LoraConfig(rank=2, alpha=4.0, dropout=0.1))
    run(syncs, LatentLoop(model, defer_gradients=False), mixed_batch())
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    merged = merged_state(model, state)
    assert {value.device.type for value in merged.values()} == {"cpu"}
    assert not [name for name in merged if "lora" in name or "difference" in name]


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.float32), ("llama", torch.bfloat16)])
def test_self_distillation(syncs, family, dtype):
    """States of all layers at one column of each row, in a pass over the rest or over the prefix, and a feed."""
    objective = Codi(tiny_config("objective=codi"))
    views = [Layouts.of([layout_of(one, thoughts, after) for one, thoughts, after in SHAPES])]
    views.append(Layouts.of([layout_of(one, 0, after) for one, _, after in SHAPES]))
    examples = CodiExamples(tuple(views), tuple(view.lengths - 2 for view in views))
    batch = objective.collate(Collator(0), examples, whole_micro_batch(examples)).to(DEVICE)
    with torch.device(DEVICE):
        feed = Projection(32, 8).to(dtype)
    loop = LatentLoop(strict_device.make_model(family, dtype), defer_gradients=False, feed=feed).train()
    with syncs.refused():
        parts = loop(objective.loss, batch)
        parts.sum().backward()
    assert (parts.device, parts.dtype, parts.shape) == (DEVICE, torch.float32, (3,))
    check_gradients(loop)


@pytest.mark.parametrize(("family", "dtype"), [("gpt2", torch.float32), ("llama", torch.bfloat16)])
def test_steps_written_from_thoughts(syncs, family, dtype):
    """By an auxiliary decoder of another width; its part of the micro batch moves in one copy, too."""
    objective = SimCot(tiny_config("objective=sim_cot", "activation_checkpointing=true"))
    layouts = Layouts.of([layout_of(one, thoughts, after) for one, thoughts, after in SHAPES])
    groups = [[[3, 4], [5]] if layout.num_thoughts > 1 else [] for layout in layouts]
    targets, base = StepTargets.of(groups), Examples((layouts,))
    examples = StepExamples((layouts, targets.layouts), base, targets.lengths)
    batch = objective.collate(Collator(0), examples, whole_micro_batch(examples)).to(DEVICE)
    model = strict_device.make_model(family, dtype)
    settings = SimCotConfig(decoder_layers=1, decoder_width=16, decoder_init="random")
    with torch.device(DEVICE):
        decoder = build_step_decoder(model, settings, 1, True).to(dtype)
    loop = LatentLoop(model, defer_gradients=False, auxiliary={DECODER: decoder}).train()
    with syncs.refused():
        parts = loop(objective.loss, batch)
        parts.sum().backward()
    assert (parts.device, parts.dtype, parts.shape) == (DEVICE, torch.float32, (2,))
    check_gradients(loop)


def test_all_states_without_gradients(syncs):
    loop = LatentLoop(strict_device.make_model("gpt2")).eval()
    inputs, _ = on_device(mixed_batch())
    with syncs.refused(), torch.no_grad():
        states = loop.encode(inputs)
        logits = loop.head(states)
    assert (states.device, logits.device, logits.dtype) == (DEVICE, DEVICE, torch.float32)


def test_tables_are_recomputed_where_they_are(syncs):
    model = strict_device.make_model("llama")
    recompute_tables(model)
    assert {buffer.device for buffer in model.buffers()} == {DEVICE}


def test_the_trial_pass(syncs):
    """It reads a few numbers, once for each model."""
    model = strict_device.make_model("llama")
    trial = trial_of(model)
    assert trial.fault(model) is None


def test_two_loops_around_one_model(syncs):
    model = strict_device.make_model("gpt2")
    LastLayer(model)
    run(syncs, LatentLoop(model, defer_gradients=False), mixed_batch())


def test_rows_of_new_markers(syncs):
    model = strict_device.make_model("gpt2")
    # With the end of text and other tokens that every tokenizer has, as many as the embedding has rows.
    tokenizer = build_word_tokenizer([" ".join(map(str, range(36)))])
    assert len(tokenizer) == VOCABULARY
    with torch.device(DEVICE):
        backbone = add_marker_rows(model, tokenizer)
    rows = backbone.model.get_input_embeddings().weight
    assert (rows.device, len(rows)) == (DEVICE, VOCABULARY + 3)


def test_weights_are_rounded_and_read_where_they_are(syncs):
    model = strict_device.make_model("llama")
    assert digest_parameters(model, ALONE)
    assert digest_parameters(model, Ranks(1, 2)) is None
    cast(model, torch.bfloat16, DEVICE)
    assert {(each.dtype, each.device) for each in model.parameters()} == {(torch.bfloat16, DEVICE)}
    assert describe(torch.bfloat16, model, DEVICE) == "bfloat16"
