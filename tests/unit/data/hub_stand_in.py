"""A local server answers the hub client's requests for a data set, and can simulate faults of the hub."""

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
PAGE = b"<html><title>Bad gateway</title></html>"

# Faults of a response. cut: the connection is lost in the middle. silent cut: the body is truncated, and Content-Length
# has the truncated length. flip: one bit is wrong. page: the body is an HTML page with status 200. long: the body has
# additional bytes at the end. whole: the server ignores the requested range. whole cut: the server ignores the range,
# and the connection is lost. etag: the ETag of the file has changed. A number is the HTTP status of the response.
FAULTS = ("cut", "silent cut", "flip", "page", "long", "whole", "etag", "429", "500", "503")


@dataclass
class StandIn:
    """State of the server.

    Attributes:
        files: Map of each path to the content of the served file.
        git: Paths of plain git files; all other files are LFS files.
        faults: Map of each path ("api" for listings and revisions) to a list with one fault per request.
        asked: The requests received so far.
        retry_after: Value of the Retry-After header.
        url: URL of the server.
    """

    files: dict[str, bytes]
    git: set[str] = field(default_factory=set)
    faults: dict[str, list[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    retry_after: str = "0"
    url: str = ""

    def bytes_asked(self, path: str) -> list[str]:
        """Return the Range header of every GET request for the file at ``path``; "" if the header is missing."""
        wanted = f"GET /datasets/{REPO}/resolve/{COMMIT}/{path} "
        return [line.removeprefix(wanted) for line in self.asked if line.startswith(wanted)]


@contextmanager
def serve(files: dict[str, bytes]) -> Iterator[StandIn]:
    """Serve ``files`` as the branch main of the data set REPO, on a loopback port."""
    stand_in = StandIn(files=files)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            stand_in.asked.append(f"GET {path} {self.headers.get('Range', '')}")
            for prefix, answer in (
                (f"/api/datasets/{REPO}/revision/", self._revision),
                (f"/api/datasets/{REPO}/tree/{COMMIT}", self._tree),
                (f"/datasets/{REPO}/resolve/{COMMIT}/", self._file),
            ):
                if path.startswith(prefix):
                    return answer(path.removeprefix(prefix))
            return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})

        def _revision(self, revision: str) -> None:
            if revision not in ("main", COMMIT):
                return self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return self._json({"id": REPO, "sha": COMMIT, "siblings": []})

        def _tree(self, folder: str) -> None:
            inside = [path for path in stand_in.files if path.startswith(folder.removeprefix("/"))]
            if not inside:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self._json([_entry(path, stand_in) for path in inside])

        def _json(self, value: Any) -> None:
            fault = _next(stand_in, "api")
            if fault.isdigit():
                return self._send(int(fault), PAGE, {"Retry-After": stand_in.retry_after})
            if fault == "page":
                return self._send(200, PAGE, {"Content-Type": "text/html"})
            return self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _file(self, path: str) -> None:
            if path not in stand_in.files:
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content, fault = stand_in.files[path], _next(stand_in, path)
            etag = {"ETag": '"another"' if fault == "etag" else f'"{_sums(path, stand_in)[0]}"'}
            if fault.isdigit():
                return self._send(int(fault), PAGE, {"Retry-After": stand_in.retry_after})
            if fault == "page":
                return self._send(200, PAGE, {"Content-Type": "text/html"})
            begin = 0
            if asked := self.headers.get("Range", ""):
                begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if fault.startswith("whole"):
                begin = 0
            status = 206 if begin else 200
            if begin:
                etag["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            rest = content[begin:]
            middle = len(rest) // 2
            if fault == "flip":
                rest = rest[:middle] + bytes([rest[middle] ^ 8]) + rest[middle + 1 :]
            if fault == "long":
                rest += b"more"
            if fault == "silent cut":
                rest = rest[:middle]
            return self._send(status, rest, etag, cut=middle if fault in ("cut", "whole cut") else None)

        def _send(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            self.send_response(status)
            for name, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content[:cut])

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        stand_in.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield stand_in
        finally:
            server.shutdown()


def _next(stand_in: StandIn, path: str) -> str:
    waiting = stand_in.faults.get(path, [])
    return waiting.pop(0) if waiting else ""


def _sums(path: str, stand_in: StandIn) -> tuple[str, str]:
    content = stand_in.files[path]
    return hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, stand_in: StandIn) -> dict[str, Any]:
    size, (sha256, sha1) = len(stand_in.files[path]), _sums(path, stand_in)
    entry = {"type": "file", "path": path, "size": size, "oid": sha1}
    return entry if path in stand_in.git else entry | {"lfs": {"oid": sha256, "size": size, "pointerSize": 130}}
