"""Compares a row of a sweep with its baseline, seed by seed and problem by problem."""

from dataclasses import dataclass

from coconut_ds.errors import DataError
from coconut_ds.evaluation.paired import compare_predictions
from coconut_ds.evaluation.statistics import paired_t
from coconut_ds.studies.records import Row


@dataclass(frozen=True)
class Against:
    """A row against its baseline, over the seeds that both have finished."""

    baseline: str
    seeds: int
    difference: float
    """Mean difference of the accuracies, from -1 to 1."""
    p_seeds: float | None
    """p-value of the paired t test over seeds; None with fewer than two seeds."""
    p_problems: float | None
    """The largest p-value of McNemar's exact test over seeds; None if predictions are missing, or if the two rows were
    evaluated on different problems."""


def against(row: Row, baseline: Row) -> Against | None:
    """Compares two rows; None if no seed is finished in both."""
    pairs = [(baseline.done[seed], entry) for seed, entry in row.done.items() if seed in baseline.done]
    first = [entry.accuracy or 0.0 for entry, _ in pairs]
    second = [entry.accuracy or 0.0 for _, entry in pairs]
    if not pairs:
        return None
    try:
        largest = max(
            compare_predictions(one.folder / one.evaluation, other.folder / other.evaluation).p_value
            for one, other in pairs
        )
    except DataError:
        largest = None
    difference = sum(second) / len(second) - sum(first) / len(first)
    p_seeds = paired_t(first, second) if len(pairs) > 1 else None
    return Against(baseline.name, len(pairs), difference, p_seeds, largest)
