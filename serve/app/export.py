"""The *Export* page: the last result of a page as JSON, CSV and PNG files, and a link that restores the view."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from coconut_ds.errors import DataError
from serve.app import markup
from serve.app.compare import ComparePage
from serve.app.dataset import DataSetPage
from serve.app.events import ComponentUpdates, on
from serve.app.export_files import File, files_of, made_from
from serve.app.intervene import IntervenePage
from serve.app.permalink import View, number_of, query_of, view_of
from serve.app.question import Bar
from serve.app.results import Result
from serve.app.search import SearchPage
from serve.app.studio import MAX_CHARACTERS, Studio
from serve.app.think import ThinkPage

INTRODUCTION = (
    "The files contain the question, the numbers behind the figures and what they were made from; their names end with "
    "a signature of all of it. The link contains the question and the settings, not the result: opening it on this "
    "server computes the result again."
)
LABELS = {"think": "Think", "search": "Search", "intervene": "Intervene", "compare": "Compare", "dataset": "Data set"}
"""Labels of the pages that have results."""
WHOLE_LINK = "(query) => window.location.origin + window.location.pathname + query"
PRESS = """(page) => {
  const press = (tries) => {
    const button = page && document.getElementById('run-' + page);
    if (page && !button && tries) return setTimeout(() => press(tries - 1), 100);
    if (button) button.click();
    document.documentElement.dataset.ready = 'yes';
  };
  press(100);
}"""
"""Presses the page's button, once it exists: a tab's components are created when it is first opened. Then marks the
document as ready: the app handles events, and the link's tab is open."""


@dataclass(frozen=True)
class Pages:
    """All pages that have results."""

    think: ThinkPage
    search: SearchPage
    intervene: IntervenePage
    compare: ComparePage
    dataset: DataSetPage

    @property
    def kept(self) -> list[gr.State]:
        """The last result of each page, in the order of ``LABELS``."""
        return [one.kept for one in (self.think, self.search, self.intervene, self.compare, self.dataset)]


def build(studio: Studio, bar: Bar, pages: Pages) -> None:
    """Creates the page."""
    gr.HTML(markup.hint(INTRODUCTION))
    page = gr.Radio(
        [(label, name) for name, label in LABELS.items()], value="think", label="Result of page", elem_id="export-page"
    )
    run = gr.Button("Create files and link", variant="primary", elem_id="run-export")
    message = gr.HTML(elem_id="export-message", elem_classes="message")
    files = gr.HTML(
        markup.empty("Run something on a page first, then create files of its result here."), elem_id="export-files"
    )
    link = gr.Textbox(label="Link to this view", interactive=False, buttons=["copy"], elem_id="export-link")
    query = gr.Textbox(visible=False)

    async def export(page: str, *values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        settings, kept = values[: len(_settings(bar, pages))], values[len(_settings(bar, pages)) :]
        texts = ["" if one is None else f"{one:g}" if isinstance(one, float) else str(one) for one in settings]
        if page not in LABELS or any(len(text) > MAX_CHARACTERS for text in texts):
            raise DataError(
                f"export: the page is unknown, or a setting has more than {MAX_CHARACTERS:,} characters; reload the app"
            )
        yield {query: query_of(View(page, *texts)), files: markup.empty("Creating files …")}
        result: Result | None = kept[list(LABELS).index(page)]
        if result is None:
            yield {files: markup.empty(f"{LABELS[page]} has no result yet, so there are no files; the link works.")}
            return
        yield {files: _links(await asyncio.to_thread(_files, result, page, studio))}

    exported = on(run.click, export, [page, *_settings(bar, pages), *pages.kept], [files, query], message)
    exported.then(None, [query], [link], js=WHOLE_LINK)


def _settings(bar: Bar, pages: Pages) -> list[Any]:
    """The components with the settings, in the order of ``View``'s fields after ``view``."""
    return [
        bar.model,
        bar.file,
        bar.question,
        bar.thoughts,
        pages.think.follow,
        pages.intervene.kind,
        pages.intervene.thought,
        pages.compare.model,
        pages.compare.question,
    ]


def restore(blocks: gr.Blocks, studio: Studio, bar: Bar, pages: Pages, tabs: gr.Tabs) -> None:
    """Makes the app, when opened by a link, restore the link's view and compute its results."""
    press = gr.Textbox(visible=False)

    async def opened(request: gr.Request) -> ComponentUpdates:
        await studio.checkpoints.up_to_date()
        names = studio.checkpoints.names
        # The page was made when the server started; since then checkpoints may have appeared or vanished.
        listed: dict[Any, dict[str, Any]] = {one: {"choices": names} for one in (bar.model, pages.compare.model)}
        if bar.model.value not in names and names:
            listed[bar.model]["value"] = studio.checkpoints.first_thinking
        query = {name: text for name, text in dict(request.query_params).items() if isinstance(text, str)}
        view = view_of(query)
        if "view" not in query:
            return {press: "", **{component: gr.update(**changes) for component, changes in listed.items()}}
        update: ComponentUpdates = {
            tabs: gr.update(selected=view.view),
            press: view.view if view.view in LABELS else "",
        }
        for component, text in ((bar.model, view.model), (pages.compare.model, view.other_model)):
            update[component] = gr.update(**{**listed[component], **({"value": text} if text in names else {})})
        if view.file in studio.files:
            update[bar.file] = view.file
        chosen = studio.file(view.file)
        text = view.question or (chosen.problems[0].question if chosen is not None else "")
        update |= {bar.question: text} if text else {}
        update |= {pages.think.follow: view.follow, pages.compare.question: view.other_question}
        update |= {pages.intervene.kind: view.kind} if view.kind in _choices(pages.intervene.kind) else {}
        for slider, text, low in ((bar.thoughts, view.thoughts, 0), (pages.intervene.thought, view.thought, 1)):
            number = number_of(text, low, studio.max_thoughts)
            update |= {} if number is None else {slider: number}
        return update

    outputs = [tabs, press, *_settings(bar, pages)]
    loaded = blocks.load(opened, None, outputs, api_visibility="private", show_progress="hidden")
    loaded.then(None, [press], None, js=PRESS)


def _choices(radio: gr.Radio) -> list[Any]:
    return [value for _, value in radio.choices]


def _files(result: Result, page: str, studio: Studio) -> list[File]:
    return files_of(result, page, made_from(result, studio.checkpoints))


def _links(files: Sequence[File]) -> str:
    return "".join(markup.download(one.download_name, one.media_type, one.content, one.name) for one in files)
