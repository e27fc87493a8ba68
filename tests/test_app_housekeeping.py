"""What visitors of the app leave behind does not stay: sessions end by number and by age, and nothing is stored."""

import asyncio
from datetime import timedelta
from pathlib import Path

import gradio as gr
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient
from waiting import wait_until

from serve.app import housekeeping
from serve.app.housekeeping import SESSION_S, Housekeeping


@pytest.fixture
def app(monkeypatch, tmp_path):
    """A small application of Gradio, which writes its files to ``tmp_path``."""
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.01)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))

    async def make() -> Housekeeping:
        # In a coroutine: without a running event loop, Gradio makes one of its own and never closes it.
        with gr.Blocks(analytics_enabled=False, delete_cache=(1, 1)) as blocks:
            gr.File()
        blocks.state_session_capacity = 5
        outer = FastAPI()
        gr.mount_gradio_app(outer, blocks, path="/", ssr_mode=False)
        return Housekeeping(outer, blocks.state_holder)

    return asyncio.run(make())


def test_routes_that_store_files_do_not_exist(app, tmp_path):
    with TestClient(app) as http:
        assert http.get("/config").status_code == 200
        for route in ("upload", "upload?upload_id=a", "process_recording", "component_server"):
            assert http.post(f"/gradio_api/{route}", files={"files": b"x" * 100}).status_code == 404
        for route in ("deep_link?session_hash=a", "upload_progress?upload_id=a", "proxy=http://127.0.0.1:1/"):
            assert http.get(f"/gradio_api/{route}").status_code == 404
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_sessions_are_forgotten(app):
    """The app forgets sessions beyond its limit at once, and those that no visitor has used for a while."""
    sessions = app._sessions
    for number in range(20):
        assert sessions[f"visitor {number}"] is not None
    assert len(sessions.session_data) <= 6
    with TestClient(app) as http:
        http.get("/config")
        sessions.time_last_used["visitor 18"] -= timedelta(seconds=SESSION_S + 1)
        wait_until(lambda: "visitor 18" not in sessions.session_data)
    assert "visitor 19" in sessions.session_data


def test_files_that_gradio_wrote_are_deleted_at_the_end(app, tmp_path):
    """When the server ends it cancels all tasks."""
    kept = Path(tmp_path, "written.txt")
    kept.write_text("x")
    app._app.routes[-1].app.get_blocks().temp_file_sets[0].add(str(kept))
    with TestClient(app) as http:
        http.get("/config")
        assert kept.exists()
        http.portal.call(app._task.cancel)
        wait_until(lambda: not kept.exists())
