"""Makes the memory plan of a configuration, and formats it as a table."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from coconut_ds.data.problem import Problem
from coconut_ds.data.sequences import Sequences
from coconut_ds.data.sources import Words, open_sources
from coconut_ds.data.token_arrays import ProblemArrays, arrays_of
from coconut_ds.data.tokens import add_markers, encode_announcements, tokenize
from coconut_ds.errors import ConfigError, ModelError
from coconut_ds.memory.bundled import known_architecture
from coconut_ds.memory.passes import ANY_MARKERS
from coconut_ds.memory.plan import GIB, MemoryPlan, Planner, Workload, offloads
from coconut_ds.methods import METHODS
from coconut_ds.methods.base import Ids, TokenizedProblem
from coconut_ds.methods.layout import lay_out
from coconut_ds.model.starting import card_of, starting_tokenizer
from coconut_ds.objectives import objective_of
from coconut_ds.settings import Config
from coconut_ds.training.batches import BatchGeometry
from coconut_ds.training.curriculum import Curriculum
from coconut_ds.training.engine_file import read_engine_file

NUM_LONGEST = 64
"""Only this many problems, those with the most characters, are tokenized to find the longest sequences."""


def plan_of(
    config: Config,
    gpus: int,
    gpu_memory_gib: float | None,
    tokens: int | None,
    targets: int | None,
    notify: Callable[[str], None] = lambda line: None,
) -> MemoryPlan:
    """The memory plan of a run.

    Args:
        config: the configuration of the run.
        gpus: number of ranks.
        gpu_memory_gib: memory of each GPU in GiB, to search for the largest micro batch that fits; None: no search.
        tokens: length of all sequences with thoughts, which thoughts and markers are part of; None: the longest ones of
            the training data. Steps that thoughts replace are taken to have together as many tokens as targets.
        targets: how many of the ``tokens`` are targets of the loss; None: a quarter.
        notify: receives a line before each part of the work.

    Raises:
        CoconutError: the model's configuration, the data or the tokenizer is not available, or the numbers contradict
            each other.
    """
    notify(f"loading the configuration of {config.model.model_id}")
    planner = replace(planner_of(config, gpus, tokens, targets), notify=notify)
    micro_batch = BatchGeometry.derive(config.training, gpus, config.objective.reads("grpo")).micro_batch_size
    return planner.plan(micro_batch, None if gpu_memory_gib is None else gpu_memory_gib * GIB)


def planner_of(config: Config, gpus: int, tokens: int | None, targets: int | None, on_cpu: bool = False) -> Planner:
    """The planner for a configuration. For the arguments see ``plan_of`` and ``Planner``.

    Raises:
        CoconutError: see ``plan_of``.
    """
    start, card = config.run.load_model_path, card_of(config)
    feed = None if card is None else card.feed
    if start is not None and Path(start).is_dir():
        named: dict[str, Any] = {
            "model_id": start,
            "model_init": "pretrained",
            "tokenizer": None,
            "model_config_overrides": {},
        }
        config = config.model_copy(update={"model": config.model.model_copy(update=named)})
    model = known_architecture(config.model)
    if tokens is not None:
        work = synthetic_workload(config, tokens, tokens // 4 if targets is None else targets)
        return Planner(config, model, model.get_text_config().vocab_size, work, gpus, feed, on_cpu=on_cpu)
    sources = open_sources(config.data, config.run.seed, config.run.debug)
    try:
        tokenizer = starting_tokenizer(config, Words(sources))
    except ModelError as error:
        raise ModelError(f"{error}; or set tokens=T, with which no tokenizer is needed") from error
    add_markers(tokenizer, METHODS[config.method.kind].pauses)
    from_scratch = config.model.model_init == "scratch"
    rows = len(tokenizer) if from_scratch else max(len(tokenizer), model.get_text_config().vocab_size)
    every = [problem for source in sources for problem in source.train(config.run.resume)]
    problems = sorted(every, key=lambda one: -len(one.question + "".join(one.steps)))
    longest = longest_of(config, problems[:NUM_LONGEST], tokenizer)
    return Planner(config, model, rows, longest, gpus, feed, on_cpu=on_cpu)


def longest_of(config: Config, problems: Sequence[Problem], tokenizer: PreTrainedTokenizerBase) -> Workload:
    """The problems, and those with the longest sequences at the first and at the last curriculum stage."""
    method, spec = METHODS[config.method.kind], config.training.curriculum_spec
    tokenized = tokenize(tokenizer, problems, config.data.text_format)
    stages = max(method.num_stages(problem, spec) for problem in tokenized)
    last = Curriculum.of(config.training, method, stages).last_stage
    sequences = _sequences(config, encode_announcements(tokenizer, config.data.text_format))
    arrays = ProblemArrays([arrays_of(tokenized)], tokenized[0].cue)
    longest = {}
    for stage in sorted({0, last}):
        views = objective_of(config).examples(sequences, 0, stage, arrays, range(len(arrays))).views
        longest[stage] = int(np.argmax(sum(view.lengths for view in views)))
    return Workload(sequences, arrays, longest)


def synthetic_workload(config: Config, tokens: int, targets: int) -> Workload:
    """One problem, whose sequence at the last stage has ``tokens`` positions and ends with ``targets`` targets.

    Raises:
        ConfigError: ``tokens`` is too small for targets, thoughts and a question.
    """
    method, spec = METHODS[config.method.kind], config.training.curriculum_spec
    stage = spec.max_latent_stage if method.has_curriculum else 0
    # Steps that are written out are targets. Where thoughts replace all of them, only other views contain them.
    count = spec.max_latent_stage if method.has_latents else 0
    steps = tuple([0] * (targets * (number + 1) // count - targets * number // count) for number in range(count))
    frame = lay_out(method, TokenizedProblem([], steps, []), stage, spec, ANY_MARKERS)
    question = tokens - targets - len(frame)
    if question < 1 or targets < 1:
        raise ConfigError(
            f"tokens={tokens}: {targets} targets and {len(frame)} thoughts, pauses and markers leave no question; set "
            f"tokens above {targets + len(frame)}, or set targets"
        )
    problem = TokenizedProblem([0] * question, steps, [0] * targets)
    return Workload(_sequences(config), ProblemArrays([arrays_of([problem])], ()), {stage: 0})


def _sequences(config: Config, announcements: tuple[Ids, ...] = ()) -> Sequences:
    """Makes the sequences of the run, without mixing of stages."""
    training = config.training.model_copy(update={"uniform_prob": 0.0, "replay_prob": 0.0})
    method, spec = METHODS[config.method.kind], training.curriculum_spec
    return Sequences(training, config.run.seed, method, spec, ANY_MARKERS, announcements)


def plan_table(plan: MemoryPlan, config: Config, gpus: int, gpu_memory_gib: float | None) -> str:
    """The plan as a table for people, in GiB."""
    kept, passes = plan.kept, plan.passes
    trained = "" if plan.trained == plan.parameters else f", {plan.trained / 1e6:,.1f} M trained"
    lines = [
        f"{config.model.model_id}: {plan.parameters / 1e6:,.1f} M parameters{trained}; "
        f"deepspeed={config.deepspeed.config}, {'bf16' if config.run.bf16 else 'fp32'}, {gpus} "
        f"GPU{'s' if gpus > 1 else ''}, micro batch {plan.micro_batch}, stage {plan.stage} (takes most memory)",
        "",
        "GiB on each GPU",
        *(
            f"{name:<36}{size / GIB:9.2f}"
            for name, size in (
                ("weights", kept.weights),
                *([("weights at the start of the run", kept.start)] if kept.start else []),
                *([("singular vectors", kept.objective)] if kept.objective else []),
                ("whole weights, gathered", kept.gathered),
                ("gradients", kept.gradients),
                ("optimizer states", kept.optimizer),
                ("gradient buckets", kept.buckets),
                ("passes: prefix", passes["prefix"]),
                ("        thoughts", passes["thoughts"]),
                ("        rest", passes["rest"]),
                ("        head and loss", passes["loss"]),
                ("        backward", passes["backward"]),
                ("peak", plan.total),
            )
        ),
        f"keys and values, included in the passes: {plan.keys_and_values / GIB:.2f} GiB; "
        f"in the optimizer step, without passes: {(kept.total + kept.at_step) / GIB:.2f} GiB",
    ]
    if kept.host:
        lines.append(f"offloaded to host memory, for each GPU: {kept.host / GIB:.2f} GiB")
    if plan.largest_micro_batch is not None:
        fits = f"largest micro batch: {plan.largest_micro_batch}" if plan.largest_micro_batch else "nothing fits"
        lines.append(f"in {gpu_memory_gib:g} GiB: {fits}")
    lines += _zero2_advice(plan, config, gpu_memory_gib)
    lines += _left_out(config)
    return "\n".join(lines) + "\n"


def _left_out(config: Config) -> list[str]:
    """What the plan does not count."""
    lines = ["Not included: the device's context (about 1 GiB), the workspace of kernels, fragmentation."]
    if objective_of(config).samples:
        lines.append(
            f"Nor the rollouts of objective={config.objective.kind}, which come before the passes: keys and values of "
            f"training.batch_size_eval={config.training.batch_size_eval} completions. Nor noise in thoughts and "
            "values, in rollouts and passes; nor the copy of the value projections in host memory that "
            "grpo.exploration=svp keeps."
        )
    return lines


def _zero2_advice(plan: MemoryPlan, config: Config, gpu_memory_gib: float | None) -> list[str]:
    """For a plan under ZeRO-3: what ZeRO-2 needs, and whether to take it; no lines for other plans."""
    if plan.total_zero2 is None:
        return []
    zero = read_engine_file(config)["zero_optimization"]
    option = "zero2_offload" if offloads(zero, "offload_optimizer") else "zero2"
    needs = plan.total_zero2 / GIB
    if plan.total_zero2 > plan.total:
        return [f"deepspeed={option} needs more: {needs:.2f} GiB at the peak"]
    if gpu_memory_gib is not None and needs > gpu_memory_gib:
        return [f"deepspeed={option} needs {needs:.2f} GiB at the peak, which does not fit either"]
    return [
        f"deepspeed={option} needs less: {needs:.2f} GiB at the peak. Under ZeRO-3 each GPU has all weights while it "
        "computes, and its share of them in addition (docs/scaling.md)"
    ]
