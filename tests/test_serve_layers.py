"""The server's packages import in one direction too, and a wrong command line is refused without torch."""

import subprocess
import sys

import pytest
from imports import PLUGIN, ROOT, check_no_cycle, graph, imported, importers, modules

# A module of a group imports only from its own group and the groups before it.
GROUPS = (
    "errors limits heap aside",
    "clients",
    "checkpoints",
    "engine",
    "models",
    "monitoring",
    "requests",
    "api",
    "network",
    "options",
    "app",
    "launch cli ray_app __main__",
)
GROUP = {name: number for number, names in enumerate(GROUPS) for name in names.split()}
PAGES = ("think", "search", "intervene", "states", "compare", "dataset")
ONLY_IN = {
    "ray": {"serve.ray_app"},
    "uvicorn": {"serve.network.server", "serve.network.connections"},
    "h11": {"serve.network.connections"},
    "opentelemetry": {"serve.network.spans"},
    "gradio": {
        f"serve.app.{name}" for name in ("theme", "empty", "events", "question", *PAGES, "export", "opening", "layout")
    },
    "plotly": {
        f"serve.app.{name}"
        for name in (
            *("charts", "graph_drawing"),
            *(f"{one}_figures" for one in ("thought", "intervention", "dataset")),
            "state_charts",
        )
    },
    "prometheus_client": {"serve.monitoring.metrics", "serve.api.guards", "serve.api.status"},
}
OURS = ("coconut_ds", "serve", "tests")
MODULES = modules("serve")


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return graph(MODULES)


def group(name):
    return GROUP[name.split(".")[1]]


def test_no_module_imports_a_later_group(edges):
    assert set(GROUP) == {name.split(".")[1] for name in MODULES if name != "serve"}, "give a new module its group"
    wrong = [
        f"{name} imports {target}"
        for name, targets in edges.items()
        for target in targets - {"serve"}
        if name == "serve" or group(target) > group(name)
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle(edges):
    check_no_cycle({name: targets - {"serve"} for name, targets in edges.items()})


@pytest.mark.parametrize("package", ONLY_IN)
def test_an_outer_package_is_imported_by_its_modules_alone(package):
    assert importers(MODULES, package) == ONLY_IN[package]


def test_the_plugin_of_vllm_imports_nothing_of_this_project():
    """It is installed beside vLLM, whose versions of libraries do not fit this project's."""
    files = list((PLUGIN / "coconut_vllm").glob("*.py"))
    assert len(files) >= 10
    wrong = [f"{path.name}: {name}" for path in files for name in imported(path) if name.split(".")[0] in OURS]
    assert wrong == []
    assert not any(name.startswith("coconut_vllm") for path in MODULES.values() for name in imported(path))


def test_the_command_line_loads_without_torch():
    heavy = ("torch", "fastapi", "uvicorn", "gradio")
    script = f"import sys, serve.cli\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
