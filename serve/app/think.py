"""*Think*: a question thought through; each thought decoded."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from coconut_ds.formats import is_correct
from coconut_ds.probing.answers import AnswerAfter
from coconut_ds.probing.trace import ThoughtTrace
from serve.app import figures, markup
from serve.app.events import ComponentUpdates, on
from serve.app.measures import ThinkResult, answers
from serve.app.question import Bar
from serve.app.studio import Asked, Studio, followed_tokens
from serve.service import Choice

SHOWS = (
    "Each thought through the model's own head: the words nearest to it. A projection, not its meaning: a thought may "
    "hold what the head does not show, and what it shows need not be used. Test that under Intervene."
)
LENS = "The same head at every layer, the final norm applied once. Early layers were never trained to be read that way."
AFTER = "The answer when thinking is ended early. Where it is right without thoughts, they were not needed for it."
WIDTH = 300
"""Pixels below which figures stand one under the other."""


@dataclass(frozen=True)
class ThinkPage:
    """What other pages use of it."""

    run: gr.Button
    follow: gr.Textbox
    kept: gr.State


def build(studio: Studio, bar: Bar) -> ThinkPage:
    """Makes the page."""
    gr.HTML(markup.hint(SHOWS))
    with gr.Row(equal_height=False):
        run = gr.Button("Think", variant="primary", elem_id="run-think", scale=1, min_width=120)
        follow = gr.Textbox(
            label="Tokens to follow, with commas between (optional: a target and a foil)",
            elem_id="follow",
            scale=3,
            min_width=230,
        )
    message = gr.HTML(elem_id="think-message", elem_classes="message")
    answer = gr.HTML(markup.empty("Press Think: answer and pictures come here."), elem_id="think-answer")
    with gr.Column(visible=False) as results:
        decoded = gr.Plot(label="Thoughts, decoded", elem_id="think-decoded")
        gr.HTML(markup.hint(LENS))
        layers = gr.Plot(label="Layers and thoughts", elem_id="think-layers")
        with gr.Row():
            sizes, entropies, cosines = (
                gr.Plot(label=name, min_width=WIDTH) for name in ("Norm", "Entropy of what the head shows", "Direction")
            )
        followed = gr.Plot(label="Followed tokens", visible=False, elem_id="think-followed")
        gr.HTML(markup.hint(AFTER))
        with gr.Row():
            after = gr.Plot(label="Answer after k thoughts", min_width=WIDTH, elem_id="think-after")
            after_table = gr.HTML(min_width=WIDTH)
        with gr.Accordion("The thoughts as a table", open=False):
            table = gr.HTML()
    kept = gr.State(time_to_live=3600)

    async def think(
        model: str, file: str | None, question: str, n_thoughts: float, follow: str
    ) -> AsyncGenerator[ComponentUpdates, None]:
        asked = studio.asked(model, file, question, n_thoughts)
        tokens = followed_tokens(follow)
        # Shown before they have values: a figure that is made in the same moment as its column may be lost.
        yield {results: gr.update(visible=True)}
        ended: list[Choice] = []
        async for html in _answering(studio, asked, ended):
            yield {answer: html}
        trace = await studio.trace(asked, ended[0], tokens)
        made, chosen = ThinkResult(model, trace), figures.followed(trace)
        yield {
            answer: _answer(studio, asked, trace),
            decoded: figures.decoded(trace),
            layers: gr.update(value=figures.layers(trace), visible=bool(trace.thoughts)),
            followed: gr.update(value=chosen, visible=chosen is not None),
            table: thoughts_table(trace),
            kept: made,
        }
        yield {
            sizes: figures.sizes(trace),
            entropies: figures.entropies(trace),
            cosines: figures.cosines(trace),
        }
        found = await answers(studio, asked)
        yield {after: figures.after(found), after_table: _after(found), kept: replace(made, answers=tuple(found))}

    outputs: list[Any] = [answer, results, decoded, layers, sizes, entropies, cosines, followed]
    outputs += [after, after_table, table, kept]
    on(run.click, think, [*bar.asked, follow], outputs, message)
    on(bar.question.submit, think, [*bar.asked, follow], outputs, message)
    return ThinkPage(run, follow, kept)


async def _answering(studio: Studio, asked: Asked, ended: list[Choice]) -> AsyncGenerator[str, None]:
    """The answer on its way; once it is whole, it stands in ``ended``."""
    done, text = 0, ""
    yield markup.thinking(0, asked.n_thoughts, "")
    async with studio.answering(asked) as pieces:
        async for piece in pieces:
            done += piece.thought is not None
            text += piece.text
            yield markup.thinking(done, asked.n_thoughts, text)
            if piece.choice is not None:
                ended.append(piece.choice)


def _answer(studio: Studio, asked: Asked, trace: ThoughtTrace) -> str:
    right = None
    if asked.answer is not None:
        right = is_correct(trace.text, asked.answer, studio.card(asked.model).text_format)
    return markup.answer(trace.answer, trace.text, asked.answer, right)


def thoughts_table(trace: ThoughtTrace) -> str:
    """The decoded thoughts in words, for those who cannot use the picture."""
    rows = []
    for one in trace.thoughts:
        pairs = zip(one.decoded.tokens, one.decoded.probabilities, strict=True)
        near = one.nearest[0]
        rows.append(
            [
                f"{one.number}",
                ", ".join(f"{markup.shown_token(token)} {share:.0%}" for token, share in pairs),
                f"{one.decoded.entropy:.2f}",
                f"{one.norm:.1f}",
                "" if one.cosine_to_previous is None else f"{one.cosine_to_previous:.2f}",
                f"{markup.shown_token(near.token)} {near.cosine:.2f}",
            ]
        )
    headers = ["thought", "decoded", "entropy", "norm", "cosine to previous", "nearest embedding"]
    return markup.html_table("Thoughts", headers, rows)


def _after(found: Sequence[AnswerAfter]) -> str:
    marks = {None: "", True: " ✓", False: " ✗"}
    rows = [
        [str(one.num_thoughts), (one.answer or "(none)") + marks[one.is_right], f"{one.probability:.2f}", one.text]
        for one in found
    ]
    return markup.html_table("After k thoughts", ["k", "answer", "p", "text"], rows)
