"""The bar above all pages, which selects the checkpoint, the question and the number of thoughts."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from coconut_ds.methods import METHODS
from coconut_ds.model.card import ModelCard
from serve.app.events import ComponentUpdates, on
from serve.app.problems import ProblemFile
from serve.app.studio import MAX_CHARACTERS, Studio


@dataclass(frozen=True)
class Bar:
    """The components of the bar."""

    model: gr.Dropdown
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


def build(studio: Studio) -> Bar:
    """Creates the bar."""
    model = studio.checkpoints.first_thinking
    file = studio.file_of.get(model) or next(iter(studio.files), None)
    problems = studio.files[file].problems if file is not None else ()
    with gr.Group():
        with gr.Row():
            models = gr.Dropdown(
                studio.checkpoints.names, value=model, label="Checkpoint", elem_id="model", scale=3, min_width=230
            )
            thoughts = gr.Slider(
                0,
                studio.max_thoughts,
                value=studio.card(model).num_latents,
                step=1,
                label=_thoughts_label(studio.card(model)),
                elem_id="thoughts",
                scale=2,
                min_width=230,
            )
        with gr.Row():
            files = gr.Dropdown(
                list(studio.files), value=file, label="Problems", elem_id="file", scale=3, min_width=230
            )
            number = gr.Number(
                0, label=_number_label(problems), precision=0, minimum=0, elem_id="number", scale=1, min_width=110
            )
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
    bar = Bar(models, files, number, question, thoughts, message)
    _connect(studio, bar, next_button)
    return bar


def _connect(studio: Studio, bar: Bar, next_button: gr.Button) -> None:
    async def on_model(model: str) -> AsyncGenerator[ComponentUpdates, None]:
        card = studio.card(model)
        yield {bar.thoughts: gr.update(value=card.num_latents, label=_thoughts_label(card))}
        own = studio.file_of.get(model)
        if own is not None:
            yield {bar.file: own, **_shown(bar, studio.files[own], 0)}

    async def on_file(file: str | None) -> AsyncGenerator[ComponentUpdates, None]:
        chosen = studio.file(file)
        if chosen is not None:
            yield _shown(bar, chosen, 0)

    async def on_number(file: str | None, number: float | None) -> AsyncGenerator[ComponentUpdates, None]:
        chosen = studio.file(file)
        if chosen is not None:
            yield _shown(bar, chosen, int(number or 0))

    async def on_next(file: str | None, number: float | None) -> AsyncGenerator[ComponentUpdates, None]:
        chosen = studio.file(file)
        if chosen is not None:
            yield _shown(bar, chosen, int(number or 0) + 1)

    outputs = [bar.thoughts, bar.file, bar.number, bar.question]
    options: dict[str, Any] = {"concurrency_id": "bar", "concurrency_limit": 16, "trigger_mode": "always_last"}
    on(bar.model.input, on_model, [bar.model], outputs, bar.message, **options)
    on(bar.file.input, on_file, [bar.file], outputs, bar.message, **options)
    on(bar.number.submit, on_number, [bar.file, bar.number], outputs, bar.message, **options)
    on(bar.number.blur, on_number, [bar.file, bar.number], outputs, bar.message, **options)
    on(next_button.click, on_next, [bar.file, bar.number], outputs, bar.message, **options)


def _shown(bar: Bar, file: ProblemFile, number: int) -> ComponentUpdates:
    """Updates that show a problem; numbers after the last problem start again at the first."""
    place = number % len(file.problems)
    return {
        bar.number: gr.update(value=place, label=_number_label(file.problems)),
        bar.question: file.problems[place].question[:MAX_CHARACTERS],
    }


def _number_label(problems: Any) -> str:
    return f"Number, 0 to {len(problems) - 1:,}" if problems else "Number"


def _thoughts_label(card: ModelCard) -> str:
    method = METHODS[card.method]
    if not method.has_latents:
        return f"Thoughts: none ({card.method})"
    return f"{'Pauses' if method.pauses else 'Thoughts'} (trained with {card.num_latents}, {card.method})"
