"""Settings of ``training.advance_metric`` that cannot work, or would have no effect."""

from coconut_ds.methods import METHODS
from coconut_ds.settings.model import MethodConfig
from coconut_ds.settings.training import TrainingConfig


def advance_problems(method: MethodConfig, training: TrainingConfig) -> list[str]:
    """What is wrong, as sentences that say what to set; often nothing."""
    metric, kind = training.advance_metric, METHODS[method.kind]
    if metric == "accuracy":
        return []
    where, remedy = f"training.advance_metric={metric}", "set training.advance_metric=accuracy"
    if training.advance != "accuracy" or training.stage_switches is not None:
        found = "training.advance=epochs" if training.stage_switches is None else "training.stage_switches"
        return [
            f"{where} has no effect with {found}, which says when stages end; {remedy}, or training.advance=accuracy "
            "without training.stage_switches"
        ]
    reason = ""
    if not kind.has_latents or not training.c_thought or not training.max_latent_stage:
        reason = f"method.kind={kind.name} with these settings has neither thoughts nor pause tokens"
    elif kind.starts_thinking:
        reason = f"with method.kind={kind.name} the model decides when to think"
    elif method.thinking != "sequential" and not kind.pauses:
        reason = f"method.thinking={method.thinking} does not compute them one after the other"
    return [f"{where} reads the states that become thoughts, but {reason}; {remedy}"] if reason else []
