"""The *Data set* page: answers after k thoughts, effects of interventions, probes and values over many problems."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component

from coconut_ds.evaluation.statistics import Mean
from serve.app import dataset_figures, markup
from serve.app.empty import GROUP, emptied, figure
from serve.app.events import ComponentUpdates, on
from serve.app.measures import MAX_MEASURED, MIN_MEASURED, PARTS, measure_data_set
from serve.app.outdated import asking
from serve.app.question import Bar
from serve.app.results import DataSetResult
from serve.app.studio import Studio, whole_number
from serve.app.words import CHANGE, words_of

INTRODUCTION = (
    "Means over the first problems of the file selected above, with 95 % confidence intervals that treat the problems "
    "as a random sample of many similar ones. The intervals do not cover variation between training runs. A probe that "
    "finds a label shows that the state contains it, not that the model uses it."
)
START = "Press Measure to see the results of each part here as they are ready."
CHANGED = "The checkpoint, the problems or the thoughts have changed since the last measurement. Press Measure."
MAX_DRAWS_A_PROBLEM = 8
CANCEL_WITHIN_S = 5.0
"""Seconds after which a measurement is reported as cancelled even if its handler has not ended."""


@dataclass(frozen=True)
class DataSetPage:
    """The page's components. Other pages use the inputs and ``kept``."""

    parts: gr.CheckboxGroup
    count: gr.Slider
    draws: gr.Slider
    run: gr.Button
    cancel: gr.Button
    """Shown while a measurement runs."""
    message: gr.HTML
    state: gr.HTML
    results: "_Results"
    kept: gr.State
    """The last result, a ``DataSetResult``, which may be incomplete."""


@dataclass(frozen=True)
class _Results:
    """The components that show the results of each part."""

    sweep: gr.Plot
    effects: gr.Plot
    probes: gr.Plot
    parallelism_first: gr.Plot
    parallelism_last: gr.Plot
    heights: gr.Plot
    table: gr.HTML

    @property
    def all(self) -> tuple[Component, ...]:
        """All of them."""
        figures = (self.sweep, self.effects, self.probes, self.parallelism_first, self.parallelism_last, self.heights)
        return *figures, self.table

    def filled(self, result: DataSetResult) -> ComponentUpdates:
        """Updates that show a result."""
        update: ComponentUpdates = {self.table: _tables(result)}
        if result.points:
            update[self.sweep] = dataset_figures.sweep_figure(result.points)
        if result.effects:
            update[self.effects] = dataset_figures.effects_figure(result.effects)
        if result.probes:
            update[self.probes] = dataset_figures.probes_figure(result.probes)
        if result.parallelism:
            update[self.parallelism_first] = dataset_figures.parallelism_figure(result.parallelism[0])
            update[self.parallelism_last] = dataset_figures.parallelism_figure(result.parallelism[-1])
            update[self.heights] = dataset_figures.heights_figure(result.heights, "shortest")
        return update


@dataclass(eq=False)
class _Run:
    """One measurement that runs on a page."""

    cancelled: bool = False
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    @asynccontextmanager
    async def among(cls, running: list["_Run"]) -> AsyncGenerator["_Run", None]:
        """A measurement that is in the list while it runs."""
        run = cls()
        running.append(run)
        try:
            yield run
        finally:
            running.remove(run)
            run.ended.set()

    async def cancel(self) -> None:
        """Returns once the measurement can no longer update the page."""
        self.cancelled = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), CANCEL_WITHIN_S)


def build(studio: Studio, bar: Bar) -> DataSetPage:
    """Creates the page."""
    page = _components()
    _connect(studio, bar, page)
    return page


def _components() -> DataSetPage:
    gr.HTML(markup.hint(INTRODUCTION))
    parts = gr.CheckboxGroup(
        [(label, name) for name, label in PARTS.items()], value=["sweep", "effects"], label="Measure", elem_id="parts"
    )
    with gr.Row():
        count = gr.Slider(
            10, MAX_MEASURED, value=100, step=10, label="Number of problems", elem_id="count", min_width=230
        )
        draws = gr.Slider(
            1,
            MAX_DRAWS_A_PROBLEM,
            value=2,
            step=1,
            label="Draws per problem (each has new random numbers, or another problem)",
            elem_id="draws-per-problem",
            min_width=230,
        )
    with gr.Row():
        run = gr.Button("Measure", variant="primary", elem_id="run-dataset", min_width=120)
        cancel = gr.Button("Cancel", elem_id="cancel-dataset", min_width=120)
    message = gr.HTML(elem_id="dataset-message", elem_classes="message")
    gr.HTML(markup.empty(CHANGED), elem_classes="instead-dataset")
    with gr.Column(elem_classes="of-dataset"):
        state = gr.HTML(markup.empty(START), elem_id="dataset-state")
        results = _result_components()
    return DataSetPage(parts, count, draws, run, cancel, message, state, results, gr.State(time_to_live=3600))


def _result_components() -> _Results:
    sweep = figure("Right answers after k thoughts", "dataset-sweep")
    effects = figure("Interventions: share of unchanged answers", "dataset-effects", ["wide"])
    probes = figure("Accuracy of linear probes", "dataset-probes", ["wide"])
    with gr.Row(elem_classes=GROUP):
        first, last, heights = (
            figure(name, min_width=300)
            for name in ("Best candidates, fewest thoughts", "Best candidates, all thoughts", "Value by height of node")
        )
    return _Results(sweep, effects, probes, first, last, heights, gr.HTML(elem_id="dataset-table"))


def _connect(studio: Studio, bar: Bar, page: DataSetPage) -> None:
    results = page.results
    # Gradio keeps one list for each open page, and passes this list itself to the handlers.
    runs = gr.State([])

    async def measure(running: list[_Run], *values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        steps = _measurement(studio, *values)
        async with _Run.among(running) as run, aclosing(steps):
            yield {**emptied(*results.all), page.state: markup.progress("Measurement", 0, 0), page.kept: None}
            async for step in steps:
                if run.cancelled:
                    return
                if isinstance(step, tuple):
                    yield {page.state: markup.progress(*step)}
                else:
                    yield {**results.filled(step), page.kept: step}
            yield {page.state: markup.finding("Done.")}

    async def report_cancelled(running: list[_Run]) -> AsyncGenerator[ComponentUpdates, None]:
        # The browser calls this before it sends Gradio's own request to cancel. Progress that is reported between the
        # two would replace the message.
        await asyncio.gather(*(run.cancel() for run in running))
        yield {page.state: markup.finding("Cancelled. The results of completed parts are kept.")}

    inputs = [runs, bar.model, bar.file, bar.thoughts, page.parts, page.count, page.draws]
    outputs = [page.state, *results.all, page.kept]
    running = on(
        *(page.run.click, measure, inputs, outputs, page.message),
        on_error={page.state: markup.empty(START)},
        concurrency_limit=2,
        concurrency_id="dataset",
        js=asking("dataset", "[values[1], values[2], '', values[3]]"),
    )
    options: dict[str, Any] = {"cancels": [running], "concurrency_id": "bar", "concurrency_limit": 16}
    on(page.cancel.click, report_cancelled, [runs], [page.state], page.message, **options)


def _measurement(
    studio: Studio, model: str, file: str | None, n_thoughts: float, parts: list[str], count: float, draws: float
) -> AsyncGenerator[tuple[str, int, int] | DataSetResult, None]:
    """Checks a visitor's inputs and returns the measurement, see ``measure_data_set``.

    Raises:
        DataError: an input is out of range.
    """
    thoughts = whole_number("thoughts", n_thoughts, 0, studio.max_thoughts)
    num_problems = whole_number("problems", count, MIN_MEASURED, MAX_MEASURED)
    num_draws = whole_number("draws", draws, 1, MAX_DRAWS_A_PROBLEM)
    return measure_data_set(studio, model, file or "", num_problems, parts, thoughts, num_draws)


def _tables(result: DataSetResult) -> str:
    found = ""
    if result.points:
        rows = [[str(p.num_thoughts), _share(p.right), _share(p.forced_right)] for p in result.points]
        caption = f"Share of right answers after k thoughts ({result.num_problems} problems)"
        headers = ["thoughts", "answer in the generated text", "forced answer"]
        found += markup.folded("Right answers after k thoughts, as a table", markup.html_table(caption, headers, rows))
    return found + _effect_tables(result) + _probe_tables(result)


def _effect_tables(result: DataSetResult) -> str:
    """One table for each kind of intervention, folded."""
    headers = ["thought", "answer unchanged", "other problem's answer", CHANGE, "right answer"]
    found = ""
    for name in dict.fromkeys(one.name for one in result.effects):
        rows = [
            [str(one.thought), _share(one.kept), _share(one.became_donors), _number(one.change), _share(one.right)]
            for one in result.effects
            if one.name == name
        ]
        caption = f"Interventions on thoughts: {words_of(name)}"
        found += markup.folded(f"{caption}, as a table", markup.html_table(caption, headers, rows))
    return found


def _probe_tables(result: DataSetResult) -> str:
    """One table for each label, folded."""
    headers = ["state", "probe", "probe fit to shuffled labels", "most frequent label", "model's own head"]
    found = ""
    for label in dict.fromkeys(one.label for one in result.probes):
        own = [one for one in result.probes if one.label == label]
        rows = [
            [one.state, _share(one.probe), _share(one.shuffled), f"{one.majority:.0%}", _share(one.lens)] for one in own
        ]
        sizes = f"fit on {own[0].num_fit} problems, scored on {own[0].num_scored}"
        caption = f"Accuracy of linear probes for {label} ({sizes})"
        found += markup.folded(f"Linear probes for {label}, as a table", markup.html_table(caption, headers, rows))
    return found


def _share(mean: Mean | None) -> str:
    return "–" if mean is None else f"{mean.estimate:.0%} ({mean.low:.0%} to {mean.high:.0%})"


def _number(mean: Mean) -> str:
    return f"{mean.estimate:+.2f} ({mean.low:+.2f} to {mean.high:+.2f})"
