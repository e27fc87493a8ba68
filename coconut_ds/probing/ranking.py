"""How well scores rank the nodes of a graph: whether the best one is in the frontier, and average precision.

Nodes with equal scores have no order; both measures are then the mean over all orders. So equal scores for all nodes
give what guessing gives.
"""

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]
Bools = NDArray[numpy.bool_]


def top_is_relevant(scores: Floats, relevant: Bools) -> float:
    """Probability that the node with the highest score is relevant."""
    return float(relevant[scores == scores.max()].mean())


def average_precision(scores: Floats, relevant: Bools) -> float:
    """Average precision: the mean, over all relevant nodes, of the share of relevant nodes down to that one.

    Args:
        scores: [nodes] the score of each node, at least one.
        relevant: [nodes] which nodes are relevant, at least one.
    """
    _, groups = numpy.unique(-scores, return_inverse=True)
    sizes = numpy.bincount(groups)
    hits = numpy.bincount(groups, weights=relevant)
    # For each place in the ranking: the nodes and the relevant nodes in the groups above, and its place in its group.
    size, hit = sizes[numpy.sort(groups)], hits[numpy.sort(groups)]
    above = numpy.repeat(numpy.cumsum(sizes) - sizes, sizes)
    hits_above = numpy.repeat(numpy.cumsum(hits) - hits, sizes)
    within = numpy.arange(len(scores)) - above
    # If the node at this place is relevant, so is each of the group's nodes before it with this probability.
    others = numpy.where(size > 1, (hit - 1) / numpy.maximum(size - 1, 1), 0.0)
    precision = (hits_above + 1 + within * others) / (above + within + 1)
    return float((hit / size * precision).sum() / relevant.sum())
