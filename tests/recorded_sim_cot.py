"""The objectives ``sim_cot`` and ``sim_cot_codi`` as an implementation that is compared with recorded numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from recorded_cases import Case
from recorded_codi import RecordedCodi, feed_of
from recorded_objectives import Modules, Prompt, Recording
from torch import Tensor, nn

from coconut_ds.generation.batch import generate
from coconut_ds.generation.requests import Request
from coconut_ds.methods.layout import Layout
from coconut_ds.model.collate import Collator, collate
from coconut_ds.model.latent_loop import LatentLoop
from coconut_ds.model.micro_batch import MicroBatch
from coconut_ds.objectives.sim_cot import DECODER, SimCot, SimCotBatch, SimCotOnCodi
from coconut_ds.objectives.step_decoder import StepDecoder
from coconut_ds.objectives.step_targets import StepTargets, collate_steps, group_weights
from coconut_ds.settings.compose import compose_config

NAMES = {"likelihood": "answer", "distillation": "distill"}
"""The parts that the recordings name otherwise."""


@dataclass(frozen=True)
class PreparedSimCot:
    """See ``comparing_objectives.Prepared``."""

    parameters: Mapping[str, nn.Parameter]
    objective: SimCot
    loop: LatentLoop
    batch: SimCotBatch

    def parts(self) -> dict[str, Tensor]:
        names = [NAMES.get(name, name) for name in self.objective.parts]
        return dict(zip(names, self.loop(self.objective.loss, self.batch), strict=True))


class RecordedSimCot:
    """See ``comparing_objectives.Implementation``."""

    def offers(self, case: Case) -> bool:
        return True

    def prepare(self, case: Case) -> PreparedSimCot:
        return on_codi(case) if case.recording.objective == "sim_cot_on_codi" else on_coconut(case)

    def tokens(self, recording: Recording, prompt: Prompt) -> list[int]:
        if recording.objective == "sim_cot_on_codi":
            return RecordedCodi().tokens(recording, prompt)
        request = Request(Layout(*prompt.row), prompt.max_new_tokens)
        return list(generate(LatentLoop(recording.model()), [request], [recording.ids["eos"]])[0].tokens)

    def readout(self, recording: Recording, prompt: Prompt) -> list[int]:
        raise NotImplementedError("not recorded for SIM-CoT")


def on_codi(case: Case) -> PreparedSimCot:
    """A case of SIM-CoT on CODI."""
    base = RecordedCodi().prepare(case)
    modules, settings = case.modules(), base.objective.config.objective
    config = compose_config(
        [
            "objective=sim_cot_codi",
            "method=coconut_no_curriculum",
            f"codi.gamma={settings.codi.gamma}",
            f"codi.teacher_weight={settings.codi.teacher_weight}",
            f"sim_cot.step_factor={case.settings['explain_loss_factor']}",
        ]
    )
    return prepared(case, modules, SimCotOnCodi(config), base.batch)


def on_coconut(case: Case) -> PreparedSimCot:
    """A case of SIM-CoT on Coconut."""
    token_level = case.settings["loss_level"] == "token_level"
    config = compose_config(
        [
            "objective=sim_cot",
            f"c_thought={case.settings['c_thought']}",
            f"sim_cot.step_reduction={'thought' if token_level else 'row'}",
        ]
    )
    layouts = [Layout(*row) for row in case.rows()]
    weight = 1 / sum(layout.num_targets for layout in layouts)
    batch = collate(layouts, [weight] * len(layouts), max(layout.num_thoughts for layout in layouts), 0)
    return prepared(case, case.modules(), SimCot(config), batch)


def prepared(case: Case, modules: Modules, objective: SimCot, base: object) -> PreparedSimCot:
    """The case as one micro batch that is the whole update.

    Args:
        case: the case.
        modules: of the case.
        objective: with the settings of the case.
        base: the batch of the objective to which the steps are added.
    """
    parameters, size = modules.trained(*case.prefixes), modules.model.config.hidden_size
    decoder = StepDecoder(modules.decoder, size, objective.first_position)
    if decoder.projection is not None:
        decoder.projection = modules.into_decoder
    loop = LatentLoop(modules.model, feed=feed_of(modules.projection), auxiliary={DECODER: decoder})
    targets, settings = StepTargets.of(case.step_targets()), objective.config.objective.sim_cot
    rows = len(targets.lengths)
    view = MicroBatch(targets.layouts, [1.0] * rows, 0, int(targets.lengths.sum()), np.arange(rows), 1 / rows)
    weights = settings.step_factor * group_weights(targets.lengths, settings.step_reduction)
    inputs = objective.thinking(base).inputs
    steps = collate_steps(Collator(0), targets.lengths, view, weights, inputs, objective.group_size)
    return PreparedSimCot(parameters, objective, loop, SimCotBatch(base, steps))
