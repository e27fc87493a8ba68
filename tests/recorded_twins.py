"""The slow twins as an implementation that is compared with recorded numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import slow_codi
import slow_lotus
import slow_sim_cot
from recorded_cases import Case
from recorded_objectives import Modules, Prompt, Recording
from slow_thoughts import greedy, slow_likelihood, think
from torch import Tensor, nn


@dataclass(frozen=True)
class PreparedTwin:
    """See ``comparing_objectives.Prepared``."""

    parameters: Mapping[str, nn.Parameter]
    parts: Callable[[], dict[str, Tensor]]


class Twins:
    """See ``comparing_objectives.Implementation``."""

    def offers(self, case: Case) -> bool:
        return True

    def prepare(self, case: Case) -> PreparedTwin:
        modules = case.modules()
        parts = PARTS[case.recording.objective]
        return PreparedTwin(modules.trained(*case.prefixes), lambda: parts(case, modules))

    def tokens(self, recording: Recording, prompt: Prompt) -> list[int]:
        model, row, limit, eos = recording.model(), prompt.row, prompt.max_new_tokens, recording.ids["eos"]
        if recording.objective == "lotus":
            return slow_lotus.slow_lotus_tokens(model, row, lotus_options(recording), limit, eos)
        if recording.objective == "sim_cot_on_coconut":
            return greedy(model, think(model, row)[0], limit, eos)
        return slow_codi.slow_codi_tokens(model, row, recording.projection(), limit, eos, recording.ids["eot"])

    def readout(self, recording: Recording, prompt: Prompt) -> list[int]:
        return slow_lotus.slow_readout(recording.model(), prompt.row, lotus_options(recording))


def lotus_options(recording: Recording) -> slow_lotus.LotusOptions:
    """How LOTUS's recorded answers were made."""
    return slow_lotus.LotusOptions(block=10, loops=recording.expected["generation"][0]["n_looped_iters"])


def codi_parts(case: Case, modules: Modules) -> dict[str, Tensor]:
    return slow_codi.slow_codi(modules.model, case.codi_rows(), modules.projection, case.codi_options())


def sim_cot_on_codi_parts(case: Case, modules: Modules) -> dict[str, Tensor]:
    targets = case.step_targets()
    vectors = slow_sim_cot.on_codi(modules.model, [row.student for row in case.codi_rows()], modules.projection)
    step = slow_sim_cot.slow_steps(
        modules.model,
        modules.decoder,
        vectors,
        targets,
        slow_sim_cot.codi_weights(targets),
        into_decoder=modules.into_decoder,
    )
    return {**codi_parts(case, modules), "step": case.settings["explain_loss_factor"] * step}


def sim_cot_on_coconut_parts(case: Case, modules: Modules) -> dict[str, Tensor]:
    rows, targets = case.rows(), case.step_targets()
    step = slow_sim_cot.slow_steps(
        modules.model,
        modules.decoder,
        slow_sim_cot.on_coconut(modules.model, rows, case.settings["c_thought"]),
        targets,
        slow_sim_cot.coconut_weights(targets, case.settings["loss_level"] == "token_level"),
        first_position=1,
    )
    return {"answer": slow_likelihood(modules.model, rows), "step": step}


def lotus_parts(case: Case, modules: Modules) -> dict[str, Tensor]:
    rows, options, settings = case.lotus_rows(), case.lotus_options(), case.settings
    model, decoder = modules.model, modules.decoder or modules.model
    parts = slow_lotus.slow_lotus(model, rows, options)
    if settings["codi_loss_weight"]:
        distill = slow_lotus.slow_distillation(model, modules.teacher, case.lotus_pairs(), options)
        parts["distill"] = settings["codi_loss_weight"] * distill
    if settings["inter_answer_loss_weight"]:
        if settings.get("ia_loss_after_loop"):
            blocks = slow_lotus.slow_reading_after_loop(model, decoder, rows, options, case.lotus_texts())
        else:
            # A separate decoder has no cache of the question.
            alone = settings.get("ia_no_prefix") or decoder is not model
            blocks = slow_lotus.slow_block_reading(model, decoder, rows, options, with_context=not alone)
        parts["blocks"] = settings["inter_answer_loss_weight"] * blocks
    return parts


PARTS = {
    "codi": codi_parts,
    "sim_cot_on_codi": sim_cot_on_codi_parts,
    "sim_cot_on_coconut": sim_cot_on_coconut_parts,
    "lotus": lotus_parts,
}
"""For each objective, the parts of a case's loss."""
