"""The *Search* page: the problem's graph, with the value that the model gives to each candidate after k thoughts."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import gradio as gr

from coconut_ds.probing.graph_values import Frontier
from serve.app import markup
from serve.app.events import ComponentUpdates, on
from serve.app.graph_drawing import graph_svg
from serve.app.measures import search_graph
from serve.app.question import Bar
from serve.app.results import SearchResult
from serve.app.studio import Studio

INTRODUCTION = (
    "After k thoughts the model is made to write the next node. The value of a node is the probability of its name, "
    "normalised over the candidates, which are all nodes at that distance from the root. High values on several nodes "
    "look like search, but models that only pause have produced the same picture: compare with such a model."
)


@dataclass(frozen=True)
class SearchPage:
    """The page's components. Other pages use ``run`` and ``kept``."""

    run: gr.Button
    after: gr.Slider
    """Index into ``GraphView.after``."""
    message: gr.HTML
    picture: gr.HTML
    table: gr.HTML
    kept: gr.State
    """The last result, a ``SearchResult``."""


def build(studio: Studio, bar: Bar) -> SearchPage:
    """Creates the page."""
    gr.HTML(markup.hint(INTRODUCTION))
    with gr.Row():
        run = gr.Button("Draw the graph", variant="primary", elem_id="run-search", scale=1, min_width=140)
        after = gr.Slider(
            0, 1, value=0, step=1, label="After k thoughts", visible=False, elem_id="after", scale=3, min_width=230
        )
    message = gr.HTML(elem_id="search-message", elem_classes="message")
    picture = gr.HTML(markup.empty("Select a graph problem, then press Draw the graph."), elem_id="search-graph")
    page = SearchPage(run, after, message, picture, gr.HTML(), gr.State(time_to_live=3600))
    _connect(studio, bar, page)
    return page


def _connect(studio: Studio, bar: Bar, page: SearchPage) -> None:
    async def draw(
        model: str, file: str | None, question: str, n_thoughts: float
    ) -> AsyncGenerator[ComponentUpdates, None]:
        checked = studio.check_question(model, file, question, n_thoughts)
        yield {page.picture: markup.empty("Computing the value of each node …")}
        result = await search_graph(studio, checked)
        last = len(result.view.after) - 1
        frontier = result.view.after[last]
        slider = gr.update(minimum=0, maximum=max(last, 1), value=last, visible=last > 0, label=_label(frontier))
        yield {
            page.after: slider,
            page.picture: graph_svg(result.view, last),
            page.table: _table(frontier),
            page.kept: result,
        }

    async def move(result: SearchResult | None, index: float) -> AsyncGenerator[ComponentUpdates, None]:
        if result is not None:
            place = min(max(int(index), 0), len(result.view.after) - 1)
            frontier = result.view.after[place]
            yield {
                page.picture: graph_svg(result.view, place),
                page.table: _table(frontier),
                page.after: gr.update(label=_label(frontier)),
            }

    shown = [page.after, page.picture, page.table]
    on(page.run.click, draw, bar.question_inputs, [*shown, page.kept], page.message)
    options = {"concurrency_id": "bar", "concurrency_limit": 16, "trigger_mode": "always_last"}
    on(page.after.input, move, [page.kept, page.after], shown, page.message, **options)


def _label(frontier: Frontier) -> str:
    return f"After {frontier.num_thoughts} thoughts; candidates are {frontier.hop} edges from the root"


def _table(frontier: Frontier) -> str:
    rows = [
        [
            markup.shown_token(node.name),
            "–" if node.value is None else f"{node.value:.1%}",
            f"{node.probability:.4f}",
            "not reached" if node.hop is None else str(node.hop),
            f"{node.height_shortest} / {node.height_longest}",
            "yes" if node.is_correct else "no",
        ]
        for node in frontier.nodes
    ]
    headers = ["node", "value", "probability", "edges from root", "height: shortest / longest", "leads to target"]
    total = f"total probability of the candidates' names: {frontier.mass:.3f}"
    return markup.html_table(f"After {frontier.num_thoughts} thoughts; {total}", headers, rows)
