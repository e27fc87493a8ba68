"""The *Compare* page: two checkpoints, or two questions, side by side."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from coconut_ds.probing.trace import ThoughtTrace
from serve.app import markup, thought_figures
from serve.app.checkpoint_list import choices, partner_of
from serve.app.empty import GROUP, emptied, figure
from serve.app.events import ComponentUpdates, on
from serve.app.outdated import asking
from serve.app.question import Bar
from serve.app.results import CompareResult
from serve.app.studio import CheckedQuestion, Studio

INTRODUCTION = (
    "Compares the checkpoint and question above with another checkpoint, another question, or both. Similar decoded "
    "tokens do not show that two models compute the same, and a difference does not show which thoughts matter."
)


START = "Press Compare to see both side by side here."
CHANGED = "The question or a setting has changed since the last comparison. Press Compare to compare again."


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
    sides: tuple[_Side, _Side]
    table: gr.HTML
    kept: gr.State
    """The last result, a ``CompareResult``."""


def build(studio: Studio, bar: Bar) -> ComparePage:
    """Creates the page."""
    page = _components(studio, bar)
    _connect(studio, bar, page)
    return page


def _components(studio: Studio, bar: Bar) -> ComparePage:
    gr.HTML(markup.hint(INTRODUCTION))
    with gr.Row():
        model = gr.Dropdown(
            choices(studio.checkpoints),
            value=partner(studio, str(bar.model.value)),
            label="Second checkpoint",
            elem_id="other-model",
            scale=3,
            min_width=230,
        )
        question = gr.Textbox(
            label="Second question (empty: same as above)",
            lines=1,
            max_lines=4,
            elem_id="other-question",
            scale=2,
            min_width=230,
        )
    run = gr.Button("Compare", variant="primary", elem_id="run-compare")
    message = gr.HTML(elem_id="compare-message", elem_classes="message")
    gr.HTML(markup.empty(CHANGED), elem_classes="instead-compare")
    with gr.Column(elem_classes=["of-compare", "dims"]):
        state = gr.HTML(markup.empty(START), elem_id="compare-state")
        with gr.Row(elem_classes=GROUP):
            sides = _side("first"), _side("second")
        table = gr.HTML(elem_id="compare-table")
    return ComparePage(run, model, question, message, state, sides, table, gr.State(time_to_live=3600))


def _side(name: str) -> _Side:
    with gr.Column(min_width=320):
        return _Side(
            gr.HTML(elem_id=f"compare-{name}"),
            figure("Decoded thoughts", f"compare-{name}-decoded", ["wide"]),
            figure("Thoughts decoded at each layer", f"compare-{name}-layers", ["wide"]),
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
        yield {page.state: markup.busy("Running both …")}
        traces = [await studio.think(checked) for checked in questions]
        update: ComponentUpdates = {page.state: "", page.table: _table(traces[0], traces[1])}
        for checked, trace, side in zip(questions, traces, page.sides, strict=True):
            update[side.answer] = _answer(studio, checked, trace)
            update[side.decoded] = thought_figures.decoded_figure(trace)
            update[side.layers] = thought_figures.layers_figure(trace)
        yield {**update, page.kept: CompareResult((first, second), (traces[0], traces[1]))}

    shown = [component for side in page.sides for component in (side.answer, side.decoded, side.layers)]
    outputs = [page.state, *shown, page.table, page.kept]
    on_error = {page.state: markup.empty(START), **emptied(*shown, page.table), page.kept: None}
    on(
        *(page.run.click, compare, [*bar.question_inputs, page.model, page.question], outputs, page.message),
        on_error=on_error,
        js=asking("compare"),
    )

    async def on_model(model: str) -> AsyncGenerator[ComponentUpdates, None]:
        yield {page.model: partner(studio, model)}

    more: dict[str, Any] = {"concurrency_id": "bar", "concurrency_limit": 16, "trigger_mode": "always_last"}
    on(bar.model.input, on_model, [bar.model], [page.model], page.message, **more)


def partner(studio: Studio, model: str) -> str:
    """The checkpoint to compare with, unless the visitor selects another."""
    return partner_of(model, studio.checkpoints, studio.files, studio.file_of)


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
    headers = ["thought", "first: likeliest token", "entropy (nats)", "norm"]
    headers += ["second: likeliest token", "entropy (nats)", "norm"]
    return markup.html_table("Both side by side", headers, rows)
