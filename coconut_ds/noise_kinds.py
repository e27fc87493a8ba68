"""The kinds of noise in thoughts, and which sizes fit them. Imports nothing, so that a model needs no settings."""

from typing import Literal, get_args

ThoughtNoiseKind = Literal["none", "gaussian", "dropout"]
MOST_SIGMA = 1000.0
"""Largest standard deviation. Far larger ones overflow in fp32."""


def noise_fault(kind: str, sigma: float | None, dropout: float | None) -> str | None:
    """What is wrong with the three keys, beginning with the name of one of them; None if nothing is."""
    kinds = get_args(ThoughtNoiseKind)
    if kind not in kinds:
        return f"thought_noise={kind}: expected one of {', '.join(kinds)}"
    if sigma is not None and not 0 <= sigma <= MOST_SIGMA:
        return f"thought_sigma={sigma}: expected 0 to {MOST_SIGMA:g}"
    if dropout is not None and not 0 <= dropout < 1:
        return f"thought_dropout={dropout}: expected 0 or more, and less than 1"
    for owner, key, value, example in (
        ("gaussian", "thought_sigma", sigma, "1.0"),
        ("dropout", "thought_dropout", dropout, "0.2"),
    ):
        if kind == owner and value is None:
            return f"thought_noise={kind}: needs {key}; set it, for example to {example}"
        if kind != owner and value is not None:
            return f"{key}={value}: is read only with thought_noise={owner}; set that too, or leave {key} out"
    return None
