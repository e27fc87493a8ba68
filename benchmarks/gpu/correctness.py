"""Section ``correctness``: losses, gradients and tokens on the device, compared with slow and simple code on the CPU.

fp32 runs without TF32, so both sides round in the same type and differ only in the order of sums. The part with ZeRO
stages is in ``zero_stages.py``.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from slow_loop import slow_generate, slow_loss
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import AtOnce, Request, Thinking
from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.methods.parallel import Parallel
from coconut_ds.model.collate import collate
from coconut_ds.model.fused import PLAIN, Kernels, choose_kernels
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.precision import cast
from gpu import zero_stages
from gpu.report import Report
from gpu.workload import Options

FAMILIES = ("gpt2", "llama", "qwen3")
VOCABULARY, EOS, START, THOUGHT, END = 300, 0, 297, 298, 299
LOSS_FP32, GRADIENTS_FP32 = 1e-5, 1e-3
"""Largest difference of the loss, relative to it, and of any gradient, relative to its largest element, in fp32."""
LOSS_BF16, GRADIENTS_BF16 = 0.02, 0.1
"""The same in bf16: of the loss, and of all gradients together, as the norm of the difference over the norm."""
PARALLEL = {"jacobi": Parallel("jacobi", 2), "looped": Parallel("looped", None, block=2)}
"""Ways to compute all thoughts at once."""


def run(report: Report, options: Options) -> None:
    """Fills the report."""
    with exact_fp32():
        for family in FAMILIES:
            for way in ("plain", "checkpointing", *PARALLEL):
                with report.part(f"{family}, {way}"):
                    _compare_fp32(report, options, family, way)
            with report.part(f"{family}, bf16"):
                _compare_bf16(report, options, family)
            kernels = choose_kernels("auto", options.device)
            if kernels == PLAIN:
                report.skip(f"{family}, fused kernels", "needs a CUDA device and triton")
            else:
                with report.part(f"{family}, fused kernels"):
                    _compare_fp32(report, options, family, "fused kernels", kernels)
                    _compare_bf16(report, options, family, kernels)
            with report.part(f"{family}, tokens"):
                _compare_tokens(report, options, family)
        if report.can_run("LoRA", "peft", "pydantic", "yaml"):
            with report.part("llama, LoRA"):
                _compare_lora(report, options)
    zero_stages.run(report, options)


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Multiplies fp32 matrices in fp32, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def family_model(family: str, small: bool) -> PreTrainedModel:
    """A random model with heads of 64 (``small``: 8) elements, on the CPU, the same in each call."""
    size = 8 if small else 64
    torch.manual_seed(0)
    # Large enough for every path to matter, small enough for bf16 not to lose the gradient through the thoughts.
    values: dict[str, Any] = {"vocab_size": VOCABULARY, "initializer_range": 0.4 / size**0.5, "bos_token_id": EOS}
    if family == "gpt2":
        values |= {"n_embd": 4 * size, "n_layer": 2, "n_head": 4, "n_positions": 512}
        values |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    else:
        values |= {"hidden_size": 4 * size, "intermediate_size": 6 * size, "num_hidden_layers": 2}
        values |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
        values |= {"head_dim": size}
    config = AutoConfig.for_model(family, eos_token_id=EOS, **values)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def mixed_layouts(small: bool) -> list[Layout]:
    """Sequences of different lengths with 0 to 4 thoughts, so that every kind of padding occurs."""
    rng, longest = random.Random(0), 30 if small else 200
    found = []
    for number in range(3 if small else 6):
        before = [rng.randrange(1, START) for _ in range(rng.randrange(longest // 3, longest))]
        thoughts, after = (0, 4, 2, 3, 1, 4)[number], [rng.randrange(1, START) for _ in range(rng.randrange(3, 20))]
        ids = [*before, START, *[THOUGHT] * thoughts, END, *after]
        labels = [*[IGNORE] * (len(ids) - len(after)), *after]
        found.append(Layout(ids, labels, len(before) + 1 if thoughts else len(ids), thoughts))
    return found


Result = tuple[float, dict[str, Tensor]]
"""A loss, and the gradient of each trained weight, on the CPU in fp32."""


def slow_result(model: PreTrainedModel, layouts: Sequence[Layout], parallel: Parallel | None = None) -> Result:
    """Loss and gradients from the slow loop on the CPU."""
    return _result(model, slow_loss(model, list(layouts), _weights(layouts), parallel))


@cache
def slow_reference(family: str, small: bool, parallel: Parallel | None = None, rounded: bool = False) -> Result:
    """What ``slow_result`` finds for a family. ``rounded``: with weights that bf16 can represent, computed in fp32."""
    model = family_model(family, small)
    for parameter in model.parameters() if rounded else ():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    return slow_result(model, mixed_layouts(small), parallel)


def fast_result(
    model: PreTrainedModel, layouts: Sequence[Layout], way: str = "plain", kernels: Kernels = PLAIN
) -> Result:
    """Loss and gradients from the latent loop, where the model is."""
    loop = LatentLoop(model, activation_checkpointing=way == "checkpointing", kernels=kernels)
    thoughts = max(layout.num_thoughts for layout in layouts)
    batch = collate(layouts, _weights(layouts), thoughts, EOS, parallel=PARALLEL.get(way))
    return _result(model, latent_loss(loop, *batch.to(loop.device)))


def _weights(layouts: Sequence[Layout]) -> list[float]:
    return [1 / sum(layout.num_targets for layout in layouts)] * len(layouts)


def _result(model: PreTrainedModel, loss: Tensor) -> Result:
    loss.backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = {name: p.grad.float().cpu() for name, p in trained.items() if p.grad is not None}
    assert gradients.keys() == trained.keys(), "every trained weight has a gradient"
    return loss.item(), gradients


def differences(found: Result, expected: Result) -> tuple[float, float, float]:
    """Of the loss, relative to it; the largest of a gradient, relative to its largest element (at least to a
    hundredth of the largest of all); and of all gradients together, as a norm relative to the norm."""
    loss = abs(found[0] - expected[0]) / abs(expected[0])
    largest = max(float(gradient.abs().max()) for gradient in expected[1].values())
    each = max(
        float((found[1][name] - gradient).abs().max()) / max(float(gradient.abs().max()), largest / 100)
        for name, gradient in expected[1].items()
    )
    squares = sum(float((found[1][name] - gradient).square().sum()) for name, gradient in expected[1].items())
    return loss, each, (squares / sum(float(g.square().sum()) for g in expected[1].values())) ** 0.5


def _compare_fp32(report: Report, options: Options, family: str, way: str, kernels: Kernels = PLAIN) -> None:
    expected = slow_reference(family, options.small, PARALLEL.get(way))
    model = family_model(family, options.small).to(options.device)
    found = fast_result(model, mixed_layouts(options.small), way, kernels)
    _check_fp32(report, f"{family}, {way}", found, expected)


def _check_fp32(report: Report, name: str, found: Result, expected: Result) -> None:
    loss, gradients, _ = differences(found, expected)
    report.check(f"loss of {name}", loss < LOSS_FP32, f"{loss:.1e}", f"a relative difference below {LOSS_FP32}")
    report.check(f"gradients of {name}", gradients < GRADIENTS_FP32, f"{gradients:.1e}", f"below {GRADIENTS_FP32}")


def _compare_bf16(report: Report, options: Options, family: str, kernels: Kernels = PLAIN) -> None:
    expected = slow_reference(family, options.small, rounded=True)
    model = family_model(family, options.small).to(options.device)
    cast(model, torch.bfloat16, options.device)
    found = fast_result(model, mixed_layouts(options.small), kernels=kernels)
    loss, _, gradients = differences(found, expected)
    name = f"{family}, bf16{', fused kernels' if kernels != PLAIN else ''}"
    report.check(f"loss of {name}", loss < LOSS_BF16, f"{loss:.1e}", f"below {LOSS_BF16}")
    report.check(f"gradients of {name}", gradients < GRADIENTS_BF16, f"{gradients:.3f}", f"below {GRADIENTS_BF16}")


def _compare_lora(report: Report, options: Options) -> None:
    from coconut_ds.model.lora import add_adapters
    from coconut_ds.settings import LoraConfig

    def model() -> PreTrainedModel:
        made = family_model("llama", options.small)
        add_adapters(made, MarkerIds(START, END, THOUGHT), LoraConfig(rank=4))
        for name, parameter in made.named_parameters():
            # Initially zero; then the other matrix of each adapter would have no gradient.
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return made

    layouts = mixed_layouts(options.small)
    expected = slow_result(model(), layouts)
    _check_fp32(report, "llama, LoRA", fast_result(model().to(options.device), layouts), expected)


def _compare_tokens(report: Report, options: Options, family: str) -> None:
    """Greedy tokens of the thinking engine on the device, and of the slow loop on the CPU."""
    length = 6 if options.small else 12
    prompts = [_prompt(layout) for layout in mixed_layouts(options.small)]
    requests = [Request(prompt, length, suppress=(THOUGHT,)) for prompt in prompts]
    for parallel in PARALLEL.values():
        requests.append(Request(prompts[1], length, at_once=AtOnce(parallel, THOUGHT), suppress=(THOUGHT,)))
    requests.append(Request(prompts[0], length, thinking=Thinking(START, END, 2), suppress=(THOUGHT, END)))
    slow = family_model(family, options.small)
    expected = [slow_generate(slow, request, EOS) for request in requests]
    loop = LatentLoop(family_model(family, options.small).to(options.device))
    found = [completion.tokens for completion in generate(loop, requests, [EOS], slots=4)]
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    report.check(f"tokens of {family}", same == len(requests), f"{same} of {len(requests)} requests", "all equal")


def _prompt(layout: Layout) -> Layout:
    """The part of a sequence up to its last thought; a sequence without thoughts as a whole."""
    end = layout.first_thought + layout.num_thoughts
    return Layout(layout.input_ids[:end], [IGNORE] * end, layout.first_thought, layout.num_thoughts)
