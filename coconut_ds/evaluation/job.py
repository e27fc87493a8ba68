"""One evaluation to run: the model, the problems and all options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coconut_ds.data.hops import HopReader
from coconut_ds.data.problem import Problem
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.evaluation.evaluator import Evaluator, ThoughtBudget
from coconut_ds.evaluation.hop_scores import HopMeasure, HopScore
from coconut_ds.evaluation.identity import evaluation_identity
from coconut_ds.evaluation.paired import PREDICTIONS, SCORES, VOTES
from coconut_ds.generation.prompter import Writing
from coconut_ds.reasoner import Reasoner
from coconut_ds.results import ResultFolder
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring

SWEEP, PICTURE, SAMPLES_PICTURE = "sweep.json", "accuracy.png", "samples.png"
"""Names of further files in the folder of the results."""
SUBFOLDERS = ("[0-9]*_thoughts", "text_after_[0-9]*")
"""Patterns of the folders of a sweep."""


@dataclass(frozen=True)
class EvaluationJob:
    """One evaluation to run: the model, the problems, and all options."""

    reasoner: Reasoner
    problems: list[Problem]
    split: str
    """Name of the split that the problems are from: "test" or "validation"."""
    budgets: list[ThoughtBudget]
    """Thought budgets to evaluate; several make a sweep."""
    names: list[str]
    """Subfolder of the results for each budget; "" for none."""
    writing: Writing
    slots: int
    """Number of problems that the engine processes at the same time."""
    default_out: Path
    """Folder of the results, without the signature that is added to its name."""
    ranks: Ranks
    out: Path | None = None
    """Folder of the results if the user has set one; None: ``default_out`` with the signature."""
    overwrite: bool = False
    """Whether existing results are replaced."""
    again: str = "overwrite=true evaluates again"
    """What to do to evaluate again, for messages about finished results."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All keys of the configuration with which the user asked for the evaluation."""
    scoring: Scoring = EXACT
    """The convention that decides which answers are right."""
    source: str = "problems"
    """Name of the file of the problems, or of their generator, for warnings."""
    data_seed: int | None = None
    """Seed of generated problems, which is also that of sampled answers; None if the problems are read from a file."""
    data_name: str = "problems"
    """Name of the problems in the model card of the checkpoint."""
    samples: int | None = None
    """Number of samples of each problem; None: one answer."""
    checkpoint: Path | None = None
    """The checkpoint, if its model card may be extended by the scores (``model_card.checkpoint_with_card``)."""

    @property
    def is_sweep(self) -> bool:
        """Whether several thought budgets are evaluated."""
        return len(self.budgets) > 1

    def evaluator(self) -> Evaluator:
        """The evaluator that answers the problems."""
        reasoner = self.reasoner
        return Evaluator(
            *(reasoner.prompter, reasoner.card.spec, self.writing, self.slots, reasoner.context_length, self.ranks),
            scoring=self.scoring,
            samples=self.samples,
        )

    def hop_scores(self, budget: ThoughtBudget) -> dict[int, HopScore]:
        """What the states that become thoughts say about the problems with graphs, by hop. All ranks call it.

        Nothing is measured where the model ends thinking by itself, or with noise in the thoughts.
        """
        reasoner, thoughts = self.reasoner, budget.thoughts
        if thoughts.may_end or self.writing.noise.kind != "none":
            return {}
        card = reasoner.card
        reader = HopReader(reasoner.backbone.tokenizer, card.text_format)
        block = max(card.c_thought, 1)
        measure = HopMeasure(
            *(reasoner.prompter, reader, block, self.slots, reasoner.context_length), graphs_only=True, ranks=self.ranks
        )
        return measure.scores(reasoner.loop, self.problems, thoughts)

    def results(self) -> ResultFolder:
        """The folder of the results. Hashes the model's weights, which takes seconds for a large model."""
        identity = evaluation_identity(
            *(self.reasoner, self.problems, self.split, self.budgets, self.writing, self.settings, self.scoring),
            samples=self.samples,
        )
        out = self.out or self.default_out.with_name(f"{self.default_out.name}-{identity.signature}")
        names = (
            PREDICTIONS,
            VOTES,
            PICTURE,
            SAMPLES_PICTURE,
            *SUBFOLDERS,
            *((SCORES, SWEEP) if self.is_sweep else (SWEEP, SCORES)),
        )
        return ResultFolder(out, identity, names, self.overwrite)
