"""The *Compare* page: two checkpoints, or two questions, side by side."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import gradio as gr

from coconut_ds.methods import METHODS
from coconut_ds.probing.trace import ThoughtTrace
from serve.app import markup, thought_figures
from serve.app.events import ComponentUpdates, on
from serve.app.question import Bar
from serve.app.results import CompareResult
from serve.app.studio import CheckedQuestion, Studio

INTRODUCTION = (
    "Compares the checkpoint and question above with another checkpoint, another question, or both. Similar decoded "
    "tokens do not show that two models compute the same, and a difference does not show which thoughts matter."
)


@dataclass(frozen=True)
class _Side:
    """The components of one of the two columns."""

    answer: gr.HTML
    decoded: gr.Plot
    layers: gr.Plot


@dataclass(frozen=True)
class ComparePage:
    """The page's components. Other pages use ``run``, ``model``, ``question`` and ``kept``."""

    run: gr.Button
    model: gr.Dropdown
    """The second checkpoint; the first is that of the bar."""
    question: gr.Textbox
    """The second question; the first is that of the bar."""
    message: gr.HTML
    state: gr.HTML
    results: gr.Row
    sides: tuple[_Side, _Side]
    table: gr.HTML
    kept: gr.State
    """The last result, a ``CompareResult``."""


def build(studio: Studio, bar: Bar) -> ComparePage:
    """Creates the page."""
    page = _components(studio)
    _connect(studio, bar, page)
    return page


def _components(studio: Studio) -> ComparePage:
    gr.HTML(markup.hint(INTRODUCTION))
    with gr.Row():
        model = gr.Dropdown(
            studio.checkpoints.names,
            value=_default_other(studio),
            label="Second checkpoint",
            elem_id="other-model",
            min_width=230,
        )
        question = gr.Textbox(
            label="Second question (empty: same as above)",
            lines=1,
            max_lines=4,
            elem_id="other-question",
            min_width=230,
        )
    run = gr.Button("Compare", variant="primary", elem_id="run-compare")
    message = gr.HTML(elem_id="compare-message", elem_classes="message")
    state = gr.HTML(markup.empty("Press Compare to see both side by side here."), elem_id="compare-state")
    with gr.Row(visible=False) as results:
        sides = _side("first"), _side("second")
    return ComparePage(run, model, question, message, state, results, sides, gr.HTML(), gr.State(time_to_live=3600))


def _side(name: str) -> _Side:
    with gr.Column(min_width=320):
        return _Side(
            gr.HTML(elem_id=f"compare-{name}"),
            gr.Plot(label="Decoded thoughts", elem_id=f"compare-{name}-decoded"),
            gr.Plot(label="Thoughts decoded at each layer"),
        )


def _connect(studio: Studio, bar: Bar, page: ComparePage) -> None:
    async def compare(
        first: str, file: str | None, text: str, n_thoughts: float, second: str, other: str
    ) -> AsyncGenerator[ComponentUpdates, None]:
        questions = [studio.check_question(first, file, text, n_thoughts)]
        # The same checkpoint runs with the same number of thoughts, another one with its own number.
        n_second = n_thoughts if second == first else studio.card(second).num_latents
        other = other if (other or "").strip() else text
        questions.append(studio.check_question(second, file, other, n_second))
        yield {page.state: markup.empty("Running both …"), page.results: gr.update(visible=True)}
        traces = [await studio.think(checked) for checked in questions]
        update: ComponentUpdates = {page.state: "", page.table: _table(traces[0], traces[1])}
        for checked, trace, side in zip(questions, traces, page.sides, strict=True):
            layers = gr.update(value=thought_figures.layers_figure(trace), visible=bool(trace.thoughts))
            update[side.answer] = _answer(studio, checked, trace)
            update |= {side.decoded: thought_figures.decoded_figure(trace), side.layers: layers}
        yield {**update, page.kept: CompareResult((first, second), (traces[0], traces[1]))}

    shown = [component for side in page.sides for component in (side.answer, side.decoded, side.layers)]
    outputs = [page.state, page.results, *shown, page.table, page.kept]
    on(page.run.click, compare, [*bar.question_inputs, page.model, page.question], outputs, page.message)


def _default_other(studio: Studio) -> str:
    """A checkpoint to compare with: one that pauses, else one without thoughts, else the first one."""
    without = [checkpoint.name for checkpoint in studio.checkpoints if not checkpoint.card.num_thoughts]
    pausing = [name for name in without if METHODS[studio.card(name).method].pauses]
    return [*pausing, *without, *studio.checkpoints.names][0]


def _answer(studio: Studio, checked: CheckedQuestion, trace: ThoughtTrace) -> str:
    title = f"{checked.model} ({trace.method}, {len(trace.thoughts)} {'pauses' if trace.pauses else 'thoughts'})"
    is_right = studio.is_right(checked, trace.text)
    return markup.title(title, checked.question) + markup.answer(trace.answer, trace.text, checked.answer, is_right)


def _table(first: ThoughtTrace, second: ThoughtTrace) -> str:
    rows = []
    for index in range(max(len(first.thoughts), len(second.thoughts))):
        row = [str(index + 1)]
        for trace in (first, second):
            if index < len(trace.thoughts):
                one = trace.thoughts[index]
                row += [markup.shown_token(one.decoded.tokens[0]), f"{one.decoded.entropy:.2f}", f"{one.norm:.1f}"]
            else:
                row += ["–", "–", "–"]
        rows.append(row)
    rows.append(["answer", first.answer or "(none)", "", "", second.answer or "(none)", "", ""])
    headers = ["thought", "first: top token", "entropy", "norm", "second: top token", "entropy", "norm"]
    return markup.html_table("Both side by side", headers, rows)
