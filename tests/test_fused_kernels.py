"""The part attention equals plain attention, and fused kernels equal the plain code: in Triton, and Liger's layers.

Triton's interpreter runs them on the CPU. CPU builds of torch come without Triton; with
``pip install triton liger-kernel`` these tests run, otherwise they are skipped.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from making_layouts import SOME, jacobi
from tiny_models import SHAPES, make_model

from coconut_ds.errors import ModelError
from coconut_ds.model import fused
from coconut_ds.model.collate import collate
from coconut_ds.model.fused import PLAIN, Kernels, choose_kernels
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.part_attention import PartAttention, PrefixGate, Stash

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MISSING = "fused kernels are tested after: pip install triton liger-kernel"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason=MISSING)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Triton's interpreter. It computes with numpy, which has no bf16, so that type is computed with in fp32 here."""
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason=MISSING)
    import triton.language as tl

    builder = interpreter.InterpreterBuilder
    multiply, combine = builder.create_dot, builder.binary_op

    def exact(self: Any, value: Any) -> Any:
        return self.cast_impl(value, tl.float32) if value.dtype.scalar == tl.bfloat16 else value

    def create_dot(self: Any, one: Any, other: Any, *more: Any) -> Any:
        return multiply(self, exact(self, one), exact(self, other), *more)

    def binary_op(self: Any, one: Any, other: Any, operation: Any) -> Any:
        made = combine(self, exact(self, one), exact(self, other), operation)
        is_bf16 = one.dtype.scalar == tl.bfloat16 and made.dtype.scalar == tl.float32
        return self.cast_impl(made, tl.bfloat16) if is_bf16 else made

    monkeypatch.setattr(builder, "create_dot", create_dot)
    monkeypatch.setattr(builder, "binary_op", binary_op)
    return interpreter


@pytest.fixture
def liger(interpreter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips where Liger is missing. Its kernels need two things that the interpreter lacks: a function of CUDA's
    library, and arguments of type float that are tensors, as they are on a GPU."""
    pytest.importorskip("liger_kernel", reason=MISSING)
    import triton.language as tl
    from liger_kernel.ops import rms_norm

    convert = interpreter._implicit_cvt

    def converted(value: Any) -> Any:
        if not isinstance(value, float):
            return convert(value)
        return tl.tensor(interpreter.TensorHandle(np.array([value], np.float32), tl.float32), tl.float32)

    monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
    # The interpreter replaces the functions of ``tl`` while it runs a kernel.
    monkeypatch.setattr(rms_norm, "rsqrt", lambda value: tl.rsqrt(value))


def obvious_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Attention in fp32 over all columns that are not ``hidden`` [B, Q, columns], with keys repeated for each head."""
    groups = query.shape[1] // keys.shape[1]
    query, keys, values = (each.float() for each in (query, keys, values))
    keys, values = (each.repeat_interleave(groups, dim=1) for each in (keys, values))
    scores = (query @ keys.transpose(2, 3) / query.shape[-1] ** 0.5).masked_fill(hidden[:, None], -torch.inf)
    return scores.softmax(dim=-1) @ values


@pytest.mark.parametrize("way", ["plain", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("groups", "size", "padded"), [(1, 16, False), (1, 24, True), (3, 16, True)])
def test_the_part_attention_equals_attention_over_all_columns(way, dtype, groups, size, padded, request):
    """Outputs and all gradients, over three passes of 1, 1 and 30 positions after a prefix of 70 columns, more than a
    block has. Rows of the padded batch have 70, 3 and 66 real columns; groups of query heads share a key head."""
    draw = torch.Generator().manual_seed(0)
    rows, kv_heads, width, counts = 3, 2, 70, (1, 1, 30)

    def random(heads: int, columns: int) -> torch.Tensor:
        # As transformers makes them: the layout of memory is [B, columns, heads, E].
        made = torch.randn(rows, columns, heads, size, generator=draw).to(dtype)
        return made.transpose(1, 2).detach().requires_grad_()

    prefix = random(kv_heads, width), random(kv_heads, width)
    passes = [(random(groups * kv_heads, n), random(kv_heads, n), random(kv_heads, n)) for n in counts]
    lengths = torch.tensor([70, 3, 66] if padded else [70, 70, 70])
    pads = torch.arange(width) >= lengths[:, None]
    directions = [torch.randn(rows, groups * kv_heads, n, size, generator=draw).to(dtype) for n in counts]
    leaves = [*prefix, *(tensor for each in passes for tensor in each)]

    def attention(stash: Stash, gated: list[torch.Tensor], *parts: torch.Tensor) -> torch.Tensor:
        shared = (parts[0], *gated, *parts[1:], pads if padded else None, stash, size**-0.5)
        if way == "plain":
            return PartAttention.apply(*shared, 0.0)
        request.getfixturevalue("interpreter")
        from coconut_ds.model.triton_attention import TritonPartAttention

        return TritonPartAttention.apply(*shared)

    stash = Stash()
    gated = PrefixGate.apply(*(each.contiguous() for each in prefix), stash)
    fast, slow = [], []
    for number, (query, _, _) in enumerate(passes):
        later = [torch.cat([each[part] for each in passes[: number + 1]], dim=2) for part in (1, 2)]
        fast.append(attention(stash, gated, query, *later))
        columns, count = later[0].shape[2], query.shape[2]
        future = torch.arange(columns) > torch.arange(columns - count, columns)[:, None]
        hidden = torch.cat([pads[:, None].expand(-1, count, -1), future.expand(rows, -1, -1)], dim=-1)
        both = (torch.cat(pair, dim=2) for pair in zip(prefix, later, strict=True))
        slow.append(obvious_attention(query, *both, hidden))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    results = zip(
        [*fast, *torch.autograd.grad(fast, leaves, directions)],
        [*slow, *torch.autograd.grad(slow, leaves, [each.float() for each in directions])],
        strict=True,
    )
    for one, other in results:
        scale = float(other.detach().abs().max())
        torch.testing.assert_close(one.float(), other.float(), rtol=tolerance, atol=tolerance * scale)


def losses_and_gradients(
    family: str, kernels: Kernels, dtype: torch.dtype, checkpointing: bool, iterations: int | None
) -> list[torch.Tensor]:
    """Loss and every gradient of a padded batch. The weights are numbers of bf16 in each ``dtype``."""
    model = make_model(family).to(torch.bfloat16).to(dtype)
    loop = LatentLoop(model, checkpointing, defer_gradients=checkpointing, kernels=kernels)
    loss = latent_loss(loop, *collate(SOME, [0.5, 1.0, 0.25], 3, pad_id=3, parallel=jacobi(iterations)))
    loss.backward()
    return [loss.detach(), *(parameter.grad.float() for parameter in model.parameters())]


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "kernels", "dtype", "checkpointing", "iterations"),
    [
        ("gpt2", Kernels(attention=True), torch.float32, False, None),
        ("qwen3", Kernels(layers=True, attention=True), torch.float32, True, None),
        ("qwen3", Kernels(layers=True, attention=True), torch.float32, False, 2),
        ("qwen3", Kernels(layers=True, attention=True), torch.bfloat16, True, None),
    ],
)
def test_a_loop_with_fused_kernels_equals_the_plain_one(family, kernels, dtype, checkpointing, iterations, liger):
    """Loss and every gradient; also with layers that are computed again, deferred gradients of weights, and Jacobi. In
    bf16, they are as far from those of fp32 as the plain ones are, or nearer, up to a factor of 2."""
    chosen = dtype, checkpointing, iterations
    fast, slow = losses_and_gradients(family, kernels, *chosen), losses_and_gradients(family, PLAIN, *chosen)
    exact = losses_and_gradients(family, PLAIN, torch.float32, *chosen[1:])
    for one, other, true in zip(fast, slow, exact, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
        else:
            assert float((one - true).norm()) <= 2 * float((other - true).norm()) + 0.01 * float(true.norm())


@needs_triton
@pytest.mark.slow
def test_the_triton_kernels_compile_for_an_a100_and_an_h100(tmp_path):
    """As machine code, whose blocks fit into the shared memory of an A100 (163 KiB)."""
    script = Path(__file__).parent / "compile_kernels.py"
    # Compiled anew, whatever Triton's cache in the user's home has.
    env = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    compiled = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(compiled) == 9
    assert max(kernel["shared"] for kernel in compiled) <= 163 * 1024


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
        ("on", CUDA, ["triton"], "liger_kernel is missing .pip install 'liger-kernel>=0.8'."),
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
