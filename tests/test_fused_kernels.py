"""Fused kernels equal the plain code: the Triton part attention, and Liger's layers.

Triton's interpreter runs them on the CPU. CPU builds of torch come without Triton; with
``pip install triton liger-kernel`` these tests run, otherwise they are skipped.
"""

import importlib.util
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SHAPES, make_model
from test_latent_loop import LONG, SOME

from coconut_ds.errors import ModelError
from coconut_ds.model import fused
from coconut_ds.model.collate import collate
from coconut_ds.model.fused import PLAIN, Kernels, choose_kernels
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.part_attention import PartAttention, PrefixGate, Stash

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed: pip install triton liger-kernel")


@pytest.fixture
def liger() -> None:
    """Skips where Liger is missing. The interpreter lacks the function of CUDA's library that its norm calls."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed: pip install triton liger-kernel")
    import triton.language
    from liger_kernel.ops import rms_norm

    rms_norm.rsqrt = triton.language.rsqrt


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("size", [16, 24])
@pytest.mark.parametrize("padded", [False, True])
def test_the_triton_part_attention_equals_the_plain_one(dtype, groups, size, padded):
    """Outputs and all gradients, over three passes of 1, 1 and 30 positions after a prefix of 70 columns, more than a
    block has. Rows of the padded batch have 70, 3 and 66 real columns; groups of query heads share a key head."""
    from coconut_ds.model.triton_attention import TritonPartAttention

    draw = torch.Generator().manual_seed(0)
    rows, kv_heads, width, counts = 3, 2, 70, (1, 1, 30)

    def random(heads: int, columns: int) -> torch.Tensor:
        # As transformers makes them: the layout of memory is [B, columns, heads, E].
        made = torch.randn(rows, columns, heads, size, generator=draw).to(dtype)
        return made.transpose(1, 2).detach().requires_grad_()

    prefix = random(kv_heads, width), random(kv_heads, width)
    passes = [(random(groups * kv_heads, n), random(kv_heads, n), random(kv_heads, n)) for n in counts]
    pads = torch.arange(width) >= torch.tensor([70, 3, 66])[:, None] if padded else None
    directions = [torch.randn(rows, groups * kv_heads, n, size, generator=draw).to(dtype) for n in counts]
    leaves = [*prefix, *(tensor for each in passes for tensor in each)]

    def computed(attention: type, *more: float) -> list[torch.Tensor]:
        stash = Stash()
        gated = PrefixGate.apply(*(each.contiguous() for each in prefix), stash)
        outputs = []
        for number, (query, _, _) in enumerate(passes):
            later = [torch.cat([each[part] for each in passes[: number + 1]], dim=2) for part in (1, 2)]
            outputs.append(attention.apply(query, *gated, *later, pads, stash, size**-0.5, *more))
        gradients = torch.autograd.grad(outputs, leaves, directions)
        return [each.float() for each in (*outputs, *gradients)]

    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    for fast, slow in zip(computed(TritonPartAttention), computed(PartAttention, 0.0), strict=True):
        scale = float(slow.abs().max())
        torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance * scale)
    if padded:
        # No row attends to padding.
        for gradient in computed(TritonPartAttention)[len(counts) : len(counts) + 2]:
            assert not gradient[1, :, 3:].any()


def losses_and_gradients(family: str, kernels: Kernels, dtype: torch.dtype, **options: bool) -> list[torch.Tensor]:
    """Loss and every gradient of batches with pads and without, sequential and Jacobi thoughts."""
    found = []
    for layouts, iterations in ((SOME, None), (LONG, None), (SOME, 2)):
        model = make_model(family).to(dtype)
        loop = LatentLoop(model, kernels=kernels, **options)
        loss = latent_loss(loop, *collate(layouts, [0.5, 1.0, 0.25], 3, pad_id=3, iterations=iterations))
        loss.backward()
        found += [loss.detach(), *(parameter.grad.float() for parameter in model.parameters())]
    return found


@needs_triton
@pytest.mark.parametrize(("family", "kernels"), [("gpt2", Kernels(attention=True)), ("qwen3", Kernels(True, True))])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_latent_loop_with_fused_kernels_equals_the_plain_one(family, kernels, checkpointing, liger):
    """Loss and every gradient, in fp32 and bf16; also with layers that are computed again, and with deferred gradients
    of weights or without."""
    options = {"activation_checkpointing": checkpointing, "defer_gradients": checkpointing}
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.1)):
        fast, slow = (losses_and_gradients(family, chosen, dtype, **options) for chosen in (kernels, PLAIN))
        for one, other in zip(fast, slow, strict=True):
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@needs_triton
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_ligers_layers_equal_those_of_transformers(family, liger, monkeypatch):
    """Loss and every gradient, in fp32. Other models of the process, which share the classes, do not change."""
    import liger_kernel.ops

    calls: Counter[str] = Counter()

    def counted(name: str) -> SimpleNamespace:
        real = getattr(liger_kernel.ops, name)

        def apply(*arguments: Any) -> Any:
            calls[name] += 1
            return real.apply(*arguments)

        return SimpleNamespace(apply=apply)

    for name in ("LigerRMSNormFunction", "LigerSiLUMulFunction", "LigerRopeFunction"):
        monkeypatch.setattr(liger_kernel.ops, name, counted(name))
    monkeypatch.setitem(SHAPES, family, SHAPES["llama"])
    fused_model, plain_model = (make_model(family).train() for _ in range(2))
    results = []
    for loop, layers in ((LatentLoop(fused_model, kernels=Kernels(layers=True)), 2), (LatentLoop(plain_model), 0)):
        calls.clear()
        loss = latent_loss(loop, *collate(SOME, [0.5, 1.0, 0.25], 3, pad_id=3))
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in loop.parameters())])
        # The prefix, three thoughts and the rest; a norm before the attention, one before the MLP, and one at the end.
        norms = 2 * layers + bool(layers) + 2 * layers * (family == "qwen3")
        expected = {"LigerRMSNormFunction": norms, "LigerSiLUMulFunction": layers, "LigerRopeFunction": layers}
        assert calls == Counter({name: 5 * count for name, count in expected.items()})
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize(
    ("setting", "device", "installed", "expected"),
    [
        ("off", CUDA, ["triton", "liger_kernel"], PLAIN),
        ("auto", CPU, ["triton", "liger_kernel"], PLAIN),
        ("auto", CUDA, [], PLAIN),
        ("auto", CUDA, ["triton"], Kernels(attention=True)),
        ("auto", CUDA, ["liger_kernel"], PLAIN),
        ("on", CUDA, ["triton", "liger_kernel"], Kernels(layers=True, attention=True)),
        ("on", CPU, ["triton", "liger_kernel"], "need a CUDA device, and this process computes on cpu"),
        ("on", CUDA, ["triton"], "liger_kernel is missing .pip install 'liger-kernel>=0.8'.; set"),
        ("on", CPU, [], "triton is missing .*liger_kernel is missing .*CUDA device"),
    ],
)
def test_the_kernels_of_each_setting(setting, device, installed, expected, monkeypatch):
    """``auto`` takes what is there; ``on`` says what is missing."""
    found = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name if name in installed else None))
    monkeypatch.setattr(fused, "importlib", found)
    if isinstance(expected, Kernels):
        assert choose_kernels(setting, device) == expected
    else:
        with pytest.raises(ModelError, match=f"model.fused_kernels=on: .*{expected}.*set model.fused_kernels=auto"):
            choose_kernels(setting, device)


def test_the_log_names_the_kernels_that_a_model_computes_with():
    """Liger has no layers of GPT-2; only our attention, which ``sdpa`` stands for, has a kernel."""
    gpt2, llama, both = make_model("gpt2"), make_model("llama"), Kernels(layers=True, attention=True)
    assert PLAIN.describe(llama) == ""
    assert both.describe(gpt2) == "fused kernels: part attention in Triton"
    assert both.describe(llama).startswith("fused kernels: Liger's RMSNorm, SwiGLU and rotary embeddings, part")
    llama.config._attn_implementation = "eager"
    assert both.describe(llama) == "fused kernels: Liger's RMSNorm, SwiGLU and rotary embeddings"
