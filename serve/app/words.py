"""Labels for the kinds of intervention, which probing calls by short names."""

from coconut_ds.probing.interventions import Kind

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
