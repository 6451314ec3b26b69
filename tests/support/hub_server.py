"""A local fake of both hubs for huggingface_hub and sdstream.weights.hub, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from urllib.parse import parse_qs, quote, unquote

COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"
TOKEN: Final = "hf_of_somebody_who_may"
#: Files with fewer bytes are stored in git itself, so their ETag is a SHA-1.
SMALL: Final = 1000


@dataclass
class Asked:
    """A received request."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class FakeHub:
    """Repositories, switches for faults, and the received requests.

    Attributes:
        url: Value of HF_ENDPOINT and MODELSCOPE_ENDPOINT.
        files: OWNER/REPO/PATH -> contents, from which sizes and checksums are computed.
        wrong: OWNER/REPO/PATH -> contents to send instead of those in ``files``.
        listed: Fields that replace the correct ones of every file in ModelScope's lists.
        gated: OWNER/REPO that require TOKEN.
        statuses: (method, OWNER/REPO/PATH) -> statuses and headers of the first responses.
        cuts: Numbers of bytes after which the next downloads break off.
        resets: True if a download breaks off with a reset of the connection.
        gate: The hub sends the rest of a file only while this event is set.
        asked: All requests, oldest first.
    """

    url: str = ""
    cdn: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    wrong: dict[str, bytes] = field(default_factory=dict)
    listed: dict[str, Any] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    statuses: dict[tuple[str, str], list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    resets: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)

    def downloads(self) -> list[Asked]:
        """The requests for contents of files."""
        return [one for one in self.asked if one.method == "GET" and one.path.startswith("/cdn/")]

    def checksum(self, name: str) -> str:
        """The checksum that the hub sends as the ETag of a file."""
        data = self.files[name]
        if len(data) < SMALL:
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return hashlib.sha256(data).hexdigest()


@contextmanager
def fake_hub(files: Mapping[str, bytes]) -> Iterator[FakeHub]:
    """Run a hub with these files, OWNER/REPO/PATH -> contents, on a free port."""
    hub = FakeHub(files=dict(files))
    hub.gate.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    port = server.server_address[1]
    # The contents have another origin, as on the real hub; clients must not send tokens there.
    hub.url, hub.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Write no log."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append(Asked(self.command, self.path, headers))
        quoted, _, query = self.path.partition("?")
        path = unquote(quoted)
        with suppress(ConnectionError):  # some clients are killed
            if path.startswith("/cdn/"):
                self._contents(path.removeprefix("/cdn/"))
            elif path.startswith("/api/v1/models/"):
                values = {name: found[0] for name, found in parse_qs(query).items()}
                self._modelscope(path.removeprefix("/api/v1/models/"), values)
            else:
                self._resolve(quoted)

    def _resolve(self, quoted: str) -> None:
        repo, found, rest = quoted.lstrip("/").partition("/resolve/")
        revision, _, inside = rest.partition("/")
        name = unquote(f"{repo}/{inside}")
        waiting = self.hub.statuses.get((self.command, name))
        if waiting:
            status, headers = waiting.pop(0)
            self._end(status, headers)
        elif not found or not any(known.startswith(f"{repo}/") for known in self.hub.files):
            self._end(401, {"X-Error-Code": "RepoNotFound"})
        elif repo in self.hub.gated and self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._end(401 if self.headers["Authorization"] is None else 403, _GATED)
        elif revision not in ("main", COMMIT, "refs%2Fpr%2F7"):
            self._end(404, {"X-Error-Code": "RevisionNotFound"})
        elif name not in self.hub.files:
            self._end(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            size = len(self.hub.files[name])
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{self.hub.checksum(name)}"',
                "X-Linked-Size": str(size),
                "ETag": '"of-the-redirect"',
                "Location": f"{self.hub.cdn}/cdn/{name}",
            }
            self._end(302, headers)

    def _modelscope(self, path: str, query: Mapping[str, str]) -> None:
        """Answer as ModelScope: ``OWNER/REPO/repo/files`` is a list, ``OWNER/REPO/repo`` a file."""
        repo, _, what = path.partition("/repo")
        waiting = self.hub.statuses.get(("GET", f"{repo}{what}"))
        allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
        if waiting:
            self._end(*waiting.pop(0))
        elif not any(known.startswith(f"{repo}/") for known in self.hub.files):
            self._end(404, {}, {"Code": 10010205001, "Message": "record not found"})
        elif repo in self.hub.gated and not allowed:
            self._end(404, {}, {"Code": 10010200001, "Message": "no access"})
        elif query["Revision"] != "master":
            self._end(404, {}, {"Code": 10990101004, "Message": "no tree"})
        elif what == "/files":
            self._end(200, {}, {"Code": 200, "Data": {"Files": self._list(repo, query)}})
        else:
            place = quote(f"{repo}/{query['FilePath']}")
            self._end(302, {"Location": f"{self.hub.cdn}/cdn/{place}"})

    def _list(self, repo: str, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """The entries for the files and folders in one folder."""
        root = "/".join(filter(None, (repo, query.get("Root", "")))) + "/"
        below = {n.removeprefix(root) for n in self.hub.files if n.startswith(root)}
        folders = {name.partition("/")[0] for name in below if "/" in name}
        listed: list[dict[str, Any]] = [{"Path": name, "Type": "tree"} for name in folders]
        for name in below:
            if "/" not in name:
                data = self.hub.files[root + name]
                listed.append(
                    {
                        "Path": (root + name).removeprefix(f"{repo}/"),
                        "Type": "blob",
                        "Size": len(data),
                        "Sha256": hashlib.sha256(data).hexdigest(),
                        "Revision": COMMIT,
                        **self.hub.listed,
                    }
                )
        return listed

    def _contents(self, name: str) -> None:
        waiting = self.hub.statuses.get(("GET", f"cdn/{name}"))
        if waiting:
            status, headers = waiting.pop(0)
            self._end(status, headers)
            return
        data = self.hub.wrong.get(name, self.hub.files[name])
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        until = first + self.hub.cuts.pop(0) if self.hub.cuts else len(data)
        self.wfile.write(data[first : min(until, first + SMALL)])
        self.hub.gate.wait(60)
        self.wfile.write(data[first + SMALL : until])
        if until < len(data):
            self._break_off()

    def _break_off(self) -> None:
        self.wfile.flush()
        if self.hub.resets:
            now = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def _end(self, status: int, headers: Mapping[str, str], body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


_GATED: Final = {
    "X-Error-Code": "GatedRepo",
    "X-Error-Message": "Access to this repository is restricted.",
}
