"""The *States* page: what each thought attends to, and which single state carries the answer."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from coconut_ds.errors import DataError
from coconut_ds.probing.state_patching import StatePatching
from coconut_ds.probing.thought_attention import ThoughtAttention
from serve.app import markup, state_charts, state_tables
from serve.app.empty import GROUP, emptied, figure
from serve.app.events import ComponentUpdates, on
from serve.app.measures import attention_of, patching_of
from serve.app.outdated import asking
from serve.app.permalink import number_of
from serve.app.question import Bar
from serve.app.results import StatesResult
from serve.app.studio import CheckedQuestion, Studio, whole_number
from serve.app.words import LATER, STATE_SOURCES

INTRODUCTION = (
    "Two views of the states inside the model: which tokens each thought reads (attention), and which single state "
    "carries the answer, found by replacing each state with that of another problem, the donor (patching)."
)
ATTENTION = (
    "The row of a thought shows where the position that becomes this thought reads from. Compare it with the row "
    "“question”, the last token of the question, which is no thought. A weight shows what a position reads, not what "
    "it does with it."
)
PATCHING = (
    "Each state of the question is replaced by the state of another problem, the donor, at the same layer and "
    "position. Effect 0: the text stays as likely as before; effect 1: the model behaves as on the donor. Compare "
    "with the controls: a problem with the same answer, and random changes of the same size."
)
WHAT = {"attention": "What each thought attends to", "patching": "Which state carries the answer (patching)"}
POSITIONS = {"thoughts": "from the thoughts on", "all": "all (needs a donor with as many tokens)"}
START = "Press Look at the states to see the result here."
CHANGED = "The question or a setting has changed since the last result. Press Look at the states."
MAX_LAYER, MAX_HEAD = 999, 999


@dataclass(frozen=True)
class StatesPage:
    """The page's components. Other pages use the inputs and ``kept``."""

    run: gr.Button
    what: gr.Radio
    layer: gr.Number
    """Layer whose attention is shown; 0: the last one."""
    head: gr.Number
    """Head whose attention is shown; 0: the mean over heads."""
    donor: gr.Textbox
    """Number of the donor in the file of problems; empty: the first problem with another answer."""
    positions: gr.Radio
    later: gr.Radio
    message: gr.HTML
    state: gr.HTML
    figures: tuple[gr.Plot, gr.Plot, gr.Plot]
    table: gr.HTML
    kept: gr.State
    """The last result, a ``StatesResult``."""

    def cleared(self) -> ComponentUpdates:
        """Updates that remove the last result."""
        return {self.state: markup.empty(START), **emptied(*self.figures, self.table), self.kept: None}


def build(studio: Studio, bar: Bar) -> StatesPage:
    """Creates the page."""
    gr.HTML(markup.hint(INTRODUCTION))
    what = gr.Radio([(text, name) for name, text in WHAT.items()], value="attention", label="Show", elem_id="what")
    with gr.Row():
        layer = gr.Number(0, label="Attention: layer (0: the last)", elem_id="layer", min_width=140)
        head = gr.Number(0, label="Attention: head (0: mean over heads)", elem_id="head", min_width=140)
        donor = gr.Textbox(
            label="Patching: problem number of the donor (empty: the first with another answer)", elem_id="donor"
        )
    with gr.Row():
        positions = gr.Radio(
            [(text, name) for name, text in POSITIONS.items()],
            value="thoughts",
            label="Patching: positions",
            elem_id="positions",
            min_width=230,
        )
        later = gr.Radio(
            list(LATER), value=next(iter(LATER)), label="Patching: later thoughts are", elem_id="later-states"
        )
    run = gr.Button("Look at the states", variant="primary", elem_id="run-states")
    message = gr.HTML(elem_id="states-message", elem_classes="message")
    gr.HTML(markup.empty(CHANGED), elem_classes="instead-states")
    with gr.Column(elem_classes=["of-states", "dims"]):
        state = gr.HTML(markup.empty(START), elem_id="states-state")
        with gr.Column(elem_classes=GROUP):
            figures = _plot("first"), _plot("second"), _plot("third")
            table = gr.HTML(elem_id="states-table")
    kept = gr.State(time_to_live=3600)
    inputs = (run, what, layer, head, donor, positions, later)
    page = StatesPage(*inputs, message, state, figures, table, kept)
    _connect(studio, bar, page)
    return page


def _plot(name: str) -> gr.Plot:
    return figure("Result", f"states-{name}", ["wide", "widest"])


def _connect(studio: Studio, bar: Bar, page: StatesPage) -> None:
    async def look(*values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        checked = studio.check_question(*values[:4])
        what, layer, head, donor, positions, later = values[4:]
        if what not in WHAT or positions not in POSITIONS or later not in LATER:
            raise DataError("the settings: found values that this page does not offer; reload the page")
        yield {page.state: markup.busy("Running the model …")}
        if what == "attention":
            attention = await attention_of(studio, checked)
            update = _showing_attention(page, attention, layer, head)
            yield {**update, page.kept: StatesResult(checked.model, attention=attention)}
            return
        other = _donor(studio, values[1], checked, donor)
        patching = await patching_of(studio, checked, other, positions, LATER[later])
        yield {**_showing_patching(page, patching), page.kept: StatesResult(checked.model, patching=patching)}

    async def move(result: StatesResult | None, layer: float, head: float) -> AsyncGenerator[ComponentUpdates, None]:
        if result is not None and result.attention is not None:
            yield _showing_attention(page, result.attention, layer, head)

    inputs = [*bar.question_inputs, page.what, page.layer, page.head, page.donor, page.positions, page.later]
    shown = [page.state, *page.figures, page.table]
    on(
        *(page.run.click, look, inputs, [*shown, page.kept], page.message),
        on_error=page.cleared(),
        js=asking("states"),
    )
    options: dict[str, Any] = {"concurrency_id": "bar", "concurrency_limit": 16, "trigger_mode": "always_last"}
    for one in (page.layer, page.head):
        on(one.submit, move, [page.kept, page.layer, page.head], shown, page.message, **options)
        on(one.blur, move, [page.kept, page.layer, page.head], shown, page.message, **options)


def _donor(studio: Studio, file: str | None, checked: CheckedQuestion, number: str) -> str | None:
    """The question of the donor that the visitor selected; None: the first one that is suitable.

    Raises:
        DataError: there is no such problem.
    """
    chosen, text = studio.file(file), (number or "").strip()
    if chosen is None or not (text or checked.references):
        raise DataError("donor: patching needs other problems; select a file under Problems")
    if not text:
        return None
    last = len(chosen.problems) - 1
    place = number_of(text, 0, last)
    if place is None:
        raise DataError(f"problem number of the donor: is {text[:40]!r}; expected a whole number from 0 to {last}")
    return chosen.problems[place].question


def _showing_attention(page: StatesPage, found: ThoughtAttention, layer: float, head: float) -> ComponentUpdates:
    layers, heads = len(found.weights), len(found.weights[0])
    at = whole_number("layer", layer, 0, layers) or layers
    of = whole_number("head", head, 0, heads) or None
    name = f"Attention in layer {at} of {layers}, {f'head {of} of {heads}' if of else f'mean over {heads} heads'}"
    return {
        page.state: markup.hint(ATTENTION),
        page.figures[0]: gr.update(value=state_charts.attention_figure(found, at, of), label=name),
        **emptied(*page.figures[1:]),
        page.table: state_tables.attention_table(found, at, of),
    }


def _showing_patching(page: StatesPage, found: StatePatching) -> ComponentUpdates:
    grids = (found.effect, *found.controls)
    update = emptied(*page.figures)
    for plot, grid in zip(page.figures, grids, strict=False):
        update[plot] = gr.update(value=state_charts.patching_figure(found, grid), label=STATE_SOURCES[grid.name])
    return {
        **update,
        page.state: markup.hint(PATCHING) + markup.finding(_strongest(found)),
        page.table: state_tables.patching_tables(found),
    }


def _strongest(found: StatePatching) -> str:
    """Which state has the largest effect."""
    cells = [
        (cell.effect, layer, at)
        for layer, row in enumerate(found.effect.cells)
        for at, cell in zip(found.positions, row, strict=True)
    ]
    effect, layer, at = max(cells)
    place = "the input of the first layer" if not layer else f"layer {layer}"
    return f"The state of {markup.shown_token(at)} at {place} has the largest effect ({effect:.2f})."
