"""Shared by the training benchmarks: problems as layouts, models, an engine, and the machine's limits."""

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.data.prosqa import generate_problem
from coconut_ds.data.tokens import add_markers, build_word_tokenizer, load_tokenizer, tokenize
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import CurriculumSpec, MarkerIds
from coconut_ds.methods.layout import Layout, lay_out
from coconut_ds.methods.layouts import Layouts
from coconut_ds.model.collate import Batch, collate
from coconut_ds.model.fused import PLAIN, Kernels
from coconut_ds.model.latent_loop import LatentLoop

if TYPE_CHECKING:
    from coconut_ds.training.engine import Engine

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
"""Published problems and GPT-2's tokenizer, if they are present next to the checkout."""
GLOBAL_BATCH = 128
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODELS = {
    "gpt2_small": ("gpt2", {"n_layer": 6, "n_head": 8, "n_embd": 512}),
    "gpt2": ("gpt2", {}),
    "llama_1b": (
        "llama",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "tie_word_embeddings": True,
            "max_position_embeddings": 4096,
        },
    ),
}
"""Model types and configurations; the vocabulary is the tokenizer's, the weights are random."""


@dataclass(frozen=True)
class Workload:
    """The sequences of the method ``coconut`` at one stage, with one thought for each step."""

    layouts: list[Layout]
    tokenizer: PreTrainedTokenizerBase
    markers: MarkerIds
    source: str
    """Where the problems come from, as text."""

    @classmethod
    def load(cls, data: str | None, tokenizer: str | None, stage: int) -> "Workload":
        """Problems and tokenizer as given; else the published ones if present, else generated ones."""
        problems, loaded, source = problems_of(data, tokenizer)
        markers, _ = add_markers(loaded)
        spec = CurriculumSpec(1, max(stage, 1))
        layouts = [lay_out(METHODS["coconut"], one, stage, spec, markers) for one in tokenize(loaded, problems)]
        random.Random(1).shuffle(layouts)
        return cls(layouts, loaded, markers, source)

    @property
    def pad_id(self) -> int:
        """The token id of padding."""
        return int(self.tokenizer.eos_token_id)

    @property
    def tokens_a_problem(self) -> float:
        """Average length of a sequence."""
        return sum(map(len, self.layouts)) / len(self.layouts)

    def micro_batches(self, micro: int) -> list[Sequence[Layout]]:
        """Micro batches of ``micro`` problems, cut from global batches as in training."""
        from coconut_ds.training.batches import BatchGeometry, plan_update

        geometry = BatchGeometry(GLOBAL_BATCH, micro, GLOBAL_BATCH // micro, 1)
        return [
            batch.layouts
            for start in range(0, len(self.layouts) - GLOBAL_BATCH + 1, GLOBAL_BATCH)
            for batch in plan_update(self.layouts[start : start + GLOBAL_BATCH], geometry, 0, "token")
        ]

    def plain_batches(self, micro: int) -> list[Sequence[Layout]]:
        """Micro batches of ``micro`` problems in their original order."""
        return [self.layouts[start : start + micro] for start in range(0, len(self.layouts) - micro + 1, micro)]

    def collate(self, layouts: Sequence[Layout]) -> Batch:
        """The tensors of a micro batch that is a whole update: each target has the same weight."""
        rows = Layouts.of(layouts)
        weight = 1 / int(rows.num_targets.sum())
        return collate(rows, [weight] * len(rows), int(rows.num_thoughts.max()), self.pad_id)

    def real_share(self, micro: int) -> float:
        """Share of the computed columns that are not padding."""
        real = columns = 0
        for batch in self.micro_batches(micro):
            inputs, _ = self.collate(batch)
            real += sum(map(len, batch))
            columns += sum(ids.numel() for ids in (inputs.prefix_ids, inputs.step_ids, inputs.rest_ids))
        return real / columns


def problems_of(data: str | None, tokenizer: str | None) -> tuple[list[Problem], PreTrainedTokenizerBase, str]:
    """Problems and tokenizer as given, else the published ones if present, else generated ones; and their source."""
    published = SHARED / "prosqa_valid.json"
    if data is None and published.is_file():
        data, tokenizer = str(published), tokenizer or str(SHARED / "gpt2_tokenizer")
    rng = random.Random(0)
    problems = load_problems(data) if data else [generate_problem(rng) for _ in range(2 * GLOBAL_BATCH)]
    texts = [text for one in problems for text in (one.question, *one.steps, one.answer)]
    loaded = load_tokenizer(tokenizer) if tokenizer else build_word_tokenizer(texts)
    return problems, loaded, Path(data).name if data else "generated"


def make_config(name: str, rows: int) -> PreTrainedConfig:
    """The configuration of a model of ``MODELS`` whose embedding has ``rows`` rows."""
    kind, values = MODELS[name]
    # Dropout would make the losses of two loops differ.
    quiet = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if kind == "gpt2" else {}
    return AutoConfig.for_model(kind, vocab_size=rows, bos_token_id=0, eos_token_id=0, **values, **quiet)


def make_model(name: str, work: Workload, attention: str = "sdpa") -> PreTrainedModel:
    """A model of ``MODELS`` with the same random weights in each call."""
    torch.manual_seed(0)
    config = make_config(name, len(work.tokenizer))
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)


def make_engine(
    model: PreTrainedModel,
    ranks: Ranks,
    micro: int,
    bf16: bool,
    checkpointing: bool = False,
    kernels: Kernels = PLAIN,
) -> "Engine":
    """The project's training engine around a model; each micro batch is an update."""
    # Imported here and in ``micro_batches``, because the GPU check uses this file where Hydra and pydantic are missing.
    from coconut_ds.settings.compose import compose_config
    from coconut_ds.training.batches import BatchGeometry
    from coconut_ds.training.engine import Engine

    overrides = ["data=permutation_product", f"batch_size_training={micro}", f"global_batch_size={micro}"]
    overrides += [f"bf16={str(bf16).lower()}", f"deepspeed={'zero1' if bf16 else 'zero0'}"]
    config = compose_config(overrides)
    engine = Engine(
        LatentLoop(model, checkpointing, kernels=kernels), config, BatchGeometry(micro, micro, 1, ranks.size), ranks
    )
    engine.train()
    return engine


def operations(config: PreTrainedConfig, layouts: Sequence[Layout]) -> float:
    """Floating point operations that an update of a model with this configuration needs for its real tokens.

    Each weight takes two operations for each token in the forward pass and four in the backward pass. Attention is
    counted from each position to itself and all positions before it; the head only at targets. The modules after the
    attention of the last layer are not counted at the question's positions whose states are not used.
    """
    config = config.get_text_config()
    layers, width, heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
    inner = getattr(config, "n_inner", None) or getattr(config, "intermediate_size", None) or 4 * width
    size = getattr(config, "head_dim", None) or width // heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    gated = 3 if config.model_type == "llama" else 2
    weights = layers * (width * size * (2 * heads + 2 * shared) + gated * width * inner)
    head = width * config.vocab_size
    behind_attention = width * (size * heads + gated * inner)
    total = 0.0
    for layout in layouts:
        length = len(layout)
        attention = layers * 2 * heads * size * length * (length + 1) / 2
        unread = layout.first_thought - 1 if layout.num_thoughts else 0
        total += 6 * (weights * length + attention + head * layout.num_targets - behind_attention * unread)
    return total


def matrix_peak(device: torch.device, dtype: torch.dtype, sizes: Sequence[int] = ()) -> float:
    """Floating point operations per second of large matrix products: the best of several sizes."""
    best = 0.0
    for size in sizes or ((1024, 2048) if device.type == "cpu" else (4096, 8192)):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for took in _times(lambda a=a, b=b: a @ b, device, 8):
            best = max(best, 2 * size**3 / took)
    return best


def _times(run: object, device: torch.device, count: int) -> Iterator[float]:
    """Seconds of each of ``count`` calls."""
    for _ in range(count):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        result: Tensor = run()  # type: ignore[operator]
        if device.type == "cuda":
            torch.cuda.synchronize()
        yield time.perf_counter() - began
        del result


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MB: of the process on a CPU, allocated by torch on a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    # Not ru_maxrss, which a process inherits from its parent.
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """Median over the rounds of one quantity over another."""
    return statistics.median(value / other for value, other in zip(values, others, strict=True))
