"""What the model's head predicts about each hop of one graph problem, at the states that become its thoughts."""

from coconut_ds.data.hops import HopReader
from coconut_ds.data.problem import Problem
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.evaluation.hop_scores import HopMeasure, HopValue
from coconut_ds.parts import Parts, in_parts
from coconut_ds.reasoner import Reasoner


@in_parts
def hops_of(reasoner: Reasoner, problem: Problem, n_thoughts: int | None = None) -> Parts[list[HopValue]]:
    """The values of each hop of a problem.

    Args:
        reasoner: the model.
        problem: a problem with a graph.
        n_thoughts: number of thoughts or pauses; None: the checkpoint's number.

    Returns:
        One value for each hop, nearest first; empty if the model has no states that become thoughts one after the
        other.
    """
    yield None
    card = reasoner.card
    reader = HopReader(reasoner.backbone.tokenizer, card.text_format)
    measure = HopMeasure(
        *(reasoner.prompter, reader, max(card.c_thought, 1), 1, reasoner.context_length),
        graphs_only=True,
        ranks=Ranks(device=reasoner.loop.device),
    )
    return measure.values(reasoner.loop, [problem], reasoner.thoughts(n_thoughts))
