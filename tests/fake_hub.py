"""The part of the hub's HTTP interface that uploads and downloads of models use, on a loopback port.

It keeps repositories in memory, and refuses requests without the right token. Large files go the way of Git LFS (a
batch request, an upload, a line in the commit), small ones are in the commit itself.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_the_tests"
LARGE = (".safetensors", ".bin", ".pt")
"""Suffixes of the files that Git LFS holds."""


@dataclass
class Repository:
    """The files of the branch main, and what is known of their history."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    @property
    def commit(self) -> str:
        """A commit id that changes with the content."""
        digest = hashlib.sha1()
        for name in sorted(self.files):
            digest.update(name.encode() + self.files[name])
        return digest.hexdigest()


class FakeHub(ThreadingHTTPServer):
    """A server that answers as the hub does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A running server."""
    server = FakeHub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refused(self) -> bool:
        """Answers a request without the right token."""
        if self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self._body()
        self._answer({"error": "Invalid credentials in Authorization header"}, 401)
        return True

    def _repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None:
            self._body()
            self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        return found

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/validate-yaml":
            self._body()
            self._answer({"errors": [], "warnings": []})
        elif self._refused():
            return
        elif path == "/api/repos/create":
            given = json.loads(self._body())
            name = f"{given.get('organization') or 'tester'}/{given['name']}"
            status = 409 if name in self.server.repositories else 200
            self.server.repositories.setdefault(name, Repository(given.get("visibility") == "private"))
            self._answer({"url": f"{self.server.endpoint}/{name}", "id": name, "name": name}, status)
        elif match := re.fullmatch(r"/api/models/(.+)/preupload/main", path):
            self._preupload(match[1])
        elif match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            self._batch()
        elif match := re.fullmatch(r"/api/models/(.+)/commit/main", path):
            self._commit(match[1])
        else:
            self._body()
            self._answer({"error": f"no such address: {path}"}, 404)

    def do_PUT(self) -> None:
        oid, body = self.path.rsplit("/", 1)[-1], self._body()
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.blobs[oid] = body
        self._answer({})

    def _preupload(self, name: str) -> None:
        if self._repository(name) is None:
            return
        files = json.loads(self._body())["files"]
        modes = {one["path"]: "lfs" if one["path"].endswith(LARGE) else "regular" for one in files}
        found = [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]
        self._answer({"files": found})

    def _batch(self) -> None:
        objects = []
        for one in json.loads(self._body())["objects"]:
            href = f"{self.server.endpoint}/lfs/{one['oid']}"
            actions = {} if one["oid"] in self.server.blobs else {"actions": {"upload": {"href": href, "header": {}}}}
            objects.append({"oid": one["oid"], "size": one["size"], **actions})
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, name: str) -> None:
        repository = self._repository(name)
        if repository is None:
            return
        for line in self._body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repository.messages.append(value["summary"])
            elif entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert entry["key"] == "lfsFile", entry
                repository.files[value["path"]] = self.server.blobs[value["oid"]]
        url = f"{self.server.endpoint}/{name}/commit/{repository.commit}"
        self._answer({"commitUrl": url, "commitOid": repository.commit})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/(.+)/tree/\w+", path):
            if (found := self._repository(match[1])) is not None:
                self._answer([_entry(name, content) for name, content in sorted(found.files.items())])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/\w+)?", path):
            if (found := self._repository(match[1])) is not None:
                siblings = [{"rfilename": name} for name in sorted(found.files)]
                about = {"id": match[1], "modelId": match[1], "sha": found.commit, "siblings": siblings}
                self._answer({**about, "private": found.private, "tags": [], "downloads": 0, "likes": 0})
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", path):
            if (found := self._repository(match[1])) is None:
                return
            content = found.files.get(match[2])
            if content is None:
                self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            tag = hashlib.sha256(content).hexdigest()
            self._answer(content, headers={"ETag": f'"{tag}"', "X-Repo-Commit": found.commit})
        else:
            self._answer({"error": f"no such address: {path}"}, 404)


def _entry(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": name, "size": len(content), "oid": blob}
    if name.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
