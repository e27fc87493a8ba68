"""Labels for kinds of intervention, controls and measures, which probing calls by short names."""

from typing import Literal

from coconut_ds.probing.intervene import SAME_ANSWER
from coconut_ds.probing.interventions import Kind

CHANGE = "Change in log-probability of the original answer (nats)"
ARMS = {
    SAME_ANSWER: "control: thought {thought} of problems with the same answer",
    "token before": "control: token before the thoughts",
    "pause": "control: model with pauses",
}
"""Label of each control that is not the same change of another thought."""

STATE_SOURCES = {
    "patch": "States of the other problem, the donor",
    SAME_ANSWER: "Control: states of a problem with the same answer",
    "random": "Control: random changes of the same size",
}
"""Label of each source of states in a patching."""
LATER: dict[str, Literal["recomputed", "kept"]] = {
    "recomputed after the change": "recomputed",
    "kept from the original run": "kept",
}
"""What happens to the thoughts after a changed one, by label."""
KINDS = {
    Kind.PATCH: "another problem's thought",
    Kind.ZERO: "zero vector",
    Kind.MEAN: "mean over other problems",
    Kind.NOISE: "noise added",
    Kind.RANDOM: "random direction",
    Kind.TOKEN: "token embedding",
    Kind.SCALE: "scaled",
    Kind.SWAP: "swapped with another thought",
    Kind.REPEAT: "fed twice",
    Kind.DROP: "removed",
}
"""Label of each kind of intervention."""


def words_of(name: str) -> str:
    """The label for the name of an ``Effect``, for example for ``patch, same answer``."""
    kind = next((one for one in Kind if name == one or name.startswith((f"{one} ", f"{one},"))), None)
    return name if kind is None else f"{KINDS[kind]}{name[len(kind) :]}"
