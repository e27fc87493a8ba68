"""*Intervene*: a thought is changed, and what comes of it stands beside controls."""

from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from coconut_ds.errors import DataError
from coconut_ds.methods import METHODS
from coconut_ds.probing.intervene import InterventionArm, InterventionReport
from coconut_ds.probing.interventions import Intervention, Kind
from serve.app import figures, markup
from serve.app.events import ComponentUpdates, on
from serve.app.measures import MAX_DRAWS, Changing, changed, intervention_overview
from serve.app.question import Bar
from serve.app.studio import Asked, Studio, whole_number
from serve.app.words import KINDS

SHOWS = (
    "If an answer hangs on a thought, changing that thought changes the answer, and the same change elsewhere does "
    "not. An answer that stays says little alone: the change may be one that the model ignores anywhere. Look at the "
    "controls."
)
EVERY = "Each change of each thought: the answer that comes most often, coloured by how many draws keep the old one."
NO_PAUSE = "none"
LATER = {"thought anew": "recomputed", "kept as they were": "kept"}


@dataclass(frozen=True)
class IntervenePage:
    """What other pages use of it."""

    run: gr.Button
    kind: gr.Radio
    thought: gr.Slider
    kept: gr.State


def build(studio: Studio, bar: Bar) -> IntervenePage:
    """Makes the page."""
    gr.HTML(markup.hint(SHOWS))
    kind = gr.Radio(
        [(words, str(one)) for one, words in KINDS.items()], value="patch", label="The thought becomes", elem_id="kind"
    )
    with gr.Row():
        thought = gr.Slider(
            1, studio.max_thoughts, value=1, step=1, label="Which thought", elem_id="thought", min_width=230
        )
        draws = gr.Slider(1, MAX_DRAWS, value=8, step=1, label="Draws (noise, donors)", min_width=230)
    with gr.Accordion("More", open=False):
        with gr.Row():
            later = gr.Radio(list(LATER), value="thought anew", label="Later thoughts are", min_width=230)
            strength = gr.Slider(
                0, 4, value=1, step=0.1, label="Strength (noise: × norm; scaled: factor)", min_width=230
            )
        with gr.Row():
            other = gr.Slider(1, studio.max_thoughts, value=2, step=1, label="Swapped with thought", min_width=230)
            token = gr.Textbox(label="Token", min_width=120)
            seed = gr.Slider(0, 999, value=0, step=1, label="Seed", min_width=120)
        pause = gr.Dropdown(
            [NO_PAUSE, *studio.pausing], value=NO_PAUSE, label="A checkpoint that pauses, as one more control"
        )
    run = gr.Button("Change it", variant="primary", elem_id="run-intervene")
    message = gr.HTML(elem_id="intervene-message", elem_classes="message")
    verdict = gr.HTML(markup.empty("Press Change it: effect and controls come here."), elem_id="intervene-verdict")
    with gr.Column(visible=False) as results:
        table = gr.HTML(elem_id="intervene-table")
        picture = gr.Plot(label="The untouched text becomes less likely", elem_id="intervene-picture")
        gr.HTML(markup.hint(EVERY))
        every = gr.Plot(label="Every thought", elem_id="intervene-every")
    kept = gr.State(time_to_live=3600)

    async def change(*values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        asked = studio.asked(*values[:4])
        what = _intervention(studio, asked, *values[4:-1])
        pausing = _pausing(studio, values[-1])
        waiting = markup.empty("Thinking with the changed thought, and with the controls …")
        yield {verdict: waiting, results: gr.update(visible=True)}
        made = Changing(asked.model, await changed(studio, asked, what, pausing))
        yield {
            verdict: _verdict(made.report),
            table: _table(made.report),
            picture: figures.report_figure(made.report),
            kept: made,
        }
        found = await intervention_overview(studio, asked)
        yield {
            every: figures.overview_figure(found, {str(k): v for k, v in KINDS.items()}),
            kept: replace(made, overview=tuple(found)),
        }

    inputs = [*bar.asked, kind, thought, draws, later, strength, other, token, seed, pause]
    on(run.click, change, inputs, [verdict, results, table, picture, every, kept], message)
    return IntervenePage(run, kind, thought, kept)


def _intervention(
    studio: Studio,
    asked: Asked,
    kind: str,
    thought: float,
    draws: float,
    later: str,
    strength: float,
    other: float,
    token: str,
    seed: float,
) -> Intervention:
    """What a visitor wants done.

    Raises:
        CoconutError: it cannot be.
    """
    if not METHODS[studio.card(asked.model).method].has_latents or not asked.n_thoughts:
        raise DataError("there is no thought to change: choose a checkpoint that thinks, and 1 thought or more")
    if kind not in list(Kind) or later not in LATER or not 0 <= strength <= 4:
        raise DataError("the change: found values that the page does not offer")
    chosen = Kind(kind)
    if chosen is Kind.TOKEN and not 0 < len(token or "") <= 40:
        raise DataError("Token (under More): type the one that is put in the thought's place")
    return Intervention(
        chosen,
        whole_number("thought", thought, 1, asked.n_thoughts),
        strength=float(strength),
        other=whole_number("the other thought", other, 1, asked.n_thoughts) if chosen is Kind.SWAP else None,
        token=token if chosen is Kind.TOKEN else None,
        draws=whole_number("draws", draws, 1, MAX_DRAWS),
        seed=whole_number("seed", seed, 0, 999),
        later="kept" if LATER[later] == "kept" else "recomputed",
    )


def _pausing(studio: Studio, name: str) -> str | None:
    if name == NO_PAUSE:
        return None
    if name not in studio.pausing:
        raise DataError("the control: there is no pausing checkpoint of this name")
    return name


def _verdict(made: InterventionReport) -> str:
    """What happened, in one sentence or two; no more than the numbers say."""
    arm, what = made.effect, made.intervention
    draws = len(arm.outcomes)
    keep = sum(one.kept for one in arm.outcomes)
    text = f"Thought {what.thought} ({KINDS[what.kind]}): {keep} of {draws} draws kept the answer"
    if arm.donor_answers:
        became = sum(one.answer == answer for one, answer in zip(arm.outcomes, arm.donor_answers, strict=True))
        text += f", {became} of {draws} gave the other problem's answer"
    return markup.answer(made.answer, made.text, None, None) + markup.finding(f"{text}.")


def _table(made: InterventionReport) -> str:
    rows = [["untouched", made.answer or "(none)", "", "", ""]]
    for arm in (made.effect, *made.controls):
        rows.append(
            [figures.arm_name(made, arm), _answers(arm), f"{arm.kept:.0%}", _became(arm), f"{arm.mean_change:+.2f}"]
        )
    headers = ["what", "answers", "stay", "become the donor's", "log p of the old text"]
    return markup.html_table("Effect and controls", headers, rows, strong=1)


def _answers(arm: InterventionArm) -> str:
    counts = Counter(one.answer or "(none)" for one in arm.outcomes).most_common(4)
    if len(arm.outcomes) == 1:
        return counts[0][0]
    return ", ".join(f"{answer} ×{count}" for answer, count in counts)


def _became(arm: InterventionArm) -> str:
    if not arm.donor_answers or arm.name == "same answer":
        return ""
    pairs = list(zip(arm.outcomes, arm.donor_answers, strict=True))
    return f"{sum(one.answer == answer for one, answer in pairs) / len(pairs):.0%}"
