"""What the latent loop computes in another way in bf16, to save time, is the same."""

import copy

import pytest
import torch
from comparing_loops import compare
from making_layouts import LONG, SOME
from tiny_models import make_model

from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model import latent_attention
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import LatentLoop, latent_loss

FAMILIES = ["gpt2", "llama", "qwen3"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_bf16_computes_otherwise_equals_the_slow_loop(family, checkpointing, monkeypatch):
    """Here in fp32: one look-up of all embeddings, the rest in the pass of the last thought, and attention of the last
    layer at the ends of the questions."""
    attended = []
    fused = latent_attention.fused_attention
    monkeypatch.setattr(LatentLoop, "_is_fp32", False)
    monkeypatch.setattr(
        latent_attention,
        "fused_attention",
        lambda module, *arguments, **options: attended.append(module.layer_idx) or fused(module, *arguments, **options),
    )
    for layouts, iterations in ((SOME[:2], None), (SOME[:1], None), (SOME[:2], 2)):
        attended.clear()
        given = [0.5, 1.0][: len(layouts)]
        compare(make_model(family), layouts, given, checkpointing=checkpointing, iterations=(iterations, iterations))
        assert set(attended) == {0}
    # A target within a question, or a row without thoughts: more is read than the ends.
    compare(make_model(family), LONG, [1.0, 0.5, 0.25], checkpointing=checkpointing)
    assert set(attended) == {0, 1}


@pytest.mark.parametrize("defer", [False, True])
def test_bf16_is_close_to_fp32(defer):
    """Gradients differ by a few of the 2**-8 that a number of bf16 is rounded by."""
    exact = make_model("gpt2")
    for parameter in exact.parameters():
        # The biases of a new model are zero.
        parameter.data += 0.1 * torch.randn_like(parameter)
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    for model in (exact, rounded):
        loop = LatentLoop(model, defer_gradients=defer)
        latent_loss(loop, *collate(SOME[:2], [0.5, 1.0], 3, pad_id=3)).backward()
    for one, other in zip(rounded.parameters(), exact.parameters(), strict=True):
        assert float((one.grad.float() - other.grad).norm()) <= 0.1 * float(other.grad.norm())


@pytest.mark.parametrize(
    ("dtype", "look_ups", "passes"), [(torch.bfloat16, 1, [5, 1, 1, 5]), (torch.float32, 3, [5, 1, 1, 1, 4])]
)
def test_bf16_looks_up_all_embeddings_at_once(dtype, look_ups, passes):
    """Each look-up makes a gradient as large as the embedding; fp32 keeps the order of its sums. bf16 also makes one
    pass fewer: the rest is in the pass of the last thought."""
    model = make_model("llama").to(dtype)
    looked_up, widths = [], []
    model.get_input_embeddings().register_forward_hook(lambda module, given, made: looked_up.append(made))
    model.base_model.register_forward_hook(lambda module, given, made: widths.append(made.last_hidden_state.shape[1]))
    layout = Layout([4, 5, 6, 7, 8, 39, 39, 39, 2, 3, 4, 8], [IGNORE] * 11 + [8], 5, 3)
    latent_loss(LatentLoop(model), *collate([layout], [1.0], 3, pad_id=3)).backward()
    assert (len(looked_up), widths) == (look_ups, passes)
