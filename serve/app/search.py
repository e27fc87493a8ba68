"""The *Search* page: the problem's graph, with the value that the model gives to each candidate after k thoughts."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from coconut_ds.probing.graph_values import Frontier, GraphView
from serve.app import markup
from serve.app.events import ComponentUpdates, on
from serve.app.graph_drawing import graph_svg
from serve.app.measures import search_graph
from serve.app.outdated import asking
from serve.app.question import Bar
from serve.app.results import SearchResult
from serve.app.studio import Studio

INTRODUCTION = (
    "After k thoughts the model is made to write the next node. The value of a node is the probability of its name, "
    "normalised over the candidates, which are all nodes at that distance from the root. High values on several nodes "
    "look like search, but models that only pause have produced the same picture: compare with such a model."
)
START = "Select a graph problem, then press Draw the graph."
CHANGED = "The question or a setting has changed since the graph was drawn. Press Draw the graph to draw it again."


@dataclass(frozen=True)
class SearchPage:
    """The page's components. Other pages use ``run``, ``after``, ``wanted`` and ``kept``."""

    run: gr.Button
    after: gr.Slider
    """Number of thoughts after which values are shown; hidden unless there are several."""
    wanted: gr.Number
    """The number of thoughts to show once the graph is drawn, if a link asks for one. Never shown."""
    message: gr.HTML
    picture: gr.HTML
    table: gr.HTML
    kept: gr.State
    """The last result, a ``SearchResult``."""


def build(studio: Studio, bar: Bar) -> SearchPage:
    """Creates the page."""
    gr.HTML(markup.hint(INTRODUCTION))
    run = gr.Button("Draw the graph", variant="primary", elem_id="run-search")
    message = gr.HTML(elem_id="search-message", elem_classes="message")
    gr.HTML(markup.empty(CHANGED), elem_classes="instead-search")
    with gr.Column(elem_classes="of-search"):
        after = gr.Slider(
            0,
            1,
            value=0,
            step=1,
            label="Show the values after this many thoughts",
            elem_id="after",
            min_width=230,
        )
        picture = gr.HTML(markup.empty(START), elem_id="search-graph")
        table = gr.HTML(elem_id="search-table")
    page = SearchPage(run, after, gr.Number(visible=False), message, picture, table, gr.State(time_to_live=3600))
    _connect(studio, bar, page)
    return page


def _connect(studio: Studio, bar: Bar, page: SearchPage) -> None:
    async def draw(
        model: str, file: str | None, question: str, n_thoughts: float, wanted: float | None
    ) -> AsyncGenerator[ComponentUpdates, None]:
        checked = studio.check_question(model, file, question, n_thoughts)
        yield {page.picture: markup.busy("Computing the value of each node …"), page.table: ""}
        result = await search_graph(studio, checked)
        after = result.view.after
        # The last distance from the root at which there is a node.
        some = [one.num_thoughts for one in after if any(node.value is not None for node in one.nodes)]
        place = _place(result.view, (some or [0])[-1] if wanted is None else wanted)
        step = after[1].num_thoughts if len(after) > 1 else 1
        slider = gr.update(maximum=max(after[-1].num_thoughts, 1), step=step, value=after[place].num_thoughts)
        yield {page.after: slider, **_shown(page, result, place), page.wanted: None, page.kept: result}

    async def move(result: SearchResult | None, number: float) -> AsyncGenerator[ComponentUpdates, None]:
        if result is not None:
            yield _shown(page, result, _place(result.view, number))

    shown = [page.picture, page.table]
    on(
        *(page.run.click, draw, [*bar.question_inputs, page.wanted]),
        *([page.after, page.wanted, *shown, page.kept], page.message),
        on_error={
            page.picture: markup.empty(START),
            page.table: "",
            page.kept: None,
        },
        js=asking("search"),
    )
    options: dict[str, Any] = {"concurrency_id": "bar", "concurrency_limit": 16, "trigger_mode": "always_last"}
    on(page.after.input, move, [page.kept, page.after], shown, page.message, **options)


def _place(view: GraphView, number: float) -> int:
    """The index in ``GraphView.after`` of the number of thoughts that is nearest to ``number``."""
    return min(range(len(view.after)), key=lambda index: abs(view.after[index].num_thoughts - number))


def _shown(page: SearchPage, result: SearchResult, place: int) -> ComponentUpdates:
    view = result.view
    return {page.picture: graph_svg(view, place), page.table: _table(view.after[place]) + hop_table(result)}


def hop_table(result: SearchResult) -> str:
    """What the model's head predicts at the states that become thoughts; empty if there are none."""
    if not result.hops:
        return ""
    rows = [
        [str(one.hop), "yes" if one.in_frontier else "no", f"{one.mass:.1%}", f"{one.loss:.3f}"] for one in result.hops
    ]
    caption = "What the model's head predicts at the states that become thoughts, without any text after them."
    headers = ["edges from the root", "the likeliest token is such a node", "probability of all such nodes"]
    return markup.html_table(caption, [*headers, "cross entropy, uniform over them (nats)"], rows)


def _table(frontier: Frontier) -> str:
    rows = [
        [
            markup.shown_token(node.name),
            "–" if node.value is None else f"{node.value:.1%}",
            f"{node.probability:.4f}",
            "not reached" if node.hop is None else str(node.hop),
            str(node.height_shortest),
            str(node.height_longest),
            "yes" if node.is_correct else "no",
        ]
        for node in frontier.nodes
    ]
    headers = ["node", "value", "probability of its name", "edges from the root"]
    headers += ["edges to the nearest leaf", "edges to the farthest leaf", "leads to the target"]
    thoughts, edges = _count(frontier.num_thoughts, "thought"), _count(frontier.hop, "edge")
    caption = f"After {thoughts}; candidates are {edges} from the root. "
    if any(node.value is not None for node in frontier.nodes):
        caption += f"The names of all candidates together have probability {frontier.mass:.3f}."
    else:
        caption += "No node is that far from it."
    return markup.html_table(caption, headers, rows)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
