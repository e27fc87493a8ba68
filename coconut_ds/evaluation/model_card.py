"""Adds the scores of an evaluation to the model card (``README.md``) of the checkpoint."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coconut_ds.errors import CheckpointError
from coconut_ds.evaluation.identity import problems_identity
from coconut_ds.evaluation.job import EvaluationJob
from coconut_ds.files import released_checkpoints
from coconut_ds.hub import cache_of
from coconut_ds.model.card import CARD
from coconut_ds.model.readme import Score, record_scores
from coconut_ds.scoring.exact import Exact

HASH_CHARACTERS = 8
"""Length of the hash of the problems in a model card."""


def checkpoint_with_card(path: str | Path | None) -> Path | None:
    """The folder of a checkpoint whose model card may be extended.

    None for models of other projects, and for what the user has only received: downloads in the hub's cache, and the
    checkpoints that come with this project, whose files git tracks or pip has installed.
    """
    folder = None if path is None else Path(path)
    if folder is None or not (folder / CARD).is_file():
        return None
    place = folder.resolve()
    is_received = cache_of(place) is not None or place.is_relative_to(released_checkpoints().resolve())
    return None if is_received else folder


def add_to_model_card(job: EvaluationJob, scores: Sequence[Mapping[str, Any]]) -> None:
    """Adds the accuracies of an evaluation to the model card of its checkpoint.

    If the card cannot be changed, as on a read-only disk, it says so and goes on: the results are stored anyway.

    Args:
        job: the evaluation.
        scores: the content of ``scores.json`` for each thought budget.
    """
    if job.checkpoint is None or scores[0]["accuracy"] is None:
        return
    problems = problems_identity(job.problems)["data.problems"][:HASH_CHARACTERS]
    found = [_score(job, number, one, problems) for number, one in enumerate(scores)]
    try:
        record_scores(job.checkpoint, job.reasoner.card, found)
    except CheckpointError as error:
        sys.stderr.write(f"note: {error}\n")


def _score(job: EvaluationJob, number: int, scores: Mapping[str, Any], problems: str) -> Score:
    """The score of a thought budget. ``problems``: the hash of the problems."""
    sampling, thoughts = job.writing.sampling, job.budgets[number].thoughts
    drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    is_drawn = bool(sampling.temperature) or job.writing.noise.kind != "none"
    settings: dict[str, Any] = {
        "decoding": "sampled" if sampling.temperature else "greedy",
        **(drawn if sampling.temperature else {}),
        **job.writing.noise.shown,
        "samples": job.samples,
        "seed": sampling.seed if is_drawn else job.data_seed,
        "scoring": job.scoring.name,
        "answers": job.scoring.answers if isinstance(job.scoring, Exact) else None,
        "precision": job.reasoner.precision,
        "min_thoughts": thoughts.least,
        "max_thoughts": thoughts.most,
        "force_text_after": thoughts.force_text_after,
        # Files of the same name may have different problems, and so have generators with other settings.
        "problems_sha256": problems,
    }
    return Score(
        job.data_name,
        job.split,
        scores["accuracy"],
        (scores["accuracy_95"][0], scores["accuracy_95"][1]),
        scores["scored"],
        scores["num_thoughts"] + scores["num_pauses"],
        {name: value for name, value in settings.items() if value is not None},
    )
