"""Combinations with the objective ``grpo`` that cannot work."""

from coconut_ds.methods import METHODS
from coconut_ds.settings.model import MethodConfig
from coconut_ds.settings.objective import GrpoConfig, ObjectiveConfig
from coconut_ds.settings.training import TrainingConfig


def grpo_problems(objective: ObjectiveConfig, method: MethodConfig, training: TrainingConfig) -> list[str]:
    """What is wrong with the settings of GRPO, as sentences that say what to set; often nothing."""
    where, settings = f"objective.kind={objective.kind}", objective.grpo
    if objective.kind != "grpo":
        changed = [name for name, value in settings if value != getattr(GrpoConfig(), name)]
        return [
            f"objective.grpo.{name}={getattr(settings, name)} has no effect with {where}; set objective=grpo"
            for name in changed
        ]
    kind = METHODS[method.kind]
    if kind.starts_thinking:
        return [
            f"{where} samples completions of a prompt that contains all thoughts, but with method.kind={method.kind} "
            "the model decides when to think; set method=coconut"
        ]
    problems = []
    thinks, counts = kind.has_latents and not kind.pauses, (training.c_thought, training.max_latent_stage)
    if settings.exploration != "none" and not (thinks and all(counts)):
        found = f"method.kind={method.kind} has no thoughts"
        if thinks:
            found = "with training.c_thought={} and max_latent_stage={} there are none".format(*counts)
        problems.append(
            f"objective.grpo.exploration={settings.exploration} explores in thoughts, and {found}; set "
            "objective.grpo.exploration=none, or a method with thoughts such as method=coconut"
        )
    if settings.exploration == "svp" and training.activation_checkpointing:
        problems.append(
            "objective.grpo.exploration=svp puts noise into single passes, which "
            "training.activation_checkpointing=true would repeat without it; set it to false"
        )
    if training.loss_reduction != "token":
        problems.append(
            f"training.loss_reduction={training.loss_reduction} has no effect with {where}, where "
            "objective.grpo.loss_type says how losses are reduced; set training.loss_reduction=token"
        )
    for key in ("uniform_prob", "replay_prob"):
        if getattr(training, key):
            problems.append(
                f"training.{key}={getattr(training, key)} mixes stages, but with {where} all problems are at the last "
                f"stage; set training.{key}=0"
            )
    return problems
