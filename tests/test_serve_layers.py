"""Imports of the server go one way too, and a wrong command line is refused without torch."""

import subprocess
import sys

import pytest
from serving import ROOT
from test_layers import imported

import serve

PAGES = ("think", "search", "intervene", "compare", "dataset")
# As in test_layers: a module may import its own layer and those before it.
LAYERS: list[set[str]] = [
    {"serve", "serve.errors", "serve.limits", "serve.text", "serve.safety"},
    {"serve.catalogue", "serve.engine_thread", "serve.asking"},
    {"serve.mailbox", "serve.metrics", "serve.models"},
    {"serve.service"},
    {"serve.tracing"},
    {"serve.api", "serve.api.errors", "serve.api.schema", "serve.api.streams", "serve.api.answers"},
    {"serve.api.guards", "serve.api.completions"},
    {"serve.api.thoughts", "serve.api.status"},
    {"serve.api.app"},
    {"serve.server"},
    {"serve.app", *(f"serve.app.{name}" for name in ("problems", "markup", "words", "theme"))},
    {"serve.app.studio", "serve.app.events", "serve.app.graph_drawing", "serve.app.figures"},
    {"serve.app.experiments", "serve.app.permalink", "serve.app.question"},
    {"serve.app.exporting", *(f"serve.app.{name}" for name in PAGES)},
    {"serve.app.export"},
    {"serve.app.layout"},
    {"serve.launch"},
    {"serve.cli"},
    {"serve.ray_app", "serve.__main__"},
]
ONLY_IN = {
    "ray": {"serve.ray_app"},
    "uvicorn": {"serve.server"},
    "gradio": {f"serve.app.{name}" for name in ("theme", "events", "question", *PAGES, "export", "layout")},
    "plotly": {"serve.app.figures", "serve.app.graph_drawing"},
    "prometheus_client": {"serve.metrics", "serve.api.guards", "serve.api.status"},
}


def modules():
    found = {}
    for folder in serve.__path__:
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def test_no_module_imports_a_later_layer():
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    known = modules()
    assert set(rank) == set(known), "give a new module its place in the table above"
    for name, path in known.items():
        for full in imported(path):
            target = full if full in known else full.rpartition(".")[0]
            if target in known:
                assert rank[target] <= rank[name], f"{name} imports {target}"


@pytest.mark.parametrize("package", ONLY_IN)
def test_an_outer_package_is_imported_by_its_modules_alone(package):
    found = {name for name, path in modules().items() if any(full.split(".")[0] == package for full in imported(path))}
    assert found == ONLY_IN[package]


def test_the_command_line_loads_without_torch():
    heavy = ("torch", "fastapi", "uvicorn", "gradio")
    script = f"import sys, serve.cli\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
