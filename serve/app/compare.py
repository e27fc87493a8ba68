"""*Compare*: two checkpoints, or two questions, side by side."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from coconut_ds.formats import is_correct
from coconut_ds.methods import METHODS
from coconut_ds.probing.trace import ThoughtTrace
from serve.app import figures, markup
from serve.app.events import ComponentUpdates, on
from serve.app.measures import Comparing
from serve.app.question import Bar
from serve.app.studio import Asked, Studio

SHOWS = (
    "The question above beside another checkpoint, another question, or both. Decoded words that look alike do not "
    "show that two models compute the same, nor does a difference show which thoughts matter."
)


@dataclass(frozen=True)
class ComparePage:
    """What other pages use of it."""

    run: gr.Button
    model: gr.Dropdown
    question: gr.Textbox
    kept: gr.State


def build(studio: Studio, bar: Bar) -> ComparePage:
    """Makes the page."""
    gr.HTML(markup.hint(SHOWS))
    with gr.Row():
        model = gr.Dropdown(
            studio.catalogue.names,
            value=_another(studio),
            label="Other checkpoint",
            elem_id="other-model",
            min_width=230,
        )
        question = gr.Textbox(
            label="Other question (empty: the same)", lines=1, max_lines=4, elem_id="other-question", min_width=230
        )
    run = gr.Button("Compare", variant="primary", elem_id="run-compare")
    message = gr.HTML(elem_id="compare-message", elem_classes="message")
    waiting = gr.HTML(markup.empty("Press Compare: both come here, side by side."), elem_id="compare-state")
    sides: list[list[Any]] = []
    with gr.Row(visible=False) as results:
        for name in ("first", "second"):
            with gr.Column(min_width=320):
                sides.append(
                    [
                        gr.HTML(elem_id=f"compare-{name}"),
                        gr.Plot(label="Thoughts, decoded", elem_id=f"compare-{name}-decoded"),
                        gr.Plot(label="Layers and thoughts"),
                    ]
                )
    table = gr.HTML()
    kept = gr.State(time_to_live=3600)

    async def compare(
        first: str, file: str | None, text: str, n_thoughts: float, second: str, other: str
    ) -> AsyncGenerator[ComponentUpdates, None]:
        asked = [studio.asked(first, file, text, n_thoughts)]
        wanted = n_thoughts if second == first else studio.card(second).num_latents
        asked.append(studio.asked(second, file, other if (other or "").strip() else text, wanted))
        yield {waiting: markup.empty("Thinking twice …"), results: gr.update(visible=True)}
        traces = [await studio.think(one) for one in asked]
        update: ComponentUpdates = {waiting: "", table: _table(traces[0], traces[1])}
        for one, trace, side in zip(asked, traces, sides, strict=True):
            answer, decoded, layers = side
            update |= {answer: _head(studio, one, trace), decoded: figures.decoded(trace)}
            update |= {layers: gr.update(value=figures.layers(trace), visible=bool(trace.thoughts))}
        yield {**update, kept: Comparing((first, second), (traces[0], traces[1]))}

    outputs = [waiting, results, *sides[0], *sides[1], table, kept]
    on(run.click, compare, [*bar.asked, model, question], outputs, message)
    return ComparePage(run, model, question, kept)


def _another(studio: Studio) -> str:
    """A checkpoint of another method than most: one that does not think, where there is one."""
    without = [entry.name for entry in studio.catalogue if not entry.card.num_thoughts]
    pausing = [name for name in without if METHODS[studio.card(name).method].pauses]
    return [*pausing, *without, *studio.catalogue.names][0]


def _head(studio: Studio, asked: Asked, trace: ThoughtTrace) -> str:
    right = None
    if asked.answer is not None:
        right = is_correct(trace.text, asked.answer, studio.card(asked.model).text_format)
    title = f"{asked.model} ({trace.method}, {len(trace.thoughts)} {'pauses' if trace.pauses else 'thoughts'})"
    return markup.title(title, asked.question) + markup.answer(trace.answer, trace.text, asked.answer, right)


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
    headers = ["thought", "first: likeliest", "entropy", "norm", "second: likeliest", "entropy", "norm"]
    return markup.html_table("Side by side", headers, rows)
