"""*Data set*: answers after k thoughts and effects of changes over many problems, with intervals."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import gradio as gr

from coconut_ds.evaluation.statistics import Mean
from serve.app import figures, markup
from serve.app.events import ComponentUpdates, on
from serve.app.measures import FEWEST, MAX_MEASURED, PARTS, Measuring, measure_data
from serve.app.question import Bar
from serve.app.studio import Studio, whole_number
from serve.app.words import words_of

SHOWS = (
    "Means over the first problems of the file chosen above, with 95 % intervals that treat the problems as drawn at "
    "random from many like them. They say nothing about another training of the same model. A probe that finds a label "
    "says that it is there, not that the model uses it."
)
MAX_DRAWS = 8


@dataclass(frozen=True)
class DataSetPage:
    """What other pages use of it."""

    run: gr.Button
    kept: gr.State


def build(studio: Studio, bar: Bar) -> DataSetPage:
    """Makes the page."""
    gr.HTML(markup.hint(SHOWS))
    parts = gr.CheckboxGroup(
        [(words, name) for name, words in PARTS.items()], value=["sweep", "effects"], label="Measure", elem_id="parts"
    )
    with gr.Row():
        count = gr.Slider(10, MAX_MEASURED, value=100, step=10, label="Problems", elem_id="count", min_width=230)
        draws = gr.Slider(1, MAX_DRAWS, value=2, step=1, label="Draws of noise and donors, a problem", min_width=230)
    with gr.Row():
        run = gr.Button("Measure", variant="primary", elem_id="run-dataset", min_width=120)
        cancel = gr.Button("Cancel", elem_id="cancel-dataset", min_width=120)
    message = gr.HTML(elem_id="dataset-message", elem_classes="message")
    state = gr.HTML(markup.empty("Press Measure: results come here, part by part."), elem_id="dataset-state")
    swept = gr.Plot(label="Answers after k thoughts", visible=False, elem_id="dataset-sweep")
    changed = gr.Plot(label="Changed thoughts: answers that stay", visible=False, elem_id="dataset-effects")
    probed = gr.Plot(label="What a linear probe finds", visible=False, elem_id="dataset-probes")
    with gr.Row(visible=False) as graphs:
        first, last, heights = (
            gr.Plot(label=name, min_width=300) for name in ("Fewest thoughts", "All thoughts", "Height")
        )
    table = gr.HTML(elem_id="dataset-table")
    kept = gr.State(time_to_live=3600)

    async def start(
        model: str, file: str | None, n_thoughts: float, parts: list[str], count: float, draws: float
    ) -> AsyncGenerator[ComponentUpdates, None]:
        thoughts = whole_number("thoughts", n_thoughts, 0, studio.max_thoughts)
        numbers = whole_number("problems", count, FEWEST, MAX_MEASURED), whole_number("draws", draws, 1, MAX_DRAWS)
        yield {swept: _hidden(), changed: _hidden(), probed: _hidden(), graphs: _hidden(), table: "", kept: None}
        async for step in measure_data(studio, model, file or "", numbers[0], parts, thoughts, numbers[1]):
            if isinstance(step, tuple):
                yield {state: markup.progress(*step)}
            else:
                yield {**show(step), kept: step}
        yield {state: markup.finding("Done.")}

    def show(made: Measuring) -> ComponentUpdates:
        update: ComponentUpdates = {table: _tables(made)}
        if made.points:
            update[swept] = gr.update(value=figures.sweep_figure(made.points), visible=True)
        if made.effects:
            update[changed] = gr.update(value=figures.effects_figure(made.effects), visible=True)
        if made.probes:
            update[probed] = gr.update(value=figures.probes(made.probes), visible=True)
        if made.parallelism:
            update[graphs] = gr.update(visible=True)
            update[first] = figures.parallelism_figure(made.parallelism[0])
            update[last] = figures.parallelism_figure(made.parallelism[-1])
            update[heights] = figures.heights(made.heights, "shortest")
        return update

    inputs = [bar.model, bar.file, bar.thoughts, parts, count, draws]
    outputs = [state, swept, changed, probed, graphs, first, last, heights, table, kept]
    running = on(run.click, start, inputs, outputs, message, concurrency_limit=2, concurrency_id="dataset")

    async def stopped() -> AsyncGenerator[ComponentUpdates, None]:
        yield {state: markup.finding("Cancelled; what was measured before stays.")}

    on(cancel.click, stopped, [], [state], message, cancels=[running], concurrency_id="bar", concurrency_limit=16)
    return DataSetPage(run, kept)


def _hidden() -> dict[str, object]:
    return gr.update(visible=False)


def _tables(made: Measuring) -> str:
    found = ""
    if made.points:
        rows = [[str(p.num_thoughts), _share(p.right), _share(p.forced_right)] for p in made.points]
        caption = f"Share of right answers after k thoughts, {made.num_problems} problems"
        found += markup.html_table(caption, ["k", "by itself", "forced at once"], rows)
    if made.effects:
        rows = [
            [
                words_of(one.name),
                str(one.thought),
                _share(one.kept),
                _share(one.became_donors),
                _number(one.change),
                _share(one.right),
            ]
            for one in made.effects
        ]
        headers = ["change", "thought", "stay", "become the donor's", "log p of the old text", "right"]
        found += markup.html_table("Changed thoughts", headers, rows)
    if made.probes:
        rows = [
            [one.label, one.state, _share(one.probe), _share(one.shuffled), f"{one.majority:.0%}", _share(one.lens)]
            for one in made.probes
        ]
        headers = ["label", "state", "probe", "labels shuffled", "commonest", "model's own head"]
        caption = f"Linear probes, fit on {made.probes[0].num_fit} problems, scored on {made.probes[0].num_scored}"
        found += markup.html_table(caption, headers, rows)
    return found


def _share(mean: Mean | None) -> str:
    return "–" if mean is None else f"{mean.estimate:.0%} ({mean.low:.0%} to {mean.high:.0%})"


def _number(mean: Mean) -> str:
    return f"{mean.estimate:+.2f} ({mean.low:+.2f} to {mean.high:+.2f})"
