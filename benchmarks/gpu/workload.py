"""What the sections compute: sequences as in ProsQA, updates with and without DeepSpeed, and traces of them.

Nothing here needs a tokenizer or a file of problems. Without DeepSpeed, Hydra or pydantic the latent loop is trained by
torch's AdamW; the loop, which takes nearly all of the time, is the same.
"""

import gzip
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from generation_workload import END, EOS, START, THOUGHT, VOCABULARY, tokens_of_questions
from torch.profiler import ProfilerActivity, profile, record_function
from training_workload import make_config, make_engine
from transformers import AutoModelForCausalLM, PreTrainedModel

from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.model.collate import Batch, Collator
from coconut_ds.model.fused import PLAIN, Kernels
from coconut_ds.model.latent_loop import LatentLoop, latent_loss
from coconut_ds.model.precision import cast
from gpu.trace_events import Event, read_trace

THOUGHTS, ANSWER, LR = 6, 14, 1e-4
"""Of each sequence: its thoughts and its targets, as many as ProsQA has at stage 6 with GPT-2's tokenizer."""
LOOP, UPDATE = "loop", "update"
"""Names of the marked blocks of a trace: forward and backward pass of one micro batch, and a whole update."""
TINY = {
    "gpt2": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32},
    "llama_1b": {
        **{"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 64},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    },
}
"""What ``--small`` changes in the models of ``training_workload.MODELS``."""
TRAINING = ("deepspeed", "hydra", "omegaconf", "pydantic")
"""Modules that training with the project's engine needs."""


@dataclass(frozen=True)
class Options:
    """Command-line options that all sections read."""

    device: torch.device
    small: bool
    """Tiny sizes: the code runs on a CPU in seconds, and the numbers mean nothing."""
    out: Path

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.device.type == "cuda"


def micro_batches(number: int, micro: int) -> list[list[Layout]]:
    """``number`` micro batches of ``micro`` sequences of similar length, each with six thoughts before its answer."""
    rng = random.Random(1)
    questions = sorted(tokens_of_questions(number * micro), key=len)
    layouts = []
    for question in questions:
        answer = [rng.choice(question) for _ in range(ANSWER - 1)] + [EOS]
        ids = [*question, START, *[THOUGHT] * THOUGHTS, END, *answer]
        labels = [*[IGNORE] * (len(ids) - ANSWER), *answer]
        layouts.append(Layout(ids, labels, len(question) + 1, THOUGHTS))
    return [layouts[start : start + micro] for start in range(0, number * micro, micro)]


def make_model(
    name: str, options: Options, dtype: torch.dtype = torch.float32, layers: int | None = None
) -> PreTrainedModel:
    """A model of ``training_workload.MODELS`` with GPT-2's vocabulary and random weights, on the device.

    ``layers``: how many layers it has; None: as many as in ``MODELS``.
    """
    torch.manual_seed(0)
    config = make_config(name, VOCABULARY)
    for key, value in (TINY[name] if options.small else {}).items():
        setattr(config, key, value)
    if layers is not None:
        config.num_hidden_layers = layers
    # Random numbers for a billion weights take many seconds on a CPU.
    with options.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    cast(model, dtype, options.device)
    return model


def has_engine() -> bool:
    """Whether the packages of the project's training engine are installed."""
    return all(find_spec(module) is not None for module in TRAINING)


Update = Callable[[Sequence[Layout]], float]
"""Makes an update on one micro batch and returns its loss, which waits for the device."""


def make_update(
    model: PreTrainedModel, micro: int, bf16: bool, options: Options, ranks: Any, kernels: Kernels = PLAIN
) -> Update:
    """An update of the project's engine (fp32: ZeRO 0; bf16: ZeRO 1); without ``ranks``, of torch's AdamW."""
    if ranks is not None:
        engine = make_engine(model, ranks, micro, bf16, kernels=kernels)

        def update(layouts: Sequence[Layout]) -> float:
            with record_function(UPDATE):
                return float(engine.update([batch_of(layouts, options.device)], LR).loss)

        return update
    cast(model, torch.bfloat16 if bf16 else torch.float32, options.device)
    loop = LatentLoop(model.train(), kernels=kernels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)

    def plain_update(layouts: Sequence[Layout]) -> float:
        with record_function(UPDATE):
            loss = loop_pass(loop, layouts)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return float(loss)

    return plain_update


def loop_pass(loop: LatentLoop, layouts: Sequence[Layout]) -> torch.Tensor:
    """Forward and backward pass of one micro batch. Returns the loss, a scalar on the device."""
    batch = batch_of(layouts, loop.device).to(loop.device)
    with record_function(LOOP):
        loss = latent_loss(loop, *batch)
        loss.backward()
    return loss.detach()


def batch_of(layouts: Sequence[Layout], device: torch.device) -> Batch:
    """The tensors of a micro batch on the host, as in training on ``device``; all targets have the same weight."""
    total = sum(layout.num_targets for layout in layouts)
    collator = Collator.for_device(device, EOS, parallel=None, max_width=None)
    return collator(layouts, [1 / total] * len(layouts), max(layout.num_thoughts for layout in layouts))


def traced(run: Callable[[], object], options: Options, name: str) -> list[Event]:
    """Runs ``run`` under the profiler and returns the trace's events; the trace is kept in the output folder."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.on_gpu else [])]
    with profile(activities=activities) as profiler:
        run()
    path = options.out / f"trace_{name}.json"
    profiler.export_chrome_trace(str(path))
    events = read_trace(path)
    with path.open("rb") as source, gzip.open(f"{path}.gz", "wb") as target:
        shutil.copyfileobj(source, target)
    path.unlink()
    return events
