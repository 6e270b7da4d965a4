"""A model hub of one process: the few endpoints that pushing and fetching need, on 127.0.0.1, its files in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_tests"


class Hub:
    """What the hub holds, and what it was asked.

    Attributes:
        branches: files by name, by repository and branch: ``branches["me/run", "main"]["config.json"]``.
        commits: one dict a commit: repo, branch, summary, files, deleted, pull_request.
        private: whether a repository was made private, by name.
        gated: names of repositories that ask for consent.
    """

    def __init__(self) -> None:
        self.branches: dict[tuple[str, str], dict[str, bytes]] = {}
        self.commits: list[dict[str, Any]] = []
        self.private: dict[str, Any] = {}
        self.gated: set[str] = set()
        self.snapshots: dict[tuple[str, str], dict[str, bytes]] = {}
        hub = self

        class Handler(_Handler):
            def answer(self, body: bytes) -> tuple[int, dict[str, str], Any]:
                return hub.answer(self.command, self.path, self.headers.get("authorization"), body)

        self.server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def answer(self, verb: str, path: str, authorization: str | None, body: bytes) -> tuple[int, dict[str, str], Any]:
        """Status, headers, and the body as bytes or as JSON."""
        path, _, query = path.partition("?")
        if path == "/api/validate-yaml":
            return 200, {}, {"errors": [], "warnings": []}
        writes = verb == "POST" and "/paths-info/" not in path
        if writes and authorization != f"Bearer {TOKEN}":
            return 401, {}, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if (name, "main") in self.branches:
                return 409, {}, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.private[name] = asked.get("private", asked.get("visibility") == "private")
            self.branches[name, "main"] = {".gitattributes": b""}
            return 200, {}, {"url": f"{self.url}/{name}", "name": name, "id": name}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/discussions(/1)?", path):
            return 200, {}, self._proposal(found[1], new=verb == "POST")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch|tree|revision)/(.+)", path):
            return self._model(verb, found[1], found[2], found[3].replace("%2F", "/"), query, body)
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[2], found[3].replace("%2F", "/"))
        return 404, {"X-Error-Code": "RepoNotFound"}, {"error": f"no endpoint {verb} {path}"}

    def _proposal(self, repo: str, *, new: bool) -> dict[str, Any]:
        """The one pull request of a repository, which is a branch of its own."""
        if new:
            self.branches[repo, "refs/pr/1"] = dict(self.branches[repo, "main"])
        about = {"num": 1, "title": "", "createdAt": "2026-01-01T00:00:00.000Z", "status": "open", "events": []}
        about |= {"isPullRequest": True, "changes": {"base": "refs/heads/main"}, "filesWithConflicts": []}
        return {**about, "repo": {"name": repo, "type": "model"}, "url": f"{self.url}/{repo}/discussions/1"}

    def _model(self, verb: str, repo: str, what: str, rev: str, query: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        if (repo, "main") not in self.branches:
            return 404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"}
        if repo in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, {"error": "Access to this model is restricted"}
        if what == "branch":
            if (repo, rev) in self.branches:
                return 409, {}, {"error": "Reference already exists"}
            self.branches[repo, rev] = dict(self.branches[repo, "main"])
            return 200, {}, {}
        files = self._at(repo, rev)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, {"error": "Invalid rev id"}
        if what == "preupload":
            wanted = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]
            ]
            return 200, {}, {"files": wanted}
        if what == "commit":
            return 200, {}, self._commit(repo, rev, query, body)
        sha = self._freeze(repo, files)
        names = sorted(files)
        if what == "revision":
            siblings = [{"rfilename": name} for name in names]
            return 200, {"X-Repo-Commit": sha}, {"id": repo, "modelId": repo, "sha": sha, "siblings": siblings, "tags": []}
        listed = [{"type": "file", "path": name, "size": len(files[name]), "oid": _oid(files[name])} for name in names]
        return 200, {"X-Repo-Commit": sha}, listed

    def _commit(self, repo: str, branch: str, query: str, body: bytes) -> dict[str, Any]:
        done: dict[str, Any] = {
            "repo": repo,
            "branch": branch,
            "files": [],
            "deleted": [],
            "pull_request": "create_pr=1" in query,
        }
        files = dict(self.branches[repo, branch])
        for line in body.decode().splitlines():
            part = json.loads(line)
            value = part["value"]
            if part["key"] == "header":
                done["summary"] = value["summary"]
            elif part["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                done["files"].append(value["path"])
            elif part["key"] == "deletedFile":
                del files[value["path"]]
                done["deleted"].append(value["path"])
        self.commits.append(done)
        url = f"{self.url}/{repo}/commit/{len(self.commits):040x}"
        answer = {"success": True, "commitOid": f"{len(self.commits):040x}", "commitUrl": url}
        if done["pull_request"]:
            return answer | {"pullRequestUrl": f"{self.url}/{repo}/discussions/1"}
        self.branches[repo, branch] = files
        return answer

    def _file(self, repo: str, rev: str, name: str) -> tuple[int, dict[str, str], Any]:
        files = self._at(repo, rev)
        if files is None or name not in files:
            return 404, {"X-Error-Code": "EntryNotFound" if files else "RevisionNotFound"}, {"error": "not found"}
        headers = {"ETag": f'"{_oid(files[name])}"', "X-Repo-Commit": self._freeze(repo, files)}
        return 200, headers, files[name]

    def _at(self, repo: str, rev: str) -> dict[str, bytes] | None:
        return self.snapshots.get((repo, rev)) or self.branches.get((repo, rev))

    def _freeze(self, repo: str, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr(sorted((name, _oid(content)) for name, content in files.items())).encode()).hexdigest()
        self.snapshots[repo, sha] = dict(files)
        return sha


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # several files are asked for at once


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes) -> tuple[int, dict[str, str], Any]:
        raise NotImplementedError

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        status, headers, content = self.answer(body)
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_HEAD = do_DELETE = _serve

    def log_message(self, *_: Any) -> None:
        pass


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
