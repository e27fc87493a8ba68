"""The fast loop equals the slow one: loss and every gradient."""

from collections.abc import Callable

import pytest
import torch
from comparing_loops import compare
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making_layouts import LONG, SOME, jacobi
from tiny_models import VOCABULARY, make_model

from coconut_ds.errors import ModelError
from coconut_ds.generation.decoding import decode_thoughts
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model import deferred, loss
from coconut_ds.model.collate import collate
from coconut_ds.model.head import vocabulary_product
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.support import decoder_layers

FAMILIES = ["gpt2", "llama", "qwen3"]
tokens = st.integers(1, VOCABULARY - 1)


@st.composite
def rows(draw: st.DrawFn) -> Layout:
    """Any sequence: 0 to 6 thoughts anywhere, targets anywhere after the first token."""
    before = draw(st.lists(tokens, min_size=1, max_size=12))
    count = draw(st.integers(0, 6))
    after = draw(st.lists(tokens, min_size=1, max_size=8))
    ids = [*before, *[VOCABULARY - 1] * count, *after]
    places = [*range(1, len(before)), *range(len(before) + count, len(ids))]
    chosen = draw(st.sets(st.sampled_from(places), min_size=1)) if places else {len(ids) - 1}
    labels = [token if place in chosen else IGNORE for place, token in enumerate(ids)]
    return Layout(ids, labels, len(before) if count else len(ids), count)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts=st.lists(rows(), min_size=1, max_size=5), data=st.data())
def test_loss_and_gradients_equal_the_slow_loop(tiny_model, family, layouts, data):
    """Mixed numbers of thoughts, any padding, any weights; also with more passes than any row needs (other ranks)."""
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=len(layouts), max_size=len(layouts)))
    compare(tiny_model(family), layouts, weights, extra_passes=data.draw(st.integers(0, 2)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["sdpa", "eager", "checkpointing", "chunks"])
def test_every_way_to_compute_it_equals_the_slow_loop(family, way, monkeypatch):
    """Our attention, transformers' cache, layers that are recomputed, logits in parts of two targets."""
    model = make_model(family)
    model.config._attn_implementation = "eager" if way == "eager" else "sdpa"
    monkeypatch.setattr(loss, "LOGITS_AT_A_TIME", 2 * VOCABULARY if way == "chunks" else loss.LOGITS_AT_A_TIME)
    for layouts in (SOME, SOME[2:], SOME[:1]):
        compare(model, layouts, [0.5, 1.0, 0.25][: len(layouts)], checkpointing=way == "checkpointing")


@pytest.mark.parametrize("family", FAMILIES)
def test_jacobi_thoughts_equal_sequential_ones_after_one_iteration_per_thought(family):
    """With fewer iterations they equal a plain Jacobi loop; the rows have different numbers of thoughts."""
    model = make_model(family)
    for iterations in (3, 7):
        compare(model, SOME, [0.5, 1.0, 0.25], iterations=(iterations, None))
    for iterations in (1, 2):
        compare(model, SOME, [0.5, 1.0, 0.25], iterations=(iterations, iterations))
    model.config._attn_implementation = "eager"
    compare(model, SOME, [0.5, 1.0, 0.25], iterations=(2, 2))
    fewer, all_of_them = (
        latent_loss(LatentLoop(model), *collate(SOME, [1.0] * 3, 3, pad_id=3, parallel=jacobi(n))).item()
        for n in (1, 3)
    )
    assert abs(fewer - all_of_them) > 1e-3


@pytest.mark.parametrize(("family", "way"), [("gpt2", "checkpointing"), ("llama", "eager"), ("qwen3", "sdpa")])
def test_looped_thoughts_equal_the_slow_loop(family, way):
    """With a fixed number of rounds, and with one for each block of one or two thoughts, so that the rows make
    different numbers of rounds; also with more columns than any row needs."""
    model = make_model(family)
    model.config._attn_implementation = "eager" if way == "eager" else "sdpa"
    for parallel in (Parallel("looped", 2), Parallel("looped", None, 1), Parallel("looped", None, 2)):
        for extra in (0, 2):
            compare(model, SOME, [0.5, 1.0, 0.25], extra, way == "checkpointing", parallel=parallel)
    losses = [
        latent_loss(LatentLoop(model), *collate(SOME, [1.0] * 3, 3, pad_id=3, parallel=Parallel("looped", n))).item()
        for n in (1, 2)
    ]
    assert abs(losses[0] - losses[1]) > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["sdpa", "eager", "checkpointing"])
def test_the_last_layer_runs_where_it_is_read(family, way):
    """Of 3 x 30 positions 4 are read: before two first thoughts, before a target in a question, and the end of a row
    without thoughts."""
    model = make_model(family)
    model.config._attn_implementation = "eager" if way == "eager" else "sdpa"
    compare(model, LONG, [1.0, 0.5, 0.25], checkpointing=way == "checkpointing")
    inputs, targets = collate(LONG, [1.0] * 3, 2, pad_id=3)
    assert inputs.prefix_read.tolist() == [29, 30 + 18, 30 + 19, 60 + 29]
    positions = []
    layers = decoder_layers(model)
    assert layers is not None
    for module in layers[-1].mlp.children():
        module.register_forward_hook(lambda module, given, made: positions.append(given[0].shape[:-1].numel()))
    latent_loss(LatentLoop(model, way == "checkpointing"), inputs, targets)
    assert set(positions) == {4, 3, 3 * inputs.rest_ids.shape[1]}
    positions.clear()
    LatentLoop(model).encode(inputs)
    assert max(positions) == 90


@pytest.mark.parametrize(
    ("device", "wanted", "defers"),
    [("cpu", None, True), ("cuda", None, False), ("cuda", True, True), ("cuda", False, False), ("cpu", False, False)],
)
def test_gradients_are_deferred_on_a_cpu_and_elsewhere_on_demand(monkeypatch, device, wanted, defers):
    """The gradients are the same. The tensors of the test are on the CPU; only the loop takes its device for a GPU."""
    monkeypatch.setattr(LatentLoop, "device", torch.device(device))
    gates = []
    monkeypatch.setattr(deferred._WeightGate, "backward", staticmethod(counted(deferred._WeightGate.backward, gates)))
    gradients = []
    for defer in (wanted, not defers):
        model = make_model("gpt2")
        latent_loss(LatentLoop(model, defer_gradients=defer), *collate(SOME, [1.0] * 3, 3, pad_id=3)).backward()
        gradients.append({name: one.grad for name, one in model.named_parameters()})
        assert bool(gates) == (defers if len(gradients) == 1 else not defers)
        gates.clear()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def counted(function: Callable, calls: list) -> Callable:
    """``function``, which notes its calls in ``calls``."""

    def wrapped(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return wrapped


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_drawn_once(checkpointing):
    """Recomputed layers use the dropout of the first pass: with the same draws the gradient is that of the loss."""
    model = make_model("gpt2").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    weight = model.transformer.h[0].mlp.c_fc.weight
    loop = LatentLoop(model, checkpointing)
    batch = collate(SOME, [1.0] * 3, 3, pad_id=0)

    def value() -> torch.Tensor:
        torch.manual_seed(5)
        return latent_loss(loop, *batch)

    value().backward()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        weight += 1e-3 * direction
        above = value()
        weight -= 2e-3 * direction
        below = value()
    slope = float((weight.grad * direction).sum())
    assert float(above - below) / 2e-3 == pytest.approx(slope, rel=0.02)


def test_layers_that_forget_keep_less(monkeypatch):
    """Bytes that autograd keeps for the backward pass."""

    def kept(checkpointing: bool) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        loop = LatentLoop(make_model("gpt2"), checkpointing)
        layout = Layout([5] * 80 + [39] * 4 + [8] * 4, [IGNORE] * 84 + [8] * 4, 80, 4)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            held = latent_loss(loop, *collate([layout] * 4, [1.0] * 4, 4, pad_id=0))
        assert held.requires_grad
        return sum(seen.values())

    assert kept(True) < 0.5 * kept(False)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_thoughts_it_is_the_hugging_face_loss(tiny_model, family):
    model = tiny_model(family)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (3, 14), generator=generator)
    labels = ids.clone()
    labels[:, :5] = IGNORE
    layouts = [Layout(row.tolist(), label.tolist(), 14, 0) for row, label in zip(ids, labels, strict=True)]
    ours = latent_loss(LatentLoop(model), *collate(layouts, [1 / 27] * 3, 0, pad_id=0))
    assert ours.item() == pytest.approx(model(input_ids=ids, labels=labels).loss.item(), rel=1e-5)


def test_thoughts_are_fed_back_and_learned_from(tiny_model):
    """The states after thoughts differ from those after the same ids as plain tokens."""
    model = tiny_model("gpt2")
    layout = Layout([5, 6, 39, 39, 7, 8], [IGNORE] * 5 + [8], 2, 2)
    inputs, targets = collate([layout], [1.0], 2, pad_id=0)
    as_tokens, _ = collate([Layout(layout.input_ids, layout.labels, 6, 0)], [1.0], 0, pad_id=0)
    loop = LatentLoop(model)
    thinking, reading = (loop.encode(batch)[0, -2] for batch in (inputs, as_tokens))
    assert not torch.allclose(thinking, reading, atol=1e-2)
    assert targets.ids.tolist() == [8]


def test_a_row_at_the_end_of_the_context_may_share_a_batch_with_any_other(tiny_model):
    """Pads get no position of their own, so padding cannot exceed the model's context."""
    long_question = Layout([5] * 92 + [39, 39, 2, 8], [IGNORE] * 95 + [8], 92, 2)
    long_answer = Layout([5, 39, 39, 2, *[8] * 60], [IGNORE] * 4 + [8] * 60, 1, 2)
    compare(tiny_model("gpt2"), [long_question, long_answer], [0.5, 0.02])


def test_decoded_thoughts_are_the_heads_probabilities(tiny_model):
    class Names:
        def decode(self, ids):
            return f"t{ids[0]}"

    loop = LatentLoop(tiny_model("gpt2"))
    thoughts = torch.randn(2, 3, 32, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(loop.model.lm_head(thoughts), dim=-1).detach()
    decoded = decode_thoughts(loop, Names(), thoughts, top_k=2)
    assert decoded[1][2].tokens[0] == f"t{int(expected[1, 2].argmax())}"
    assert decoded[1][2].probabilities[0] == pytest.approx(float(expected[1, 2].max()), rel=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_few_states_meet_the_vocabulary_as_in_the_module_itself(bias, monkeypatch):
    """Without gradients another library multiplies; with gradients, or if the module is sharded or hooked, the
    module does."""
    head, states = torch.nn.Linear(32, VOCABULARY, bias=bias), torch.randn(3, 2, 32)
    expected = head(states)
    calls = []
    monkeypatch.setattr(head, "forward", lambda given: calls.append(len(given)) or expected)
    with torch.no_grad():
        torch.testing.assert_close(vocabulary_product(head, states), expected, rtol=1e-5, atol=1e-5)
        assert not calls
        with monkeypatch.context() as sharded:
            sharded.setattr("coconut_ds.model.head.is_sharded", lambda parameter: True)
            vocabulary_product(head, states)
    assert calls == [3]
    vocabulary_product(head, states)
    assert calls == [3, 3]


def test_gradients_of_sharded_weights_are_never_deferred(monkeypatch):
    """Under ZeRO-3 a weight is whole only during a pass: a loop that would defer its gradient must not go on."""
    monkeypatch.setattr("coconut_ds.model.deferred.is_sharded", lambda weight: True)
    model, batch = make_model("gpt2"), collate(SOME, [1.0] * 3, 3, pad_id=3)
    with pytest.raises(AssertionError, match="defer_gradients=False"):
        latent_loss(LatentLoop(model), *batch)
    latent_loss(LatentLoop(model, defer_gradients=False), *batch).backward()


def test_checkpointing_that_drops_the_cache_is_refused():
    model = make_model("gpt2")
    model.gradient_checkpointing_enable()
    with pytest.raises(ModelError, match="drops the key/value cache"):
        LatentLoop(model)
