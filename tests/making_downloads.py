"""A local server of files, and a copy of the scripts that download from it."""

import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from making_preprocessing import ROOT, sha


class Server:
    """Serves files on 127.0.0.1 and records the requests. ``ranges``: whether it can send the rest of a file."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, wanted = self.path.removeprefix("/"), self.headers["Range"]
                server.asked.append((name, wanted))
                start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and server.ranges else 0
                content = server.files.get(name, b"")
                if not content:
                    self.send_error(404)
                elif start and start >= len(content):
                    self.send_error(416)
                else:
                    self.send_response(206 if start else 200)
                    if start:
                        self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                    self.send_header("Content-Length", str(len(content) - start))
                    self.end_headers()
                    self.wfile.write(content[start:])

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class Checkout:
    """A copy of the scripts with short lists of downloads; a checksum is known for the first file only."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder, self.server, self.data = folder, server, folder / "data"
        shutil.copytree(ROOT / "preprocessing", folder / "preprocessing")

    def serve(self, listed: str, files: dict[str, tuple[bytes, int]]) -> None:
        self.server.files = {name: content for name, (content, _) in files.items()}
        known = next(iter(files))
        lines = [
            f"{sha(content) if name == known else 'unknown'} {len(content)} {problems} {name}\n"
            for name, (content, problems) in files.items()
        ]
        (self.folder / "preprocessing" / listed).write_text("# a comment\n" + "".join(lines))

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        variable = {"gsm_icot.bash": "GSM_ICOT_URL", "prosqa.bash": "PROSQA_URL"}[name]
        self.server.asked.clear()
        return subprocess.run(
            ["bash", f"preprocessing/{name}", *arguments],
            env={
                "PATH": os.environ["PATH"],
                "PYTHON": sys.executable,
                "PYTHONPATH": str(ROOT),
                "no_proxy": "*",
                variable: self.server.url,
            },
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
