"""The pages ``/`` and ``/docs``, made from the server's own OpenAPI description.

They are plain HTML without scripts and load nothing from other hosts. Their links are relative, so that they also work
behind a proxy that adds a prefix.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from serve.requests.service import Service

Schema = Mapping[str, Any]
STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #8888 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884 }
pre { overflow-x: auto; padding: .6rem; background: #8882 }
"""
LINKS = {
    "docs": "all routes and their fields",
    "openapi.json": "the same for programs",
    "v1/models": "the checkpoints that are served",
    "health": "whether the server is ready",
    "metrics": "metrics for Prometheus",
    "version": "versions of the software",
}
"""Links of the page ``/``."""
EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/v1/completions": {"model": "MODEL", "prompt": "QUESTION", "max_tokens": 64},
    "/v1/chat/completions": {"model": "MODEL", "messages": [{"role": "user", "content": "QUESTION"}]},
    "/v1/thoughts": {"model": "MODEL", "question": "QUESTION"},
}
"""Fields of example requests, by route."""


def add_pages(app: FastAPI, service: Service, mounts: Collection[str], home: str | None = None) -> None:
    """Adds the two pages; ``mounts``: paths of mounted apps; ``home``: the one that ``/`` leads to, if any."""

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        if home is not None:
            # Relative, because the server need not know the path under which a proxy offers it.
            return RedirectResponse(f"{home.strip('/')}/")
        apps = [path for path in mounts if "." not in path]
        return HTMLResponse(index_page(app.title, app.version, service.models.checkpoints.names, apps))

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page(app.openapi(), str(request.base_url).rstrip("/")))


def index_page(title: str, version: str, models: Collection[str], apps: Collection[str]) -> str:
    """What the server serves, and links to its other pages."""
    links = {**{f"{path.strip('/')}/": "the browser app" for path in apps}, **LINKS}
    parts = [f"<h1>{escape(title)} {escape(version)}</h1>", "<p>This server answers requests in OpenAI's format at"]
    parts += ["<code>v1/completions</code> and <code>v1/chat/completions</code>.</p>"]
    rows = ((f'<a href="{escape(link)}">{escape(link)}</a>', escape(meaning)) for link, meaning in links.items())
    parts += ["<h2>Pages</h2>", _table(("page", "content"), rows)]
    parts += ["<h2>Checkpoints</h2><ul>", *(f"<li><code>{escape(name)}</code></li>" for name in models), "</ul>"]
    return _page(title, parts)


def docs_page(description: Schema, address: str) -> str:
    """All routes and their fields.

    Args:
        description: the server's OpenAPI description.
        address: where examples find the server, without a slash at the end.
    """
    title = f"{description['info']['title']} {description['info']['version']}"
    parts = [f"<h1>{escape(title)}</h1>", f"<p>{_prose(description['info']['description'])}</p>"]
    parts.append('<p>For programs: <a href="openapi.json">openapi.json</a>. If the server has a key, add')
    parts.append("<code>-H 'Authorization: Bearer KEY'</code> to the examples.</p>")
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method.upper(), operation, address)
    parts.append("<h2>Objects</h2>")
    for name, schema in description["components"]["schemas"].items():
        parts += [f'<h3 id="{escape(name)}">{escape(name)}</h3>', *_object(schema)]
    return _page(title, parts)


def _operation(path: str, method: str, operation: Schema, address: str) -> Iterator[str]:
    yield f"<h2>{method} {escape(path)}</h2><p>{_prose(operation.get('summary', ''))}</p>"
    command = f"curl {address}{path}"
    if path in EXAMPLES:
        command += f" -H 'Content-Type: application/json' -d '{json.dumps(EXAMPLES[path])}'"
    yield f"<pre>{escape(command)}</pre>"
    if body := operation.get("requestBody"):
        yield f"<p>Request: {_type(body['content']['application/json']['schema'])}</p>"
    answers = (
        (escape(status), ", ".join(_type(one.get("schema", {})) or escape(kind) for kind, one in contents.items()))
        for status, contents in ((status, one.get("content", {})) for status, one in operation["responses"].items())
        # FastAPI's own status for invalid requests, which this server answers with 400.
        if status != "422"
    )
    yield _table(("status", "answer"), answers)


def _object(schema: Schema) -> Iterator[str]:
    """An object's description and fields."""
    yield f"<p>{_prose(schema.get('description', ''))}</p>"
    required = schema.get("required", ())
    fields = (
        (
            f"<code>{escape(name)}</code>{' (required)' if name in required else ''}",
            _type(field),
            _prose(field.get("description", "")),
        )
        for name, field in schema.get("properties", {}).items()
    )
    yield _table(("field", "type", "meaning"), fields)


def _type(schema: Schema) -> str:
    """A short description of a JSON schema, as HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in values)
    kind = escape(schema.get("type", ""))
    if kind == "array":
        return f"list of {_type(schema.get('items', {})) or 'anything'}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    shown = [f"{sign} {schema[key]}" for key, sign in bounds.items() if key in schema and abs(schema[key]) < 2**31 - 1]
    return " ".join([kind, *shown])


def _prose(text: str) -> str:
    """Text of a docstring, with ``code`` in double backticks, as HTML."""
    return re.sub("``(.+?)``", r"<code>\1</code>", escape(text))


def _table(head: Collection[str], rows: Iterator[Collection[str]]) -> str:
    heads = "".join(f"<th>{escape(one)}</th>" for one in head)
    body = "".join(f"<tr>{''.join(f'<td>{one}</td>' for one in row)}</tr>" for row in rows)
    return f"<table><tr>{heads}</tr>{body}</table>"


def _page(title: str, parts: Collection[str]) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    head += '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{chr(10).join(parts)}</body></html>'
