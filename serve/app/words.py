"""Words for what probing calls by short names."""

from coconut_ds.probing.interventions import Kind

KINDS = {
    Kind.PATCH: "another problem's thought",
    Kind.ZERO: "zero",
    Kind.MEAN: "mean of other problems",
    Kind.NOISE: "noise added",
    Kind.RANDOM: "random direction",
    Kind.TOKEN: "a token's embedding",
    Kind.SCALE: "scaled",
    Kind.SWAP: "swapped with another",
    Kind.REPEAT: "fed twice",
    Kind.DROP: "left out",
}
"""Words for each kind of change."""


def words_of(name: str) -> str:
    """The words for an effect's name, ``patch, same answer`` say."""
    kind = next((one for one in Kind if name == one or name.startswith((f"{one} ", f"{one},"))), None)
    return name if kind is None else f"{KINDS[kind]}{name[len(kind) :]}"
