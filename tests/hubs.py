"""A hub on loopback that speaks as the Hugging Face Hub and as ModelScope do, as far as their clients ask.

    repository "org/model" ─▶ revision "main" (their name: "master") ─▶ a folder

It writes down what it is asked for, and can cut a connection in the middle of a file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_opens_the_gate"


@dataclass
class Hub:
    """What the server has, and what became of it."""

    url: str = ""
    repositories: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Name → revision → folder."""
    gated: set[str] = field(default_factory=set)
    """Names whose files need a token."""
    cuts: dict[str, int] = field(default_factory=dict)
    """File → how many more of its answers end half way."""
    slow: dict[str, float] = field(default_factory=dict)
    """File → seconds between its halves."""
    down: int = 0
    """A status that everything is answered with."""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path and range of every request."""

    def add(self, name: str, folder: Path, *revisions: str) -> None:
        self.repositories.setdefault(name, {}).update(dict.fromkeys(revisions or ("main", "master"), folder))

    def bodies(self, file: str) -> list[str]:
        """The ranges of the requests for a file's content; "" where it was asked for whole."""
        return [spot for method, path, spot in self.asked if method == "GET" and path.endswith(file)]

    def fetched(self) -> set[str]:
        """The files that were asked for."""
        return {path.rpartition("/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path}

    def environment(self, home: Path) -> dict[str, str]:
        """The variables of a process for which this is the hub, and `home` where it keeps what it fetched."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "MODELSCOPE_ENDPOINT": self.url,
            "MODELSCOPE_CACHE": str(home / "ms"),
            "MODELSCOPE_HOME": str(home / "ms-home"),
            "HF_HUB_DISABLE_XET": "1",
        }


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def commit_of(folder: Path) -> str:
    return hashlib.sha1(str(folder).encode()).hexdigest()


def environment_without(*names: str) -> dict[str, str]:
    """This process's variables, without those that say where models are."""
    theirs = ("HF_", "MODELSCOPE_", "VLLM_MODEL", "VLLM_USE_MODELSCOPE", "HUGGING")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs) and name not in names}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def log_message(self, *_: Any) -> None:
        pass

    def _route(self) -> None:
        parts = urlsplit(self.path)
        path, query = unquote(parts.path), {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.hub.asked.append((self.command, query.get("FilePath", path), self.headers.get("Range", "")))
        if self.hub.down:
            self._json({"error": "out of order"}, self.hub.down)
        elif found := re.fullmatch(r"/api/models/(.+?)/(revision|tree)/([^/]+)", path):
            self._theirs(*found.groups())
        elif found := re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path):
            self._resolve(*found.groups())
        elif found := re.fullmatch(r"/api/v1/models/(.+?)/repo(/files)?", path):
            self._modelscope(found[1], query, listing=bool(found[2]))
        else:
            self._json({"Code": 404, "Success": False, "error": "not found"}, 404)

    # As the Hugging Face Hub.

    def _folder(self, name: str, revision: str) -> Path | None:
        """Return the folder of a revision or a commit, or answer that there is none."""
        revisions = self.hub.repositories.get(name)
        if revisions is None:
            self._refuse(401, "RepoNotFound", f"Repository Not Found: {name}")
            return None
        by_commit = {commit_of(folder): folder for folder in revisions.values()}
        folder = revisions.get(revision) or by_commit.get(revision)
        if folder is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return folder

    def _theirs(self, name: str, kind: str, revision: str) -> None:
        folder = self._folder(name, revision)
        if folder is None:
            return
        if kind == "revision":
            siblings = [{"rfilename": file} for file in _files(folder)]
            self._json({"_id": "1", "id": name, "sha": commit_of(folder), "siblings": siblings})
        else:
            self._json([_entry(folder, file) for file in _files(folder)])

    def _resolve(self, name: str, revision: str, file: str) -> None:
        folder = self._folder(name, revision)
        if folder is None:
            return
        if name in self.hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(403, "GatedRepo", f"Access to model {name} is restricted")
        elif not (folder / file).is_file():
            self._refuse(404, "EntryNotFound", f"no {file}")
        else:
            headers = {"ETag": f'"{_entry(folder, file)["oid"]}"', "X-Repo-Commit": commit_of(folder)}
            self._file(folder / file, file, headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    # As ModelScope.

    def _modelscope(self, name: str, query: dict[str, str], listing: bool) -> None:
        folder = self.hub.repositories.get(name, {}).get(query.get("Revision", "master"))
        if folder is None:
            self._json({"Code": 10010205001, "Success": False, "Message": "the model does not exist"}, 404)
        elif listing:
            files = [_their_entry(folder, file) for file in _files(folder)]
            self._json({"Code": 200, "Success": True, "Data": {"Files": files}})
        else:
            self._file(folder / query["FilePath"], query["FilePath"], {})

    # What both do.

    def _json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _file(self, path: Path, name: str, headers: dict[str, str]) -> None:
        content, size = path.read_bytes(), path.stat().st_size
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        end = int(asked[2]) + 1 if asked and asked[2] else size
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        for key, value in {"Accept-Ranges": "bytes", "Content-Length": str(end - start), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = (start + end) // 2
        self.wfile.write(content[start:half])
        self.wfile.flush()
        if self.hub.cuts.get(name, 0) > 0:
            self.hub.cuts[name] -= 1
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        time.sleep(self.hub.slow.get(name, 0.0))
        self.wfile.write(content[half:end])


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _entry(folder: Path, file: str) -> dict[str, Any]:
    content = (folder / file).read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": file, "size": len(content), "oid": oid}
    if file.endswith((".safetensors", ".bin")):
        entry["oid"] = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": entry["oid"], "size": len(content), "pointerSize": 134}
    return entry


def _their_entry(folder: Path, file: str) -> dict[str, Any]:
    content = (folder / file).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    entry = {"Name": Path(file).name, "Path": file, "Type": "blob", "Size": len(content), "Sha256": digest}
    return {**entry, "Revision": commit_of(folder)}
