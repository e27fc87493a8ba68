"""From a configuration to a plan of its memory, and the plan as a table."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import open_source
from coconut_ds.data.tokens import add_markers, tokenize
from coconut_ds.errors import ConfigError
from coconut_ds.memory.plan import GIB, MemoryPlan, Planner
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import MarkerIds
from coconut_ds.methods.layout import IGNORE, Layout, lay_out
from coconut_ds.model.backbone import architecture
from coconut_ds.model.starting import starting_tokenizer
from coconut_ds.settings import Config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.curriculum import Curriculum

NUM_LONGEST = 64
"""Problems with most characters, among which those with most tokens are looked for."""


def plan_of(
    config: Config, gpus: int, gpu_memory_gib: float | None, tokens: int | None, targets: int | None
) -> MemoryPlan:
    """The plan of a run on ``gpus`` ranks.

    Raises:
        CoconutError: model, data or tokenizer cannot be had, or numbers do not fit each other.
    """
    planner = planner_of(config, gpus, tokens, targets)
    micro_batch = BatchGeometry.derive(config.training, gpus).micro_batch_size
    return planner.plan(micro_batch, None if gpu_memory_gib is None else gpu_memory_gib * GIB)


def planner_of(config: Config, gpus: int, tokens: int | None, targets: int | None, on_cpu: bool = False) -> Planner:
    """What knows the model and the longest sequences."""
    start = config.run.load_model_path
    if start is not None and Path(start).is_dir():
        named: dict[str, Any] = {
            "model_id": start,
            "model_init": "pretrained",
            "tokenizer": None,
            "model_config_overrides": {},
        }
        config = config.model_copy(update={"model": config.model.model_copy(update=named)})
    model = architecture(config.model)
    if tokens is not None:
        shape = made_up(config, tokens, tokens // 4 if targets is None else targets)
        rows = model.get_text_config().vocab_size
        shapes = {shape.num_thoughts: shape}
        return Planner(config, model, rows, shapes, gpus, on_cpu)
    source = open_source(config.data, config.run.seed, config.run.debug)
    tokenizer = starting_tokenizer(config, source)
    add_markers(tokenizer, METHODS[config.method.kind].pauses)
    from_scratch = config.model.model_init == "scratch"
    rows = len(tokenizer) if from_scratch else max(len(tokenizer), model.get_text_config().vocab_size)
    problems = sorted(source.train(config.run.resume), key=lambda one: -len(one.question + "".join(one.steps)))
    return Planner(config, model, rows, longest_layouts(config, problems[:NUM_LONGEST], tokenizer), gpus, on_cpu)


def longest_layouts(
    config: Config, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase
) -> dict[int, Layout]:
    """The longest sequences of the first and of the last stage."""
    method, spec = METHODS[config.method.kind], config.training.curriculum_spec
    tokenized = tokenize(tokenizer, problems, config.data.text_format)
    stages = max(method.num_stages(problem, spec) for problem in tokenized)
    last = Curriculum.of(config.training, method, stages).last_stage
    nowhere = MarkerIds(0, 0, 0, 0)
    return {
        stage: max((lay_out(method, problem, stage, spec, nowhere) for problem in tokenized), key=len)
        for stage in sorted({0, last})
    }


def made_up(config: Config, tokens: int, targets: int) -> Layout:
    """A sequence of ``tokens`` with as many thoughts as the last stage has, and with loss on its last ``targets``.

    Raises:
        ConfigError: they do not fit into it.
    """
    method, spec = METHODS[config.method.kind], config.training.curriculum_spec
    latents = method.num_latents(spec.max_latent_stage, None, spec)
    thoughts = 0 if method.pauses else latents
    first = tokens - targets - thoughts
    if first < 1 or targets < 1:
        raise ConfigError(
            f"tokens={tokens}: {targets} targets and {thoughts} thoughts leave no question; set tokens above "
            f"{targets + thoughts}, or targets"
        )
    labels = [IGNORE] * (tokens - targets) + [0] * targets
    return Layout([0] * tokens, labels, first if thoughts else tokens, thoughts)


def plan_table(plan: MemoryPlan, config: Config, gpus: int, gpu_memory_gib: float | None) -> str:
    """The plan for people, in GiB."""
    kept, passes = plan.kept, plan.passes
    trained = "" if plan.trained == plan.parameters else f", {plan.trained / 1e6:,.1f} M trained"
    lines = [
        f"{config.model.model_id}: {plan.parameters / 1e6:,.1f} M parameters{trained}; "
        f"deepspeed={config.deepspeed.config}, {'bf16' if config.run.bf16 else 'fp32'}, {gpus} "
        f"GPU{'s' if gpus > 1 else ''}, micro batch {plan.micro_batch}, stage {plan.stage} (the one that takes most)",
        "",
        "GiB a GPU",
        *(
            f"{name:<36}{size / GIB:9.2f}"
            for name, size in (
                ("weights", kept.weights),
                ("whole weights of others, at most", kept.gathered),
                ("gradients", kept.gradients),
                ("optimizer", kept.optimizer),
                ("buckets of gradients", kept.buckets),
                ("passes: prefix", passes["prefix"]),
                ("        thoughts", passes["thoughts"]),
                ("        rest", passes["rest"]),
                ("        head and loss", passes["loss"]),
                ("        gradients on their way", passes["backward"]),
                ("peak", plan.total),
            )
        ),
        f"keys and values, among the passes: {plan.keys_and_values / GIB:.2f} GiB; "
        f"at the optimizer's step, without passes: {(kept.total + kept.at_step) / GIB:.2f} GiB",
    ]
    if kept.host:
        lines.append(f"in the memory of the machine, for each GPU: {kept.host / GIB:.2f} GiB")
    if plan.largest_micro_batch is not None:
        fits = f"largest micro batch: {plan.largest_micro_batch}" if plan.largest_micro_batch else "nothing fits"
        lines.append(f"in {gpu_memory_gib:g} GiB: {fits}")
    lines.append("Not counted: the device's context (about 1 GiB), the inside of kernels, fragmentation.")
    return "\n".join(lines) + "\n"
