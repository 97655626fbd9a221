"""A hub on this machine for tests: as much of its protocol as the client of huggingface_hub needs to push and to fetch.

Repositories: https://huggingface.co/docs/hub/api; large files: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
What is committed lies in `repositories`, and is what is fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
TOKEN = "hf_of_this_test"


class HubServer(ThreadingHTTPServer):
    """`repositories`: name -> {"private": ..., "branches": {branch: {file name: content}}}; `writes`: whether the token
    may.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, dict[str, Any]] = {}
        self.large: dict[str, bytes] = {}
        self.messages: list[str] = []
        self.writes = True


class _Answers(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def do_PUT(self) -> None:
        self.server.large[self.path.rpartition("/")[2]] = self._body()
        self._send({})

    def do_POST(self) -> None:
        body = self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send({"error": "Invalid credentials"}, 401)
            return
        path = self.path.partition("?")[0]
        if not self.server.writes:
            self._send({"error": "Forbidden"}, 403)
        elif path == "/api/validate-yaml":  # of the card's front matter
            self._send({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._send({"transfer": "basic", "objects": objects})
        else:
            organisation, name, action, branch = path.removeprefix("/api/models/").split("/")
            repository = self.server.repositories[f"{organisation}/{name}"]
            if action == "branch":
                repository["branches"].setdefault(branch, {})
                self._send({})
            elif action == "preupload":
                modes = [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for one in json.loads(body)["files"]
                ]
                self._send({"files": modes})
            elif action == "commit":
                self._commit(repository["branches"][branch], body)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.server.repositories:
            self._send({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        visible = asked.get("visibility", "private" if asked.get("private") else "public")
        self.server.repositories[name] = {"private": visible == "private", "branches": {"main": {}}}
        self._send({"url": f"{self.server.url}/{name}"})

    def _commit(self, files: dict[str, bytes], body: bytes) -> None:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.server.messages.append(value["summary"])
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                content = self.server.large[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        url = self.path.removeprefix("/api/models/").partition("/commit/")[0]
        self._send({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.server.url}/{url}/commit/{COMMIT}"})

    def do_HEAD(self) -> None:
        self._fetch(with_body=False)

    def do_GET(self) -> None:
        self._fetch(with_body=True)

    def _fetch(self, *, with_body: bool) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models")
        name = "/".join(path.split("/")[1:3])
        repository = self.server.repositories.get(name)
        if repository is None or (repository["private"] and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self._send({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
            return
        files = repository["branches"]["main"]
        if "/resolve/" in path:
            file = path.rpartition("/")[2]
            if file not in files:
                self._send({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            marks = {"ETag": f'"{hashlib.sha256(files[file]).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(files[file], headers=marks, with_body=with_body)
        elif "/tree/" in path:
            self._send([{"type": "file", "path": one, "size": len(files[one]), "oid": one} for one in files])
        else:
            siblings = [{"rfilename": one} for one in files]
            self._send({"id": name, "sha": COMMIT, "private": repository["private"], "siblings": siblings})

    def _send(
        self, value: object, status: int = 200, headers: dict[str, str] | None = None, *, with_body: bool = True
    ) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, text)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""
