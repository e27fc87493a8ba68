"""Assembles the pages into one ASGI app."""

import os
from pathlib import Path

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp

from serve.app import compare, dataset, export, intervene, markup, opening, question, search, states, think
from serve.app.addresses import ICON, MANIFEST, OwnAddresses
from serve.app.event_stream import SCRIPT, WholeEvents
from serve.app.events import MAX_RUNNING, MAX_WAITING
from serve.app.housekeeping import FILES_S, MAX_SESSIONS, Housekeeping
from serve.app.outdated import VALUES
from serve.app.studio import Studio
from serve.app.theme import CSS, theme

PATH = "/app"
TITLE = "coconut-ds: look inside continuous thoughts"
HEADING = "Look inside a model that reasons in continuous thoughts"
SUBTITLE = (
    "Select a checkpoint and a problem, then press Think: the page shows the answer and the words that each thought "
    "decodes to. The other tabs change thoughts, compare models and measure effects, always next to controls."
)

RESIZED = "() => { setTimeout(() => window.dispatchEvent(new Event('resize')), 50); return []; }"
"""Fits the figures of a tab to the window, whose width may have changed while the tab was not shown."""


def blocks_of(studio: Studio) -> gr.Blocks:
    """All pages."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(FILES_S, FILES_S)) as blocks:
        gr.HTML(markup.heading(HEADING, SUBTITLE))
        bar = question.build(studio)
        with gr.Tabs() as tabs:
            with gr.Tab("Think", id="think"):
                thinking = think.build(studio, bar)
            with gr.Tab("Search", id="search"):
                searching = search.build(studio, bar)
            with gr.Tab("Intervene", id="intervene"):
                changing = intervene.build(studio, bar)
            with gr.Tab("States", id="states"):
                looking = states.build(studio, bar)
            with gr.Tab("Compare", id="compare"):
                comparing = compare.build(studio, bar)
            with gr.Tab("Data set", id="dataset"):
                measuring = dataset.build(studio, bar)
            with gr.Tab("Export", id="export"):
                pages = opening.Pages(thinking, searching, changing, looking, comparing, measuring)
                export.build(studio, bar, pages)
        tabs.select(None, [], [], js=RESIZED, show_progress="hidden")
        opening.restore(blocks, studio, bar, pages, tabs)
    return blocks.queue(api_open=False, max_size=MAX_WAITING, default_concurrency_limit=MAX_RUNNING)


def mounts(studio: Studio) -> dict[str, ASGIApp]:
    """ASGI apps by path: the app, and files that browsers request from the root even if an app is mounted elsewhere."""
    return {PATH: make_app(studio), "/manifest.json": MANIFEST, "/favicon.ico": ICON}


def make_app(studio: Studio) -> ASGIApp:
    """The app itself, with Gradio's sharing, telemetry and loading of external resources disabled."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    blocks = blocks_of(studio)
    blocks.state_session_capacity = MAX_SESSIONS
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        outer,
        blocks,
        path="/",
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        allowed_paths=[],
        blocked_paths=[str(Path.cwd())],
        max_file_size=1,
        theme=theme(),
        css=CSS,
        head=SCRIPT + VALUES + _preload_plotly(),
    )
    return OwnAddresses(WholeEvents(Housekeeping(outer, blocks.state_holder)))


def _preload_plotly() -> str:
    """HTML that makes the page load Plotly (4.6 MB) before the first figure, if Gradio has the file where expected."""
    assets = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
    return "".join(
        f'<script type="module">import("./assets/{one.name}")</script>' for one in assets.glob("PlotlyPlot-*.js")
    )
