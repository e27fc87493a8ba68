"""*Search*: the problem's graph, each candidate coloured by the value that the model gives it after k thoughts."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import gradio as gr

from coconut_ds.probing.graph_values import Frontier
from serve.app import markup
from serve.app.events import ComponentUpdates, on
from serve.app.graph_drawing import graph_svg
from serve.app.measures import Searching, search
from serve.app.question import Bar
from serve.app.studio import Studio

SHOWS = (
    "After k thoughts the model is made to write on; the value of a node is the probability of its name there, "
    "normalised over the candidates, the nodes at that distance from the root. High values on several nodes look like "
    "search, but the same picture has been found in models that only pause: compare one."
)


@dataclass(frozen=True)
class SearchPage:
    """What other pages use of it."""

    run: gr.Button
    kept: gr.State


def build(studio: Studio, bar: Bar) -> SearchPage:
    """Makes the page."""
    gr.HTML(markup.hint(SHOWS))
    with gr.Row():
        run = gr.Button("Draw the graph", variant="primary", elem_id="run-search", scale=1, min_width=140)
        place = gr.Slider(
            0, 1, value=0, step=1, label="After k thoughts", visible=False, elem_id="after", scale=3, min_width=230
        )
    message = gr.HTML(elem_id="search-message", elem_classes="message")
    picture = gr.HTML(markup.empty("Choose a graph problem and draw it."), elem_id="search-graph")
    table = gr.HTML()
    kept = gr.State(time_to_live=3600)

    async def draw(
        model: str, file: str | None, question: str, n_thoughts: float
    ) -> AsyncGenerator[ComponentUpdates, None]:
        asked = studio.asked(model, file, question, n_thoughts)
        yield {picture: markup.empty("Asking for the value of each node …")}
        made = await search(studio, asked)
        numbers = [one.num_thoughts for one in made.view.after]
        last = len(numbers) - 1
        yield {
            place: gr.update(
                minimum=0, maximum=max(last, 1), value=last, visible=last > 0, label=_label(made.view.after[last])
            ),
            picture: graph_svg(made.view, last),
            table: _table(made.view.after[last]),
            kept: made,
        }

    async def move(made: Searching | None, where: float) -> AsyncGenerator[ComponentUpdates, None]:
        if made is not None:
            at = min(max(int(where), 0), len(made.view.after) - 1)
            frontier = made.view.after[at]
            yield {
                picture: graph_svg(made.view, at),
                table: _table(frontier),
                place: gr.update(label=_label(frontier)),
            }

    on(run.click, draw, bar.asked, [place, picture, table, kept], message)
    on(
        place.input,
        move,
        [kept, place],
        [place, picture, table],
        message,
        concurrency_id="bar",
        concurrency_limit=16,
        trigger_mode="always_last",
    )
    return SearchPage(run, kept)


def _label(frontier: Frontier) -> str:
    return f"After {frontier.num_thoughts} thoughts: candidates {frontier.hop} edges from the root"


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
    share = f"the candidates' names together have a probability of {frontier.mass:.3f}"
    return markup.html_table(f"After {frontier.num_thoughts} thoughts; {share}", headers, rows)
