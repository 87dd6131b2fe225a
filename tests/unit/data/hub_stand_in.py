"""A small stand-in for the hub on this machine: the four requests its client makes to read a data set."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "someone/videos"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandIn:
    """What it serves, what it announces (path: content, where that differs), and what it was asked for."""

    files: dict[str, bytes]
    announced: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serve(files: dict[str, bytes], announced: dict[str, bytes] | None = None) -> Iterator[StandIn]:
    """Serve ``files`` of the data set REPO at branch main on a loopback port."""
    stand_in = StandIn(files=files, announced=announced or {})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            stand_in.asked.append(f"{self.command} {path}")
            for prefix, answer in (
                (f"/api/datasets/{REPO}/revision/", self._revision),
                (f"/api/datasets/{REPO}/tree/{COMMIT}/", self._tree),
                (f"/datasets/{REPO}/resolve/{COMMIT}/", self._file),
            ):
                if path.startswith(prefix):
                    return answer(path.removeprefix(prefix), body)
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"}, body)

        def _revision(self, revision: str, body: bool) -> None:
            if revision not in ("main", COMMIT):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, body)
            return self._json({"id": REPO, "sha": COMMIT, "siblings": []}, body)

        def _tree(self, folder: str, body: bool) -> None:
            inside = [path for path in stand_in.files if path.rsplit("/", 1)[0] == folder]
            if not inside:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return self._json([_entry(path, stand_in) for path in inside], body)

        def _file(self, path: str, body: bool) -> None:
            if path not in stand_in.files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body)
            return self._send(200, stand_in.files[path], {"ETag": f'"{_sha256(path, stand_in)}"'}, body)

        def _json(self, value: Any, body: bool) -> None:
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stand_in.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield stand_in
        finally:
            server.shutdown()


def _sha256(path: str, stand_in: StandIn) -> str:
    return hashlib.sha256(stand_in.announced.get(path, stand_in.files[path])).hexdigest()


def _entry(path: str, stand_in: StandIn) -> dict[str, Any]:
    size = len(stand_in.files[path])
    lfs = {"oid": _sha256(path, stand_in), "size": size, "pointerSize": 130}
    return {"type": "file", "path": path, "size": size, "oid": "0" * 40, "lfs": lfs}
