"""The *Intervene* page: changes a thought and shows the effect on the answer next to controls."""

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from coconut_ds.errors import DataError
from coconut_ds.methods import METHODS
from coconut_ds.probing.intervene import InterventionArm, InterventionReport
from coconut_ds.probing.interventions import Intervention, Kind
from serve.app import intervention_figures, markup
from serve.app.empty import GROUP, emptied, figure
from serve.app.events import ComponentUpdates, on
from serve.app.measures import MAX_DRAWS, intervention_overview, run_intervention
from serve.app.outdated import asking
from serve.app.question import Bar
from serve.app.results import InterventionResult
from serve.app.studio import CheckedQuestion, Studio, whole_number
from serve.app.words import CHANGE, KINDS, LATER

INTRODUCTION = (
    "If the answer depends on a thought, then changing that thought changes the answer, and the same change elsewhere "
    "does not. An answer that stays the same says little by itself: the model may ignore such a change anywhere. "
    "Compare with the controls."
)
OVERVIEW = (
    "Each kind of change, made to each thought: the most frequent answer, coloured by the share of draws that leave "
    "the answer unchanged."
)
START = "Press Run the intervention to see its effect and the controls here."
CHANGED = "The question or a setting above has changed since the last intervention. Press Run the intervention."
NO_PAUSE = "none"
MAX_STRENGTH = 4
MAX_SEED = 999


@dataclass(frozen=True)
class IntervenePage:
    """The page's components. Other pages use the inputs and ``kept``."""

    run: gr.Button
    kind: gr.Radio
    thought: gr.Slider
    draws: gr.Slider
    options: "Options"
    message: gr.HTML
    verdict: gr.HTML
    table: gr.HTML
    effect: gr.Plot
    waiting: gr.HTML
    """Says that the overview is being computed."""
    overview: gr.Plot
    kept: gr.State
    """The last result, an ``InterventionResult``."""


@dataclass(frozen=True)
class Options:
    """The inputs under *More options*."""

    later: gr.Radio
    strength: gr.Slider
    other: gr.Slider
    token: gr.Textbox
    seed: gr.Slider
    pause: gr.Dropdown


def build(studio: Studio, bar: Bar) -> IntervenePage:
    """Creates the page."""
    page = _components(studio, int(bar.thoughts.value or 0))
    _connect(studio, bar, page)
    return page


def _components(studio: Studio, count: int) -> IntervenePage:
    """The page's components; ``count``: number of thoughts that can be changed."""
    gr.HTML(markup.hint(INTRODUCTION))
    kind = gr.Radio(
        [(words, str(one)) for one, words in KINDS.items()], value="patch", label="Kind of change", elem_id="kind"
    )
    with gr.Row():
        thought = gr.Slider(1, max(count, 2), value=1, step=1, label="Which thought", elem_id="thought", min_width=230)
        draws = gr.Slider(
            1,
            MAX_DRAWS,
            value=8,
            step=1,
            label="Draws (each has new random numbers, or another problem)",
            elem_id="draws",
            min_width=230,
        )
    options = _option_components(studio, count)
    run = gr.Button("Run the intervention", variant="primary", elem_id="run-intervene")
    message = gr.HTML(elem_id="intervene-message", elem_classes="message")
    gr.HTML(markup.empty(CHANGED), elem_classes="instead-intervene")
    with gr.Column(elem_classes=["of-intervene", "dims"]):
        verdict = gr.HTML(markup.empty(START), elem_id="intervene-verdict")
        with gr.Column(elem_classes=GROUP):
            table = gr.HTML(elem_id="intervene-table")
            effect = figure("Effect of each draw", "intervene-picture", ["wide"])
            with gr.Column(elem_classes="dims"):
                gr.HTML(markup.hint(OVERVIEW))
                waiting = gr.HTML()
                overview = figure("Every thought", "intervene-every", ["wide"])
    shown = (message, verdict, table, effect, waiting, overview)
    return IntervenePage(run, kind, thought, draws, options, *shown, gr.State(time_to_live=3600))


def _option_components(studio: Studio, count: int) -> Options:
    with gr.Accordion("More options", open=False):
        with gr.Row():
            later = gr.Radio(
                list(LATER), value=next(iter(LATER)), label="Later thoughts are", elem_id="later", min_width=230
            )
            strength = gr.Slider(
                0,
                MAX_STRENGTH,
                value=1,
                step=0.1,
                label="Strength (noise added: multiple of the thought's norm; scaled: factor)",
                elem_id="strength",
                min_width=230,
            )
        with gr.Row():
            other = gr.Slider(
                1,
                max(count, 2),
                value=2,
                step=1,
                label="Other thought (for: swapped with another thought)",
                elem_id="other-thought",
                min_width=230,
            )
            token = gr.Textbox(label="Token (for: token embedding)", elem_id="token", min_width=120)
            seed = gr.Slider(
                0, MAX_SEED, value=0, step=1, label="Seed of the random numbers", elem_id="seed", min_width=120
            )
        pause = gr.Dropdown(
            [NO_PAUSE, *studio.pausing],
            value=NO_PAUSE,
            label="Additional control: the same change in a checkpoint that pauses",
            elem_id="pause",
        )
    return Options(later, strength, other, token, seed, pause)


def _connect(studio: Studio, bar: Bar, page: IntervenePage) -> None:
    async def intervene(*values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        checked = studio.check_question(*values[:4])
        intervention = _intervention(studio, checked, *values[4:-1])
        pausing = _pausing(studio, values[-1])
        waiting = markup.busy("Running the intervention and the controls …")
        yield {page.verdict: waiting, page.waiting: ""}
        report = await run_intervention(studio, checked, intervention, pausing)
        result = InterventionResult(checked.model, report)
        yield {
            page.verdict: _verdict(report),
            page.waiting: markup.busy("Running each kind of change on each thought …"),
            page.table: _table(report),
            page.effect: intervention_figures.report_figure(report),
            page.kept: result,
        }
        overview = await intervention_overview(studio, checked)
        yield {
            page.waiting: "",
            page.overview: intervention_figures.overview_figure(overview, {str(k): v for k, v in KINDS.items()}),
            page.kept: replace(result, overview=tuple(overview)),
        }

    options = page.options
    inputs = [*bar.question_inputs, page.kind, page.thought, page.draws, options.later, options.strength]
    inputs += [options.other, options.token, options.seed, options.pause]
    shown = [page.table, page.effect, page.waiting, page.overview]
    outputs = [page.verdict, *shown, page.kept]
    on_error = {page.verdict: markup.empty(START), **emptied(*shown), page.kept: None}
    on(*(page.run.click, intervene, inputs, outputs, page.message), on_error=on_error, js=asking("intervene"))

    async def on_thoughts(count: float, thought: float, other: float) -> AsyncGenerator[ComponentUpdates, None]:
        yield {one: up_to(count, value) for one, value in ((page.thought, thought), (options.other, other))}

    both = [page.thought, options.other]
    more: dict[str, Any] = {"concurrency_id": "bar", "concurrency_limit": 16, "trigger_mode": "always_last"}
    on(bar.thoughts.change, on_thoughts, [bar.thoughts, *both], both, page.message, **more)


def up_to(count: float, value: float) -> Any:
    """The update of a slider of thoughts that ends at thought ``count``; ``value``: the thought that is selected."""
    # A slider with one position cannot be drawn; a second thought, which does not exist, is refused with a message.
    return gr.update(maximum=max(int(count), 2), value=min(int(value), max(int(count), 1)))


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
    if kind not in list(Kind) or later not in LATER or not 0 <= strength <= MAX_STRENGTH:
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
        seed=whole_number("seed", seed, 0, MAX_SEED),
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
    what = f"Thought {intervention.thought} ({KINDS[intervention.kind]})"
    text = f"{what}: {kept} of {draws} draws left the answer unchanged"
    if arm.became_donors is not None:
        text += f", {round(arm.became_donors * draws)} of {draws} gave the other problem's answer"
    original = markup.answer(report.answer, report.text, None, None, label="original answer")
    return original + markup.finding(f"{text}.")


def _table(report: InterventionReport) -> str:
    rows = [["original run", report.answer or "(none)", "", "", ""]]
    for arm in (report.effect, *report.controls):
        name = intervention_figures.arm_name(report, arm)
        became = "" if arm.became_donors is None else f"{arm.became_donors:.0%}"
        rows.append([name, _answers(arm), f"{arm.kept:.0%}", became, f"{arm.mean_change:+.2f}"])
    headers = ["what was changed", "answers", "answer unchanged", "other problem's answer", CHANGE]
    return markup.html_table("Effect and controls", headers, rows, strong=1)


def _answers(arm: InterventionArm) -> str:
    counts = Counter(one.answer or "(none)" for one in arm.outcomes).most_common()
    if len(arm.outcomes) == 1:
        return counts[0][0]
    return ", ".join(f"{answer} ×{count}" for answer, count in counts)
