"""Combinations with an objective that cannot work, and settings that would have no effect."""

from coconut_ds.methods import METHODS
from coconut_ds.methods.base import Method
from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.model import MethodConfig
from coconut_ds.settings.objective import NOISE_KEYS, READERS, GrpoConfig, ObjectiveConfig
from coconut_ds.settings.training import TrainingConfig


def objective_problems(
    objective: ObjectiveConfig, method: MethodConfig, training: TrainingConfig, data: DataConfig
) -> list[str]:
    """What is wrong, as sentences that say what to set; often nothing."""
    problems = [*_unread(objective), *_feed_problems(objective, method, training)]
    if objective.reads("codi"):
        problems += _codi_problems(objective, method, data)
    if objective.reads("lotus"):
        problems += _lotus_problems(objective, method, training)
    if objective.reads("sim_cot"):
        problems += _sim_cot_problems(objective, method, training)
    if objective.reads("supervised_thoughts"):
        problems += _supervised_problems(method, training)
    if objective.reads("grpo"):
        problems += _grpo_problems(objective, method, training, data)
    return problems


def _unread(objective: ObjectiveConfig) -> list[str]:
    """Keys that were set although nothing reads them."""
    problems = []
    for group, readers in READERS.items():
        own, default = (getattr(one, group).model_dump() for one in (objective, ObjectiveConfig()))
        if objective.reads(group) or own == default:
            continue
        changed = [key for key, value in own.items() if value != default[key]]
        found, usual = (
            " ".join(f"objective.{group}.{key}={values[key]}" for key in changed) for values in (own, default)
        )
        problems.append(
            f"{found}: objective.kind={objective.kind} does not read this; set objective="
            f"{' or objective='.join(readers)}, or the default, {usual}"
        )
    if objective.feed == "identity" and objective.feed_width is not None:
        problems.append(
            f"objective.feed_width={objective.feed_width}: objective.feed=identity has no width; set "
            "objective.feed=projection, or objective.feed_width=null"
        )
    return problems


def _feed_problems(objective: ObjectiveConfig, method: MethodConfig, training: TrainingConfig) -> list[str]:
    if objective.feed == "identity" or not (reason := _without_thoughts(method, training)):
        return []
    return [
        f"objective.feed={objective.feed}: {reason}, so no hidden state is fed back; set objective.feed=identity, or a "
        "method with thoughts such as method=coconut"
    ]


def _codi_problems(objective: ObjectiveConfig, method: MethodConfig, data: DataConfig) -> list[str]:
    kind = METHODS[method.kind]
    if objective.kind == "codi" and not kind.has_latents:
        return [
            "objective.kind=codi: a sequence with thoughts learns from one with written steps, but "
            f"method.kind={kind.name} has neither thoughts nor pauses; set method=coconut_no_curriculum, or "
            "objective=likelihood"
        ]
    if data.text_format.one_token and kind.has_curriculum:
        return [
            f"objective.kind={objective.kind} compares states at the answer, but with data.format={data.format} the "
            f"sequences of method.kind={kind.name} end before the answer until the last stage; set "
            "method=coconut_no_curriculum, or objective=likelihood"
        ]
    return []


def _lotus_problems(objective: ObjectiveConfig, method: MethodConfig, training: TrainingConfig) -> list[str]:
    lotus, problems = objective.lotus, []
    if reason := _without_thoughts(method, training):
        return [
            f"objective.kind=lotus: thoughts learn to predict the steps that they replace, but {reason}; set "
            "method=coconut, training.c_thought=13 (GPT-2) or 25 (Llama 3) and training.max_latent_stage=6, or "
            "objective=likelihood"
        ]
    if not lotus.in_loop:
        return []
    if lotus.flat:
        problems.append(
            "lotus.in_loop=true reads each block of thoughts after a round of its own, but with lotus.flat=true steps "
            "do not belong to blocks; set one of them to false"
        )
    iterations, stages = method.iterations, training.max_latent_stage
    if method.thinking != "looped":
        problems.append(
            "lotus.in_loop=true reads thoughts after each round of method.thinking=looped, found "
            f"{method.thinking}; set method.thinking=looped, or lotus.in_loop=false"
        )
    elif iterations is not None and iterations < stages:
        problems.append(
            f"lotus.in_loop=true reads block k after round k, but method.iterations={iterations} is below "
            f"training.max_latent_stage={stages}; set method.iterations=null, one round for each block"
        )
    return problems


def _sim_cot_problems(objective: ObjectiveConfig, method: MethodConfig, training: TrainingConfig) -> list[str]:
    where, kind = f"objective.kind={objective.kind}", METHODS[method.kind]
    if reason := _without_thoughts(method, training):
        return [f"{where} decodes steps from thoughts, but {reason}; set method=coconut, or objective=likelihood"]
    problems = []
    if method.thinking != "sequential":
        problems.append(
            f"{where} decodes the vectors that thoughts feed back one after the other, which method.thinking="
            f"{method.thinking} does not compute; set method.thinking=sequential, or objective=likelihood"
        )
    last = _last_stage(training, kind) if kind.has_curriculum else 0
    if objective.sim_cot.from_stage > last:
        reason = f"method.kind={kind.name} has only stage 0"
        if kind.has_curriculum:
            within = "" if last > training.max_latent_stage else f"in training.num_epochs={training.num_epochs} epochs "
            reason = f"{within}no stage is later than {last}"
        problems.append(
            f"objective.sim_cot.from_stage={objective.sim_cot.from_stage}: {reason}, so the decoder would never learn; "
            f"set objective.sim_cot.from_stage to at most {last}"
        )
    return problems


def _supervised_problems(method: MethodConfig, training: TrainingConfig) -> list[str]:
    where, kind = "objective.kind=supervised_thoughts", METHODS[method.kind]
    if reason := _without_latents(method, training):
        remedy = "set them to 1 or more"
        if not kind.has_latents:
            remedy = "set method=coconut, or method=pause_as_thought for pause tokens"
        return [
            f"{where}: the states that become thoughts learn to predict nodes, but {reason}; {remedy}, or "
            "objective=likelihood"
        ]
    if kind.starts_thinking:
        return [
            f"{where}: thought i learns what step i leads to, but with method.kind={method.kind} thoughts replace the "
            "last steps; set method=coconut"
        ]
    if method.thinking != "sequential" and not kind.pauses:
        return [
            f"{where} reads the states that become thoughts one after the other, which method.thinking="
            f"{method.thinking} does not compute; set method.thinking=sequential, or objective=lotus, which reads the "
            "states of looped thinking"
        ]
    return []


def _last_stage(training: TrainingConfig, method: Method) -> int:
    """The last stage that a run can reach, whatever its problems and its accuracy."""
    last, epochs = training.max_latent_stage + 1, training.num_epochs
    if training.stage_switches is not None:
        return min(last, sum(switch < epochs for switch in training.stage_switches))
    least = training.min_epochs_per_stage
    if training.advance == "epochs":
        least = method.epochs_per_stage or training.epochs_per_stage
    # ``uniform_prob`` draws stages up to the number of a problem's steps, which is not known here.
    return last if training.uniform_prob else min(last, (epochs - 1) // least)


def _grpo_problems(
    objective: ObjectiveConfig, method: MethodConfig, training: TrainingConfig, data: DataConfig
) -> list[str]:
    where, settings = f"objective.kind={objective.kind}", objective.grpo
    if METHODS[method.kind].starts_thinking:
        return [
            f"{where} samples completions of a prompt that contains all thoughts, but with method.kind={method.kind} "
            "the model decides when to think; set method=coconut"
        ]
    problems = [*_unread_noise(settings), *_unread_clipping(settings), *_unread_stages(where, training)]
    if data.text_format.one_token and settings.max_completion_length is not None:
        problems.append(
            f"objective.grpo.max_completion_length={settings.max_completion_length} has no effect with data.format="
            f"{data.format}, whose answers are one token; set objective.grpo.max_completion_length=null"
        )
    if settings.exploration != "none" and (reason := _without_thoughts(method, training)):
        problems.append(
            f"objective.grpo.exploration={settings.exploration} explores in thoughts, and {reason}; set "
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
    return problems


def _unread_noise(settings: GrpoConfig) -> list[str]:
    """Keys of the noise that were set although ``exploration`` is another kind."""
    problems = []
    for kind, keys in NOISE_KEYS.items():
        for key in keys if settings.exploration != kind else ():
            found, default = getattr(settings, key), getattr(GrpoConfig(), key)
            if found != default:
                problems.append(
                    f"objective.grpo.{key}={found}: objective.grpo.exploration={settings.exploration} does not read "
                    f"this; set objective.grpo.exploration={kind}, or the default, objective.grpo.{key}={default}"
                )
    return problems


def _unread_clipping(settings: GrpoConfig) -> list[str]:
    """Keys of the clipping that were set although all ratios are 1."""
    if settings.num_iterations * settings.steps_per_generation > 1:
        return []
    return [
        f"objective.grpo.{key}={found} has no effect with one update for each sampling, where all ratios are 1; set "
        f"objective.grpo.num_iterations=2 or objective.grpo.steps_per_generation=2, or the default, "
        f"objective.grpo.{key}={'null' if default is None else default}"
        for key in ("epsilon", "epsilon_high")
        if (found := getattr(settings, key)) != (default := getattr(GrpoConfig(), key))
    ]


def _unread_stages(where: str, training: TrainingConfig) -> list[str]:
    """Keys of the curriculum that would have no effect, because all problems are at the last stage."""
    last = f"but with {where} all problems are at the last stage"
    problems = [
        f"training.{key}={getattr(training, key)} mixes stages, {last}; set training.{key}=0"
        for key in ("uniform_prob", "replay_prob")
        if getattr(training, key)
    ]
    if training.advance == "accuracy":
        problems.append(f"training.advance=accuracy ends stages, {last}; set training.advance=epochs")
    if training.stage_switches is not None:
        switches = list(training.stage_switches)
        problems.append(f"training.stage_switches={switches} begins stages, {last}; set training.stage_switches=null")
    return problems


def _without_thoughts(method: MethodConfig, training: TrainingConfig) -> str:
    """Why sequences have no thoughts; empty if they have some."""
    kind = METHODS[method.kind]
    return f"method.kind={kind.name} has no thoughts" if kind.pauses else _without_latents(method, training)


def _without_latents(method: MethodConfig, training: TrainingConfig) -> str:
    """Why sequences have neither thoughts nor pause tokens; empty if they have some."""
    kind = METHODS[method.kind]
    if not kind.has_latents:
        return f"method.kind={kind.name} has no thoughts"
    zero = [f"training.{key}=0" for key in ("c_thought", "max_latent_stage") if not getattr(training, key)]
    return f"with {' and '.join(zero)} there are none" if zero else ""
