"""The *Think* page: answers a question and decodes each thought."""

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import gradio as gr

from coconut_ds.probing.answers import AnswerAfter
from coconut_ds.probing.trace import ThoughtTrace
from serve.app import markup, thought_figures
from serve.app.empty import GROUP, emptied, figure
from serve.app.events import ComponentUpdates, on
from serve.app.measures import answers_by_thoughts
from serve.app.outdated import asking
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
    "The answer if thinking ends after k thoughts. With fewer thoughts than in its training, a model may write the "
    "remaining steps as text and be right for that reason. The forced answer follows the thoughts directly, so no step "
    "is written before it."
)
START = "Press Think to see the answer and the figures here."
CHANGED = "The question or a setting has changed since the last answer. Press Think to answer it."
SHOWN_EVERY_S = 0.1
"""Shortest time between two updates of an answer that is being generated: each takes the browser some milliseconds."""
WIDTH = 300
"""Pixels. Figures with less horizontal space than this are placed below each other."""


@dataclass(frozen=True)
class ThinkPage:
    """The page's components. Other pages use ``run``, ``follow`` and ``kept``."""

    run: gr.Button
    follow: gr.Textbox
    message: gr.HTML
    answer: gr.HTML
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


_Results = tuple[gr.Plot, gr.Plot, gr.Plot, gr.Plot, gr.Plot, gr.Plot, gr.Plot, gr.HTML, gr.HTML]


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
    gr.HTML(markup.empty(CHANGED), elem_classes="instead-think")
    with gr.Column(elem_classes="of-think"):
        answer = gr.HTML(markup.empty(START), elem_id="think-answer")
        results = _result_components()
    return ThinkPage(run, follow, message, answer, *results, gr.State(time_to_live=3600))


def _result_components() -> _Results:
    """The components from ``ThinkPage.decoded`` on, without ``kept``."""
    with gr.Column(elem_classes=[GROUP, "waits-for-answer"]):
        decoded = figure("Decoded thoughts", "think-decoded", ["wide"])
        with gr.Column(elem_classes=GROUP):
            gr.HTML(markup.hint(LENS))
            layers = figure("Thoughts decoded at each layer", "think-layers", ["wide"])
        with gr.Row(elem_classes=GROUP):
            norms = figure("Norm", "think-norms", min_width=WIDTH)
            entropies = figure("Entropy of the decoded tokens", "think-entropies", min_width=WIDTH)
            cosines = figure("Direction", "think-cosines", min_width=WIDTH)
        followed = figure("Followed tokens", "think-followed")
        gr.HTML(markup.hint(AFTER))
        with gr.Row(elem_classes="dims"):
            after = figure("Probability after k thoughts", "think-after", min_width=WIDTH)
            with gr.Column(min_width=WIDTH):
                after_table = gr.HTML(elem_id="think-after-table")
        with gr.Accordion("Table of all thoughts", open=False):
            table = gr.HTML()
    return decoded, layers, norms, entropies, cosines, followed, after, after_table, table


def _connect(studio: Studio, bar: Bar, page: ThinkPage) -> None:
    async def think(
        model: str, file: str | None, question: str, n_thoughts: float, follow: str
    ) -> AsyncGenerator[ComponentUpdates, None]:
        checked = studio.check_question(model, file, question, n_thoughts)
        tokens = followed_tokens(follow)
        ended: list[Choice] = []
        async for html in _streamed_answer(studio, checked, ended):
            yield {page.answer: html}
        trace = await studio.trace(checked, ended[0], tokens)
        result = ThinkResult(model, trace)
        is_right, unknown = studio.is_right(checked, trace.text), await studio.unknown_places(checked)
        yield {
            page.answer: markup.answer(trace.answer, trace.text, checked.answer, is_right)
            + markup.unknown(checked.question, unknown),
            # Without the other figures, so that the browser paints this one first.
            page.decoded: thought_figures.decoded_figure(trace),
            page.after_table: markup.busy("Answering after fewer thoughts …"),
        }
        yield {
            **_figures(page, trace),
            page.table: _thoughts_table(trace),
            page.kept: result,
        }
        answers = await answers_by_thoughts(studio, checked)
        yield {
            page.after: thought_figures.answers_figure(answers) if checked.n_thoughts else None,
            page.after_table: _why_right(answers) + _answers_table(answers),
            page.kept: replace(result, answers=tuple(answers)),
        }

    figures = (page.decoded, page.layers, page.norms, page.entropies, page.cosines, page.followed, page.after)
    outputs = [page.answer, *figures, page.after_table, page.table, page.kept]
    on_error = {page.answer: markup.empty(START), **emptied(*figures), page.kept: None}
    for trigger in (page.run.click, bar.question.submit):
        on(
            *(trigger, think, [*bar.question_inputs, page.follow], outputs, page.message),
            on_error=on_error,
            js=asking("think"),
        )


def _figures(page: ThinkPage, trace: ThoughtTrace) -> ComponentUpdates:
    """Updates that show all figures of the thoughts but the first one; without thoughts, most have nothing to show."""
    followed = {page.followed: thought_figures.followed_figure(trace)}
    if not trace.thoughts:
        return {**emptied(page.layers, page.norms, page.entropies, page.cosines), **followed}
    return {
        page.layers: thought_figures.layers_figure(trace),
        page.norms: thought_figures.norms_figure(trace),
        page.entropies: thought_figures.entropies_figure(trace),
        page.cosines: thought_figures.cosines_figure(trace),
        **followed,
    }


async def _streamed_answer(studio: Studio, checked: CheckedQuestion, ended: list[Choice]) -> AsyncGenerator[str, None]:
    """Yields HTML of the answer while it is generated; appends the complete answer to ``ended``."""
    done, text, shown_at = 0, "", time.monotonic()
    yield markup.thinking(0, checked.n_thoughts, "")
    async with studio.answering(checked) as deltas:
        async for delta in deltas:
            done += delta.thought is not None
            text += delta.text
            if delta.choice is not None:
                ended.append(delta.choice)
            elif time.monotonic() - shown_at >= SHOWN_EVERY_S:
                yield markup.thinking(done, checked.n_thoughts, text)
                shown_at = time.monotonic()


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


def _why_right(answers: Sequence[AnswerAfter]) -> str:
    """What the answer without thoughts says about the need for thoughts; empty if the right answer is not known."""
    first = answers[0]
    if first.is_right is None or len(answers) == 1:
        return ""
    if not first.is_right:
        return markup.finding("Without thoughts, the model answers wrongly.")
    if first.is_forced_right:
        return markup.finding(
            "Right without thoughts, even as a forced answer, so this problem does not show that thoughts are needed."
        )
    if "\n" in first.text.strip():
        return markup.finding(
            "Right without thoughts because the model then writes the steps as text; its forced answer is wrong."
        )
    return markup.finding("Right without thoughts in the generated text, but not as a forced answer.")


def _answers_table(answers: Sequence[AnswerAfter]) -> str:
    marks = {None: "", True: " ✓", False: " ✗"}
    rows = [
        [
            str(one.num_thoughts),
            markup.one_line(one.answer or "(none)") + marks[one.is_right],
            markup.one_line(one.forced or "(none)") + marks[one.is_forced_right],
            f"{one.probability:.0%}",
            markup.one_line(one.text),
        ]
        for one in answers
    ]
    headers = ["thoughts", "answer in the text", "forced answer", "probability of the text", "generated text"]
    return markup.html_table("Answers after k thoughts", headers, rows)
