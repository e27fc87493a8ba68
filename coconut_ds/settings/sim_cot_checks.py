"""Combinations with the objectives ``sim_cot`` and ``sim_cot_codi`` that cannot work."""

from coconut_ds.methods import METHODS
from coconut_ds.settings.model import MethodConfig
from coconut_ds.settings.objective import ObjectiveConfig
from coconut_ds.settings.training import TrainingConfig

KINDS = ("sim_cot", "sim_cot_codi")
"""The objectives that read the group ``objective.sim_cot``."""


def sim_cot_problems(objective: ObjectiveConfig, method: MethodConfig, training: TrainingConfig) -> list[str]:
    """What is wrong with the settings of SIM-CoT, as sentences that say what to set; often nothing."""
    where, settings = f"objective.kind={objective.kind}", objective.sim_cot
    if objective.kind not in KINDS:
        return []
    kind = METHODS[method.kind]
    if not kind.has_latents or kind.pauses:
        return [
            f"{where} decodes steps from thoughts, and method.kind={method.kind} has no thoughts; set method=coconut, "
            "or objective=likelihood"
        ]
    problems = []
    for key in ("c_thought", "max_latent_stage"):
        if getattr(training, key) == 0:
            problems.append(
                f"{where} decodes steps from thoughts, and with training.{key}=0 there are none; set training.{key} "
                "to 1 or more, or objective=likelihood"
            )
    if method.thinking == "jacobi":
        problems.append(
            f"{where} decodes the vectors that thoughts feed back one after the other, which method.thinking=jacobi "
            "does not compute; set method.thinking=sequential, or objective=likelihood"
        )
    last = training.max_latent_stage + 1 if kind.has_curriculum else 0
    if settings.from_stage > last:
        reason = f"the last stage is {last}" if kind.has_curriculum else f"method.kind={method.kind} has only stage 0"
        problems.append(
            f"objective.sim_cot.from_stage={settings.from_stage}: {reason}, so the decoder would never learn; set "
            f"objective.sim_cot.from_stage to at most {last}"
        )
    return problems
