"""The keys of ``objective=lotus``, and what it needs of the other groups."""

from typing import Annotated

from pydantic import Field

from coconut_ds.methods import METHODS
from coconut_ds.settings.model import MethodConfig
from coconut_ds.settings.schema import Group
from coconut_ds.settings.training import TrainingConfig


class LotusConfig(Group):
    """How thoughts learn the tokens of the steps that they replace (objective=lotus)."""

    step_weight: Annotated[float, Field(ge=0, strict=True)] = 0.05
    """Weight of the cross entropy of the steps' tokens (the paper's λ)."""
    in_loop: bool = False
    """false: all blocks of thoughts are read after the last pass. true: block k (from 1) is read after pass k."""
    flat: bool = False
    """false: step k has the places of block k, and is cut to c_thought tokens. true: the tokens of all steps are packed
    from the first thought on, without gaps."""


def lotus_problems(lotus: LotusConfig, method: MethodConfig, training: TrainingConfig) -> list[str]:
    """Why ``objective=lotus`` cannot be trained with these settings, and what to set instead."""
    name = "objective=lotus"
    kind = METHODS[method.kind]
    if not kind.has_latents or kind.pauses:
        return [
            f"{name} trains thoughts to predict the steps that they replace, but method={method.kind} has no thoughts; "
            "set method=coconut"
        ]
    problems = [
        f"{name} needs thoughts, but training.{key}=0; set training.{key} to {example}"
        for key, example in (("c_thought", "13 (GPT-2) or 25 (Llama)"), ("max_latent_stage", "6"))
        if not getattr(training, key)
    ]
    if not lotus.in_loop:
        return problems
    if lotus.flat:
        problems.append(
            "lotus.in_loop=true reads each block after a pass of its own, but with lotus.flat=true the steps have no "
            "blocks; set one of them to false"
        )
    if method.thinking != "looped":
        problems.append(
            f"lotus.in_loop=true reads thoughts after several passes, but method.thinking={method.thinking}; set "
            "method.thinking=looped or lotus.in_loop=false"
        )
    elif method.iterations is not None and method.iterations < training.max_latent_stage:
        problems.append(
            f"lotus.in_loop=true reads block k after pass k, but method.iterations={method.iterations} is below "
            f"training.max_latent_stage={training.max_latent_stage}; set method.iterations=null (one for each block)"
        )
    return problems
