"""The bar above all pages, which selects the checkpoint, the question and the number of thoughts."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from serve.app import markup
from serve.app.checkpoint_list import choices, facts, thoughts_label
from serve.app.events import ComponentUpdates, on
from serve.app.outdated import CHANGED
from serve.app.problems import ProblemFile
from serve.app.studio import MAX_CHARACTERS, Studio, whole_number


@dataclass(frozen=True)
class Bar:
    """The components of the bar."""

    model: gr.Dropdown
    facts: gr.HTML
    file: gr.Dropdown
    number: gr.Number
    """Index of the problem in the file."""
    question: gr.Textbox
    thoughts: gr.Slider
    message: gr.HTML

    @property
    def question_inputs(self) -> list[Any]:
        """The inputs of ``Studio.check_question``."""
        return [self.model, self.file, self.question, self.thoughts]

    def showing_model(self, studio: Studio, model: str, thoughts: int | None = None) -> ComponentUpdates:
        """Updates that show a checkpoint; ``thoughts``: number of thoughts, None: the checkpoint's number."""
        checkpoint = studio.checkpoints[model]
        count = checkpoint.card.num_latents if thoughts is None else thoughts
        return {
            self.facts: markup.fact(facts(checkpoint)),
            self.thoughts: gr.update(value=count, label=thoughts_label(checkpoint.card)),
        }

    def showing_problem(self, file: ProblemFile, place: int) -> ComponentUpdates:
        """Updates that show a problem of a file."""
        return {
            self.number: gr.update(value=place, label=_number_label(file.problems)),
            self.question: file.problems[place].question[:MAX_CHARACTERS],
        }


def build(studio: Studio) -> Bar:
    """Creates the bar."""
    model = studio.checkpoints.first_thinking
    file = studio.file_of.get(model) or next(iter(studio.files), None)
    problems = studio.files[file].problems if file is not None else ()
    card = studio.card(model)
    with gr.Group():
        with gr.Row():
            models = gr.Dropdown(
                choices(studio.checkpoints),
                value=model,
                label="Checkpoint (★ best of its run)",
                elem_id="model",
                scale=3,
                min_width=230,
            )
            thoughts = gr.Slider(
                0,
                studio.max_thoughts,
                value=card.num_latents,
                step=1,
                label=thoughts_label(card),
                elem_id="thoughts",
                scale=2,
                min_width=230,
            )
        shown = gr.HTML(markup.fact(facts(studio.checkpoints[model])), elem_id="model-facts")
        with gr.Row():
            files = gr.Dropdown(
                list(studio.files), value=file, label="Problems", elem_id="file", scale=3, min_width=230
            )
            number = gr.Number(0, label=_number_label(problems), elem_id="number", scale=1, min_width=110)
            next_button = gr.Button("Next problem", elem_id="next", size="md", scale=0, min_width=130)
        question = gr.Textbox(
            problems[0].question if problems else "",
            label="Question",
            lines=2,
            max_lines=6,
            placeholder="Type a question like those in the model's training data, or select a problem above",
            elem_id="question",
        )
    message = gr.HTML(elem_id="bar-message", elem_classes="message")
    bar = Bar(models, shown, files, number, question, thoughts, message)
    _connect(studio, bar, next_button)
    return bar


def _connect(studio: Studio, bar: Bar, next_button: gr.Button) -> None:
    async def on_model(model: str) -> AsyncGenerator[ComponentUpdates, None]:
        yield bar.showing_model(studio, model)
        own = studio.file_of.get(model)
        if own is not None:
            yield {bar.file: own, **bar.showing_problem(studio.files[own], 0)}

    async def on_file(file: str | None) -> AsyncGenerator[ComponentUpdates, None]:
        chosen = studio.file(file)
        if chosen is not None:
            yield bar.showing_problem(chosen, 0)

    async def on_number(file: str | None, number: float | None) -> AsyncGenerator[ComponentUpdates, None]:
        chosen = studio.file(file)
        if chosen is not None:
            last = len(chosen.problems) - 1
            yield bar.showing_problem(chosen, whole_number("problem number", number, 0, last))

    async def on_next(file: str | None, number: float | None) -> AsyncGenerator[ComponentUpdates, None]:
        chosen = studio.file(file)
        if chosen is not None:
            place = int(number) + 1 if isinstance(number, (int, float)) and number >= 0 else 0
            yield bar.showing_problem(chosen, place if place < len(chosen.problems) else 0)

    outputs = [bar.thoughts, bar.facts, bar.file, bar.number, bar.question]
    options: dict[str, Any] = {"concurrency_id": "bar", "concurrency_limit": 16, "trigger_mode": "always_last"}
    on(bar.model.input, on_model, [bar.model], outputs, bar.message, **options)
    on(bar.file.input, on_file, [bar.file], outputs, bar.message, **options)
    on(bar.number.submit, on_number, [bar.file, bar.number], outputs, bar.message, **options)
    on(bar.number.blur, on_number, [bar.file, bar.number], outputs, bar.message, **options)
    on(next_button.click, on_next, [bar.file, bar.number], outputs, bar.message, **options)
    for one in bar.question_inputs:
        one.change(None, bar.question_inputs, [], js=CHANGED, show_progress="hidden")


def _number_label(problems: Any) -> str:
    return f"Problem number (0 to {len(problems) - 1:,})" if problems else "Problem number"
