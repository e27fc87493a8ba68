"""What the results of evaluations and probes depend on: every ingredient that can change a number, as one flat table.

Not in the table: the batch size, the number of ranks, the model of the device, and versions of libraries. On a CPU in
fp32 none of them changes a token (tests check batch size and ranks). Elsewhere they only change how sums are rounded,
and an evaluation that ran out of memory must be able to continue with smaller batches. ``scores.json`` records them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from coconut_ds.data.chat import digest_template
from coconut_ds.data.problem import Problem
from coconut_ds.data.tokens import digest_tokenizer
from coconut_ds.evaluation.evaluator import ThoughtBudget
from coconut_ds.generation.prompter import Writing
from coconut_ds.model.digest import digest_state
from coconut_ds.reasoner import Reasoner
from coconut_ds.results import Identity
from coconut_ds.runs.code import code_identity
from coconut_ds.runs.identity import VOLATILE, flattened
from coconut_ds.scoring.base import Scoring
from coconut_ds.scoring.exact import Exact


def evaluation_identity(
    reasoner: Reasoner,
    problems: Sequence[Problem],
    split: str,
    budgets: Sequence[ThoughtBudget],
    writing: Writing,
    settings: Mapping[str, Any],
    scoring: Scoring,
    samples: int | None = None,
) -> Identity:
    """The identity of an evaluation; the arguments are the fields of ``EvaluationJob``."""
    written = asdict(writing)
    # Evaluations without noise and samples have the same identity as in versions that had neither.
    del written["noise"]
    drawn = writing.noise.shown | ({} if samples is None else {"samples": samples})
    values: dict[str, Any] = {
        **reasoner_identity(reasoner),
        "data.split": split,
        **scoring_identity(scoring),
        **problems_identity(problems),
        "budgets": [asdict(budget) for budget in budgets],
        **written.pop("sampling"),
        **written,
        **drawn,
        **flattened({"code": code_identity()}),
    }
    return Identity(values, flattened(settings))


def scoring_identity(scoring: Scoring) -> dict[str, Any]:
    """The convention, under the keys that it has in the configuration. ``exact`` is named by ``data.answers``."""
    return {"data.answers": scoring.answers} if isinstance(scoring, Exact) else {"data.scoring": scoring.name}


def reasoner_identity(reasoner: Reasoner, key: str = "checkpoint") -> dict[str, Any]:
    """Contents of a checkpoint (weights, architecture, tokenizer, card), and how it computes."""
    backbone, card = reasoner.backbone, reasoner.card.as_dict()
    model = backbone.model
    # Where a checkpoint comes from changes no number.
    del card["provenance"]
    architecture = {name: value for name, value in model.config.to_dict().items() if name not in VOLATILE}
    parts = {
        "weights": digest_state(backbone.weights()),
        "architecture": _digest(architecture),
        "tokenizer": digest_tokenizer(backbone.tokenizer, backbone.eos_ids[1:]),
        "eos_ids": sorted(reasoner.prompter.eos_ids),
        **card,
        **({"chat_template": digest_template(backbone.tokenizer)} if reasoner.card.chat_template else {}),
        "precision": reasoner.precision,
        "device": model.device.type,
        "attn_implementation": model.config._attn_implementation,
    }
    return flattened({key: parts})


def problems_identity(problems: Sequence[Problem], key: str = "data") -> dict[str, Any]:
    """A hash of the contents of problems, and their number."""
    return {f"{key}.problems": _digest([one.as_dict() for one in problems]), f"{key}.num_problems": len(problems)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, default=repr, sort_keys=True).encode()).hexdigest()
