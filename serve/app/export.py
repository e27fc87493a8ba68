"""*Export*: the last result of a page as JSON, CSV and PNG, and a link that restores the view."""

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
from serve.app.exporting import File, files_of
from serve.app.intervene import IntervenePage
from serve.app.measures import Result
from serve.app.permalink import View, number_of, query_of, view_of
from serve.app.question import Bar
from serve.app.search import SearchPage
from serve.app.studio import MAX_CHARACTERS, Studio
from serve.app.think import ThinkPage

SHOWS = (
    "Files hold the numbers behind the pictures as they were computed, and the question. The link holds what was "
    "asked, not the result: whoever opens it on this server computes it again."
)
WORDS = {"think": "Think", "search": "Search", "intervene": "Intervene", "compare": "Compare", "dataset": "Data set"}
WHOLE_LINK = "(query) => window.location.origin + window.location.pathname + query"
PRESS = """(page) => {
  const press = (tries) => {
    const button = document.getElementById('run-' + page);
    if (button) button.click();
    else if (tries) setTimeout(() => press(tries - 1), 100);
  };
  if (page) press(100);
  document.documentElement.dataset.ready = 'yes';
}"""
"""Waits for the page's button: tabs are made when they are first opened. And says that the page listens by now."""


@dataclass(frozen=True)
class Pages:
    """All pages with results."""

    think: ThinkPage
    search: SearchPage
    intervene: IntervenePage
    compare: ComparePage
    dataset: DataSetPage

    @property
    def kept(self) -> list[gr.State]:
        """The last result of each, in the order of ``WORDS``."""
        return [one.kept for one in (self.think, self.search, self.intervene, self.compare, self.dataset)]


def build(studio: Studio, bar: Bar, pages: Pages) -> None:
    """Makes the page."""
    gr.HTML(markup.hint(SHOWS))
    page = gr.Radio(
        [(words, name) for name, words in WORDS.items()], value="think", label="Result of", elem_id="export-page"
    )
    run = gr.Button("Make files and link", variant="primary", elem_id="run-export")
    message = gr.HTML(elem_id="export-message", elem_classes="message")
    files = gr.HTML(markup.empty("Use a page first, then make its files here."), elem_id="export-files")
    link = gr.Textbox(label="Link to this view", interactive=False, buttons=["copy"], elem_id="export-link")
    query = gr.Textbox(visible=False)

    async def make(page: str, *values: Any) -> AsyncGenerator[ComponentUpdates, None]:
        settings, kept = values[: len(_settings(bar, pages))], values[len(_settings(bar, pages)) :]
        texts = ["" if one is None else f"{one:g}" if isinstance(one, float) else str(one) for one in settings]
        if page not in WORDS or any(len(text) > MAX_CHARACTERS for text in texts):
            raise DataError("export: found a page or a question that this app does not have")
        yield {query: query_of(View(page, *texts)), files: markup.empty("Drawing …")}
        result: Result | None = kept[list(WORDS).index(page)]
        if result is None:
            yield {files: markup.empty(f"{WORDS[page]} has no result yet; the link works all the same.")}
            return
        made = await asyncio.to_thread(files_of, result, page)
        yield {files: _links(made)}

    made = on(run.click, make, [page, *_settings(bar, pages), *pages.kept], [files, query], message)
    made.then(None, [query], [link], js=WHOLE_LINK)


def _settings(bar: Bar, pages: Pages) -> list[Any]:
    """Components in the order of ``View``'s fields after the page."""
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
    """Has a page that is opened by a link show what the link says, and compute it."""
    press = gr.Textbox(visible=False)

    def opened(request: gr.Request) -> ComponentUpdates:
        query = {name: text for name, text in dict(request.query_params).items() if isinstance(text, str)}
        view = view_of(query)
        if "view" not in query:
            return {press: ""}
        update: ComponentUpdates = {tabs: gr.update(selected=view.view), press: view.view if view.view in WORDS else ""}
        for component, text, known in (
            (bar.model, view.model, studio.catalogue.names),
            (bar.file, view.file, list(studio.files)),
            (pages.compare.model, view.other_model, studio.catalogue.names),
        ):
            if text in known:
                update[component] = text
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


def _links(files: Sequence[File]) -> str:
    return "".join(markup.download(one.name, one.kind, one.content, one.name) for one in files)
