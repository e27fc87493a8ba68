"""The *Export* page: the last result of a page as JSON, CSV and PNG files, and a link that restores the view."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import gradio as gr

from coconut_ds.errors import DataError
from serve.app import markup
from serve.app.events import ComponentUpdates, on
from serve.app.export_files import File, files_of, made_from
from serve.app.opening import LABELS, Pages, settings_of
from serve.app.permalink import View, query_of, text_of
from serve.app.question import Bar
from serve.app.results import Result
from serve.app.studio import MAX_CHARACTERS, Studio

INTRODUCTION = (
    "The files contain the question, the numbers behind the figures and what they were made from; their names end with "
    "a signature of all of it. The link contains the question and the settings, not the result: opening it on this "
    "server computes the result again."
)
WHOLE_LINK = "(query) => window.location.origin + window.location.pathname + query"


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
        count = len(settings_of(bar, pages))
        texts, kept = list(map(text_of, values[:count])), values[count:]
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

    exported = on(run.click, export, [page, *settings_of(bar, pages), *pages.kept], [files, query], message)
    exported.then(None, [query], [link], js=WHOLE_LINK)


def _files(result: Result, page: str, studio: Studio) -> list[File]:
    return files_of(result, page, made_from(result, studio.checkpoints))


def _links(files: Sequence[File]) -> str:
    return "".join(markup.download(one.download_name, one.media_type, one.content, one.name) for one in files)
