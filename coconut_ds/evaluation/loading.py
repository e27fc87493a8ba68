"""Loads what the configuration of an evaluation names: the model, the problems, and the numbers of thoughts."""

import sys
from pathlib import Path
from typing import Any

import torch

from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import Source
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.evaluation.evaluator import ThoughtBudget
from coconut_ds.model.card import CARD
from coconut_ds.model.precision import use_tf32
from coconut_ds.reasoner import Reasoner, load_reasoner
from coconut_ds.settings import DataConfig, EvalConfig


def reasoner_of(config: EvalConfig, ranks: Ranks) -> Reasoner:
    """Loads the checkpoint."""
    numbers = config.n_thoughts
    tell_first(use_tf32("tf32=true", config.tf32, config.bf16, ranks.device), ranks)
    # A checkpoint without a card needs a number of thoughts to be loaded. Which number does not matter here, because
    # each budget sets its own.
    has_card = (Path(config.checkpoint) / CARD).is_file()
    return load_reasoner(
        config.checkpoint,
        config.method,
        None if has_card else (max(numbers) if isinstance(numbers, tuple) else numbers),
        model=config.model,
        dtype=torch.bfloat16 if config.bf16 else torch.float32,
        device=ranks.device,
        attn_implementation=config.attn_implementation,
        chat_template=config.data.chat_template,
    )


def budgets_of(config: EvalConfig, reasoner: Reasoner) -> tuple[list[ThoughtBudget], list[str]]:
    """The thought budgets to evaluate, and the name of each one's subfolder."""
    numbers, forced = config.n_thoughts, config.force_text_after
    if isinstance(numbers, tuple):
        pairs: list[tuple[int | None, Any]] = [(number, forced) for number in numbers]
        names = [f"{number}_thoughts" for number in numbers]
    elif isinstance(forced, tuple):
        pairs = [(numbers, most) for most in forced]
        names = [f"text_after_{most}" for most in forced]
    else:
        pairs, names = [(numbers, forced)], [""]
    thoughts = [reasoner.thoughts(*pair, config.min_thoughts, config.max_thoughts) for pair in pairs]
    return [ThoughtBudget(one, reasoner.stage_at(one)) for one in thoughts], names


def problems_of(data: DataConfig, source: Source) -> tuple[list[Problem], str]:
    """The test problems if there are any, else the validation problems; and the name of the split."""
    on_test = data.kind != "file" or data.test_path is not None
    return (source.test(), "test") if on_test else (source.valid(), "validation")


def tell_first(note: str | None, ranks: Ranks) -> None:
    """Rank 0 writes a note to standard error, if there is one."""
    if note is not None and ranks.is_first:
        sys.stderr.write(f"{note}\n")
