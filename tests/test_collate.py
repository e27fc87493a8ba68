"""Batches as tensors: those of a loop over tokens, in one buffer that moves in one copy, and padded without effect."""

import random
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from making_layouts import SOME, jacobi
from slow_batches import slow_collate, slow_plan
from tiny_models import make_model
from torch.utils._python_dispatch import TorchDispatchMode

from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.collate import Batch, Collator, collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.training.batches import BatchGeometry, plan_update


def layout(rng: random.Random, thinks: bool) -> Layout:
    """Any sequence: targets also in the question and not everywhere after the thoughts."""
    before, after = rng.randint(2, 9), rng.randint(1, 9)
    thoughts = rng.choice([0, 1, 2, 5]) if thinks else 0
    ids = [rng.randrange(1, 38) for _ in range(before + thoughts + after)]
    labels = [token if rng.random() < 0.5 else IGNORE for token in ids]
    labels[0], labels[-1] = IGNORE, ids[-1]
    labels[before : before + thoughts] = [IGNORE] * thoughts
    return Layout(ids, labels, before if thoughts else len(ids), thoughts)


def tensors(batch) -> dict[str, object]:
    """All fields of inputs and targets; none of their names is in both."""
    return {field.name: getattr(part, field.name) for part in batch for field in fields(part)}


def assert_equal(found, expected) -> None:
    for name, value in tensors(expected).items():
        own = tensors(found)[name]
        if isinstance(value, torch.Tensor):
            assert (own.dtype, own.shape, own.is_contiguous()) == (value.dtype, value.shape, True), name
            assert torch.equal(own, value), name
        else:
            assert own == value, name


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10**6), thinks=st.booleans(), micro=st.integers(1, 4), world=st.integers(1, 3))
def test_plan_and_tensors_are_those_of_a_loop_over_tokens(seed, thinks, micro, world):
    rng = random.Random(seed)
    geometry = BatchGeometry(micro * 2 * world, micro, 2, world)
    layouts = [layout(rng, thinks) for _ in range(rng.randint(1, geometry.global_batch_size))]
    for reduction in ("token", "reference"):
        for rank in range(world):
            plan, slow = (make(layouts, geometry, rank, reduction) for make in (plan_update, slow_plan))
            assert [(list(one.layouts), one.weights, one.num_thoughts, one.num_targets) for one in plan] == slow
            for one in plan:
                arguments = (one.layouts, one.weights, one.num_thoughts, 3, one.num_targets, rng.choice([None, 2]))
                assert_equal(collate(*arguments), slow_collate(*arguments))


class Copies(TorchDispatchMode):
    """Counts copies to another device."""

    count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._to_copy.default
        return function(*arguments, **(options or {}))


def test_all_tensors_move_in_one_copy_and_those_on_the_cpu_in_none():
    """The tensors lie one after the other, and keep shape, type and place."""
    batch = collate(SOME, [1.0] * 3, 3, pad_id=3)
    with Copies() as copies:
        assert batch.to(torch.device("cpu")) is batch
        assert copies.count == 0
        moved = batch.to(torch.device("meta"))
        assert copies.count == 1
    assert isinstance(moved, Batch)
    total = 0
    for name, value in tensors(batch).items():
        if isinstance(value, torch.Tensor):
            there = tensors(moved)[name]
            assert there.device.type == "meta"
            assert (there.dtype, there.shape) == (value.dtype, value.shape)
            assert there.storage_offset() == value.storage_offset()
            assert value.data_ptr() - batch.buffer.data_ptr() == value.storage_offset() * value.itemsize
            total += value.nbytes
    assert total == batch.buffer.nbytes


def test_a_batch_that_has_moved_has_the_same_contents():
    batch = collate(SOME, [0.5] * 3, 3, pad_id=3, parallel=jacobi(2))
    moved = batch.to(torch.device("cpu", 0))  # the same memory, by a name that torch takes for another device
    assert moved is not batch
    assert_equal(moved, batch)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("thoughts", [0, 3])
def test_wider_prefixes_change_neither_loss_nor_gradients(family, thoughts):
    """As on CUDA, where widths are multiples of 64; also where all prefixes are equally long, and at the end of the
    context, which the prefix must not exceed."""
    equal = [Layout([*range(3, 33), *range(3, 33), *range(3, 33), 7, 8], [IGNORE] * 90 + [7, 8], 92, 0)] * 2
    thinking = [Layout([*range(3, 13), *[39] * 3, 7, 8], [IGNORE] * 14 + [8], 10, 3)] * 2
    for layouts in (SOME, equal, thinking):
        if thoughts == 0:
            layouts = [Layout(one.input_ids, one.labels, len(one), 0) for one in layouts]
        elif layouts is equal:
            continue
        found = {}
        for multiple, most in ((1, None), (64, 96)):
            model = make_model(family)
            batch = Collator(3, width_multiple=multiple, max_width=most)(layouts, [0.25] * len(layouts), thoughts)
            loss = latent_loss(LatentLoop(model), *batch)
            loss.backward()
            found[multiple] = loss, {name: one.grad for name, one in model.named_parameters()}
            longest = max(one.first_thought if thoughts and one.num_thoughts else 0 for one in layouts)
            longest = longest if thoughts else max(map(len, layouts))
            expected = {1: longest, 64: 64 if longest <= 64 else 96}[multiple]
            assert batch.inputs.prefix_ids.shape[1] == expected
        torch.testing.assert_close(found[64][0], found[1][0], rtol=1e-6, atol=1e-6)
        for name, gradient in found[1][1].items():
            torch.testing.assert_close(found[64][1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_batches_for_cuda_are_pinned_and_have_few_widths():
    cuda = Collator.for_device(torch.device("cuda", 1), 3, None, 1000)
    assert (cuda.pinned, cuda.width_multiple, cuda.max_width) == (True, 64, 1000)
    assert Collator.for_device(torch.device("cpu"), 3, 2, 1000) == Collator(3, 2, 1, 1000, False)
    assert [cuda._width(longest) for longest in (1, 64, 65, 960, 961, 1000, 1001)] == [
        64,
        64,
        128,
        960,
        1000,
        1000,
        1001,
    ]
