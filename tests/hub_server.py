"""A small Hub on 127.0.0.1: as much of its API as downloads and uploads of models need."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml


@dataclass
class Repo:
    """Commits (hash → path → content) and branches (name → hash)."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str) -> str:
        whole = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        sha = hashlib.sha1(repr((len(self.commits), sorted(whole.items()))).encode()).hexdigest()
        self.commits[sha], self.branches[branch] = whole, sha
        return sha

    def find(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, code: str = "", message: str = "", body: dict | None = None) -> None:
        super().__init__(message)
        self.status, self.body = status, body or {"error": message}
        self.headers = {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Error-Message": message} if message else {}


class Hub:
    """What the server holds and what it was asked; tests change it as they like.

    Attributes:
        repos: by "owner/name".
        token: what a request must carry to write, and to see private or gated repositories.
        refuse: a status with which everything is refused.
        broken: paths of files that cannot be sent.
        downloaded: (repository, commit, path) of every file that was sent.
        asked: method and path of every request.
        messages: of the commits that were uploaded.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.token = "hf_right"
        self.refuse: int | None = None
        self.broken: set[str] = set()
        self.downloaded: list[tuple[str, str, str]] = []
        self.asked: list[str] = []
        self.messages: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._connections: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def put(self, name: str, files: dict[str, bytes], branch: str = "main", **how: bool) -> str:
        """Commit files to a repository, made if need be; returns the commit."""
        repo = self.repos.setdefault(name, Repo(**how))
        return repo.commit(files, branch)

    def put_folder(self, name: str, folder, inside: str = "", **how) -> str:
        """Commit a folder's files, below `inside`."""
        files = {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
        return self.put(name, {f"{inside}/{k}".strip("/"): v for k, v in files.items()}, **how)

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        repo = self.repos[name]
        return repo.commits[repo.branches[branch]]

    def sent(self) -> set[str]:
        """Paths of the files that were downloaded."""
        return {path for _, _, path in self.downloaded}

    def connected(self, connection: socket.socket) -> None:
        self._connections.append(connection)

    def stop(self) -> None:
        """Take no more requests, on open connections neither."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, method: str, path: str, body: bytes, allowed: bool) -> tuple[dict | list | bytes, dict]:
        """One answer: JSON or a file's bytes, and headers."""
        if self.refuse:
            raise Refusal(self.refuse, message="not today")
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            return self._model(method, name, self._repo(name, allowed), parts[4:], body, allowed), {}
        if parts[0] == "api":
            return self._service(parts[1:], json.loads(body or b"{}"), allowed), {}
        name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        repo = self._repo(name, allowed)
        if repo.gated and not allowed:
            raise Refusal(403, "GatedRepo", "ask for access")
        sha = self._commit(repo, revision)
        if file not in repo.commits[sha]:
            raise Refusal(404, "EntryNotFound", "no such file")
        if file in self.broken:
            raise Refusal(503, message="the disk is gone")
        if method == "GET":
            self.downloaded.append((name, sha, file))
        content = repo.commits[sha][file]
        return content, {"ETag": f'"{_blob(content)}"', "X-Repo-Commit": sha}

    def _repo(self, name: str, allowed: bool) -> Repo:
        repo = self.repos.get(name)
        if repo is None or (repo.private and not allowed):
            raise Refusal(404, "RepoNotFound", "no such repository")
        return repo

    @staticmethod
    def _commit(repo: Repo, revision: str) -> str:
        if sha := repo.find(revision):
            return sha
        raise Refusal(404, "RevisionNotFound", "no such revision")

    def _model(self, method, name, repo, rest, body, allowed):
        what, revision = (rest + ["revision", "main"][len(rest) :])[:2]
        if method == "POST" and not allowed:
            raise Refusal(403, message="you may not write here")
        if what == "branch":
            if revision in repo.branches:
                raise Refusal(409, message="there is such a branch")
            repo.branches[revision] = repo.branches["main"]
            return {}
        sha = self._commit(repo, revision)
        files = repo.commits[sha]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return {"id": name, "sha": sha, "private": repo.private, "siblings": siblings}
        if what == "tree":
            return [{"type": "file", "path": p, "size": len(v), "oid": _blob(v)} for p, v in files.items()]
        if what == "preupload":
            asked = [f["path"] for f in json.loads(body)["files"]]
            return {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]}
        assert what == "commit", rest
        lines = [json.loads(line) for line in body.splitlines()]
        self.messages += [x["value"]["summary"] for x in lines if x["key"] == "header"]
        values = [x["value"] for x in lines if x["key"] == "file"]
        sha = repo.commit({v["path"]: base64.b64decode(v["content"]) for v in values}, revision)
        return {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None}

    def _service(self, rest, asked, allowed):
        if rest == ["validate-yaml"]:
            header = yaml.safe_load(asked["content"].split("---")[1])
            if not isinstance(header, dict) or header.get("license") == "wrong":
                errors = [{"message": '"license" must be one of those we know'}]
                raise Refusal(400, message="no valid header", body={"errors": errors})
            return {}
        if rest != ["repos", "create"]:
            raise Refusal(404, message="no such service")
        if not allowed:
            raise Refusal(401, message="invalid username or password")
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.repos:
            raise Refusal(409, message="exists", body={"error": "exists", "url": f"{self.url}/{name}"})
        private = asked.get("private") or asked.get("visibility") == "private"
        self.put(name, {".gitattributes": b""}, private=bool(private))
        return {"url": f"{self.url}/{name}"}


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            hub.connected(self.connection)

        def _serve(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            allowed = self.headers.get("Authorization") == f"Bearer {hub.token}"
            try:
                content, headers = hub.answer(self.command, path, body, allowed)
                status = 200
            except Refusal as refusal:
                content, headers, status = refusal.body, refusal.headers, refusal.status
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = _serve

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler
