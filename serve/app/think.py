"""The *Think* page: answers a question and decodes each thought."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import gradio as gr

from coconut_ds.probing.answers import AnswerAfter
from coconut_ds.probing.trace import ThoughtTrace
from serve.app import markup, thought_figures
from serve.app.events import ComponentUpdates, on
from serve.app.measures import answers_by_thoughts
from serve.app.question import Bar
from serve.app.results import ThinkResult
from serve.app.studio import CheckedQuestion, Studio, followed_tokens
from serve.requests.continuations import Choice

INTRODUCTION = (
    "Each thought is decoded with the model's own output head: the figures show the most likely tokens. This is a "
    "projection, not the meaning of the thought: a thought may contain what the head does not show, and the model may "
    "not use what the head shows. Test that on the Intervene page."
)
LENS = (
    "The state after each layer, decoded with the same head, with the final norm applied once. Early layers were not "
    "trained to be decoded this way."
)
AFTER = (
    "The answer if thinking is ended early. If it is already right without thoughts, the problem did not need thoughts."
)
WIDTH = 300
"""Pixels. Figures with less horizontal space than this are placed below each other."""


@dataclass(frozen=True)
class ThinkPage:
    """The page's components. Other pages use ``run``, ``follow`` and ``kept``."""

    run: gr.Button
    follow: gr.Textbox
    message: gr.HTML
    answer: gr.HTML
    results: gr.Column
    decoded: gr.Plot
    layers: gr.Plot
    norms: gr.Plot
    entropies: gr.Plot
    cosines: gr.Plot
    followed: gr.Plot
    after: gr.Plot
    after_table: gr.HTML
    table: gr.HTML
    kept: gr.State
    """The last result, a ``ThinkResult``."""


def build(studio: Studio, bar: Bar) -> ThinkPage:
    """Creates the page."""
    page = _components()
    _connect(studio, bar, page)
    return page


def _components() -> ThinkPage:
    gr.HTML(markup.hint(INTRODUCTION))
    with gr.Row(equal_height=False):
        run = gr.Button("Think", variant="primary", elem_id="run-think", scale=1, min_width=120)
        follow = gr.Textbox(
            label="Tokens to follow, separated by commas (optional; e.g. a right and a wrong answer)",
            elem_id="follow",
            scale=3,
            min_width=230,
        )
    message = gr.HTML(elem_id="think-message", elem_classes="message")
    answer = gr.HTML(markup.empty("Press Think to see the answer and the figures here."), elem_id="think-answer")
    with gr.Column(visible=False) as results:
        decoded = gr.Plot(label="Decoded thoughts", elem_id="think-decoded")
        gr.HTML(markup.hint(LENS))
        layers = gr.Plot(label="Thoughts decoded at each layer", elem_id="think-layers")
        with gr.Row():
            norms, entropies, cosines = (
                gr.Plot(label=name, min_width=WIDTH) for name in ("Norm", "Entropy of the decoded tokens", "Direction")
            )
        followed = gr.Plot(label="Followed tokens", visible=False, elem_id="think-followed")
        gr.HTML(markup.hint(AFTER))
        with gr.Row():
            after = gr.Plot(label="Answer after k thoughts", min_width=WIDTH, elem_id="think-after")
            after_table = gr.HTML(min_width=WIDTH, elem_id="think-after-table")
        with gr.Accordion("Table of all thoughts", open=False):
            table = gr.HTML()
    kept = gr.State(time_to_live=3600)
    figures = (decoded, layers, norms, entropies, cosines, followed, after)
    return ThinkPage(run, follow, message, answer, results, *figures, after_table, table, kept)


def _connect(studio: Studio, bar: Bar, page: ThinkPage) -> None:
    async def think(
        model: str, file: str | None, question: str, n_thoughts: float, follow: str
    ) -> AsyncGenerator[ComponentUpdates, None]:
        checked = studio.check_question(model, file, question, n_thoughts)
        tokens = followed_tokens(follow)
        # Shown before its figures have values: Gradio may lose a figure that is created together with its column.
        yield {page.results: gr.update(visible=True)}
        ended: list[Choice] = []
        async for html in _streamed_answer(studio, checked, ended):
            yield {page.answer: html}
        trace = await studio.trace(checked, ended[0], tokens)
        result, followed = ThinkResult(model, trace), thought_figures.followed_figure(trace)
        is_right, unknown = studio.is_right(checked, trace.text), await studio.unknown_places(checked)
        yield {
            page.answer: markup.answer(trace.answer, trace.text, checked.answer, is_right)
            + markup.unknown(checked.question, unknown),
            page.decoded: thought_figures.decoded_figure(trace),
            page.layers: gr.update(value=thought_figures.layers_figure(trace), visible=bool(trace.thoughts)),
            page.followed: gr.update(value=followed, visible=followed is not None),
            page.table: _thoughts_table(trace),
            page.kept: result,
        }
        yield {
            page.norms: thought_figures.norms_figure(trace),
            page.entropies: thought_figures.entropies_figure(trace),
            page.cosines: thought_figures.cosines_figure(trace),
        }
        answers = await answers_by_thoughts(studio, checked)
        yield {
            page.after: thought_figures.answers_figure(answers),
            page.after_table: _answers_table(answers),
            page.kept: replace(result, answers=tuple(answers)),
        }

    figures = (page.decoded, page.layers, page.norms, page.entropies, page.cosines, page.followed, page.after)
    outputs = [page.answer, page.results, *figures, page.after_table, page.table, page.kept]
    for trigger in (page.run.click, bar.question.submit):
        on(trigger, think, [*bar.question_inputs, page.follow], outputs, page.message)


async def _streamed_answer(studio: Studio, checked: CheckedQuestion, ended: list[Choice]) -> AsyncGenerator[str, None]:
    """Yields HTML of the answer while it is generated; appends the complete answer to ``ended``."""
    done, text = 0, ""
    yield markup.thinking(0, checked.n_thoughts, "")
    async with studio.answering(checked) as deltas:
        async for delta in deltas:
            done += delta.thought is not None
            text += delta.text
            yield markup.thinking(done, checked.n_thoughts, text)
            if delta.choice is not None:
                ended.append(delta.choice)


def _thoughts_table(trace: ThoughtTrace) -> str:
    """The numbers of the figures as a table, for visitors who cannot see the figures."""
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
    headers = ["thought", "decoded", "entropy", "norm", "cosine to previous", "nearest token embedding (cosine)"]
    return markup.html_table("Thoughts", headers, rows)


def _answers_table(answers: Sequence[AnswerAfter]) -> str:
    marks = {None: "", True: " ✓", False: " ✗"}
    rows = [
        [str(one.num_thoughts), (one.answer or "(none)") + marks[one.is_right], f"{one.probability:.2f}", one.text]
        for one in answers
    ]
    return markup.html_table("Answer after k thoughts", ["k", "answer", "p(text)", "generated text"], rows)
