"""A small local hub that speaks enough of the Hub's protocol to fetch and push an artifact."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """Files by repository and path, and the requests received."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []
        self.refuse = False
        self.address = ""


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A hub that runs for the duration of the block."""
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Suppress the log."""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"POST {path}")
        if self.hub.refuse:
            self._send(403, b'{"error": "no right to write"}', **{"X-Error-Message": "no right to write"})
        elif path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            self.hub.repositories.setdefault(name, {})
            self.hub.private[name] = bool(given.get("private") or given.get("visibility") == "private")
            self._json({"url": f"{self.hub.address}/{name}"})
        elif path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif path.endswith("/commit/main"):
            name = path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.hub.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"{self.hub.address}/{name}/commit/{_revision(self.hub.repositories[name])}"
            self._json({"success": True, "commitUrl": address, "commitOid": _revision(self.hub.repositories[name]),
                        "hookOutput": ""})  # fmt: skip
        else:
            self._json({})

    def _answer(self, *, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        files = self.hub.repositories.get(name)
        if files is None:
            self._send(404, b"", **{"X-Error-Code": "RepoNotFound"})
        elif parts[0] == "api" and "tree" in parts:
            self._json([{"type": "file", "path": p, "size": len(data), "oid": _etag(data)} for p, data in files.items()])
        elif parts[0] == "api":
            listed = [{"rfilename": file, "size": len(data), "blobId": _etag(data)} for file, data in files.items()]
            self._json({"id": name, "sha": _revision(files), "siblings": listed, "private": self.hub.private.get(name, False)})
        else:
            data = files["/".join(parts[4:])]
            about = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": _revision(files)}
            self._send(200, data, body=with_body, **about)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

    def _send(self, status: int, data: bytes, *, body: bool = True, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def _revision(files: dict[str, bytes]) -> str:
    return _etag(repr(sorted((name, _etag(data)) for name, data in files.items())).encode())
