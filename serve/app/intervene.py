"""The *Intervene* page: changes a thought and shows the effect on the answer next to controls."""

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any, Literal

import gradio as gr

from coconut_ds.errors import DataError
from coconut_ds.methods import METHODS
from coconut_ds.probing.intervene import InterventionArm, InterventionReport
from coconut_ds.probing.interventions import Intervention, Kind
from serve.app import intervention_figures, markup
from serve.app.events import ComponentUpdates, on
from serve.app.measures import MAX_DRAWS, intervention_overview, run_intervention
from serve.app.question import Bar
from serve.app.results import InterventionResult
from serve.app.studio import CheckedQuestion, Studio, whole_number
from serve.app.words import KINDS

INTRODUCTION = (
    "If the answer depends on a thought, then changing that thought changes the answer, and the same change elsewhere "
    "does not. An answer that stays the same says little by itself: the model may ignore such a change anywhere. "
    "Compare with the controls."
)
OVERVIEW = (
    "Each kind of change, made to each thought: the most frequent answer, coloured by the share of draws that keep the "
    "original answer."
)
NO_PAUSE = "none"
LATER: dict[str, Literal["recomputed", "kept"]] = {
    "recomputed after the change": "recomputed",
    "kept from the original run": "kept",
}
"""What happens to the thoughts after the changed one, by label."""


@dataclass(frozen=True)
class IntervenePage:
    """The page's components. Other pages use ``run``, ``kind``, ``thought`` and ``kept``."""

    run: gr.Button
    kind: gr.Radio
    thought: gr.Slider
    draws: gr.Slider
    options: "_Options"
    message: gr.HTML
    verdict: gr.HTML
    results: gr.Column
    table: gr.HTML
    figure: gr.Plot
    overview: gr.Plot
    kept: gr.State
    """The last result, an ``InterventionResult``."""


@dataclass(frozen=True)
class _Options:
    """The inputs under *More options*."""

    later: gr.Radio
    strength: gr.Slider
    other: gr.Slider
    token: gr.Textbox
    seed: gr.Slider
    pause: gr.Dropdown


def build(studio: Studio, bar: Bar) -> IntervenePage:
    """Creates the page."""
    page = _components(studio)
    _connect(studio, bar, page)
    return page


def _components(studio: Studio) -> IntervenePage:
    gr.HTML(markup.hint(INTRODUCTION))
    kind = gr.Radio(
        [(words, str(one)) for one, words in KINDS.items()], value="patch", label="Kind of change", elem_id="kind"
    )
    with gr.Row():
        thought = gr.Slider(
            1, studio.max_thoughts, value=1, step=1, label="Which thought", elem_id="thought", min_width=230
        )
        draws = gr.Slider(
            1, MAX_DRAWS, value=8, step=1, label="Draws (of noise, random directions or other problems)", min_width=230
        )
    options = _option_components(studio)
    run = gr.Button("Run the intervention", variant="primary", elem_id="run-intervene")
    message = gr.HTML(elem_id="intervene-message", elem_classes="message")
    verdict = gr.HTML(
        markup.empty("Press Run the intervention to see its effect and the controls here."), elem_id="intervene-verdict"
    )
    with gr.Column(visible=False) as results:
        table = gr.HTML(elem_id="intervene-table")
        figure = gr.Plot(label="Change in log probability of the original text", elem_id="intervene-picture")
        gr.HTML(markup.hint(OVERVIEW))
        overview = gr.Plot(label="Every thought", elem_id="intervene-every")
    kept = gr.State(time_to_live=3600)
    return IntervenePage(run, kind, thought, draws, options, message, verdict, results, table, figure, overview, kept)


def _option_components(studio: Studio) -> _Options:
    with gr.Accordion("More options", open=False):
        with gr.Row():
            later = gr.Radio(list(LATER), value=next(iter(LATER)), label="Later thoughts are", min_width=230)
            strength = gr.Slider(
                0,
                4,
                value=1,
                step=0.1,
                label="Strength (noise: multiple of the thought's norm; scaled: factor)",
                min_width=230,
            )
        with gr.Row():
            other = gr.Slider(1, studio.max_thoughts, value=2, step=1, label="Other thought (swapped)", min_width=230)
            token = gr.Textbox(label="Token (token embedding)", min_width=120)
            seed = gr.Slider(0, 999, value=0, step=1, label="Seed", min_width=120)
        pause = gr.Dropdown(
            [NO_PAUSE, *studio.pausing], value=NO_PAUSE, label="Additional control: a checkpoint that pauses"
        )
    return _Options(later, strength, other, token, seed, pause)


def _connect(studio: Studio, bar: Bar, page: IntervenePage) -> None:
    async def intervene(*values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        checked = studio.check_question(*values[:4])
        intervention = _intervention(studio, checked, *values[4:-1])
        pausing = _pausing(studio, values[-1])
        waiting = markup.empty("Running the intervention and the controls …")
        yield {page.verdict: waiting, page.results: gr.update(visible=True)}
        report = await run_intervention(studio, checked, intervention, pausing)
        result = InterventionResult(checked.model, report)
        yield {
            page.verdict: _verdict(report),
            page.table: _table(report),
            page.figure: intervention_figures.report_figure(report),
            page.kept: result,
        }
        overview = await intervention_overview(studio, checked)
        yield {
            page.overview: intervention_figures.overview_figure(overview, {str(k): v for k, v in KINDS.items()}),
            page.kept: replace(result, overview=tuple(overview)),
        }

    options = page.options
    inputs = [*bar.question_inputs, page.kind, page.thought, page.draws, options.later, options.strength]
    inputs += [options.other, options.token, options.seed, options.pause]
    outputs = [page.verdict, page.results, page.table, page.figure, page.overview, page.kept]
    on(page.run.click, intervene, inputs, outputs, page.message)


def _intervention(
    studio: Studio,
    checked: CheckedQuestion,
    kind: str,
    thought: float,
    draws: float,
    later: str,
    strength: float,
    other: float,
    token: str,
    seed: float,
) -> Intervention:
    """Checks a visitor's inputs and returns the intervention.

    Raises:
        CoconutError: an input is invalid; the message says which and what is expected.
    """
    if not METHODS[studio.card(checked.model).method].has_latents or not checked.n_thoughts:
        raise DataError(
            "thoughts: there is no thought to change; select a checkpoint with thoughts or pauses, and at least 1"
        )
    if kind not in list(Kind) or later not in LATER or not 0 <= strength <= 4:
        raise DataError("the change: found values that this page does not offer; reload the page")
    chosen = Kind(kind)
    if chosen is Kind.TOKEN and not 0 < len(token or "") <= 40:
        raise DataError(
            "Token (under More options): type the token, of at most 40 characters, whose embedding replaces the thought"
        )
    return Intervention(
        chosen,
        whole_number("thought", thought, 1, checked.n_thoughts),
        strength=float(strength),
        other=whole_number("the other thought", other, 1, checked.n_thoughts) if chosen is Kind.SWAP else None,
        token=token if chosen is Kind.TOKEN else None,
        draws=whole_number("draws", draws, 1, MAX_DRAWS),
        seed=whole_number("seed", seed, 0, 999),
        later=LATER[later],
    )


def _pausing(studio: Studio, name: str) -> str | None:
    if name == NO_PAUSE:
        return None
    if name not in studio.pausing:
        raise DataError("Additional control: no checkpoint that pauses has this name; reload the page")
    return name


def _verdict(report: InterventionReport) -> str:
    """The original answer, and one sentence that counts the answers after the intervention."""
    arm, intervention = report.effect, report.intervention
    draws = len(arm.outcomes)
    kept = sum(one.kept for one in arm.outcomes)
    text = f"Thought {intervention.thought} ({KINDS[intervention.kind]}): {kept} of {draws} draws kept the answer"
    if arm.donor_answers:
        became = sum(one.answer == answer for one, answer in zip(arm.outcomes, arm.donor_answers, strict=True))
        text += f", {became} of {draws} gave the other problem's answer"
    return markup.answer(report.answer, report.text, None, None) + markup.finding(f"{text}.")


def _table(report: InterventionReport) -> str:
    rows = [["original run", report.answer or "(none)", "", "", ""]]
    for arm in (report.effect, *report.controls):
        name = intervention_figures.arm_name(report, arm)
        rows.append([name, _answers(arm), f"{arm.kept:.0%}", _share_of_donors(arm), f"{arm.mean_change:+.2f}"])
    headers = ["run", "answers", "answer kept", "other problem's answer", "Δ log p of the original text (nats)"]
    return markup.html_table("Effect and controls", headers, rows, strong=1)


def _answers(arm: InterventionArm) -> str:
    counts = Counter(one.answer or "(none)" for one in arm.outcomes).most_common(4)
    if len(arm.outcomes) == 1:
        return counts[0][0]
    return ", ".join(f"{answer} ×{count}" for answer, count in counts)


def _share_of_donors(arm: InterventionArm) -> str:
    """Share of draws that gave the donor's answer; empty without donors, or if donors have the original answer."""
    if not arm.donor_answers or arm.name == "same answer":
        return ""
    pairs = list(zip(arm.outcomes, arm.donor_answers, strict=True))
    return f"{sum(one.answer == answer for one, answer in pairs) / len(pairs):.0%}"
