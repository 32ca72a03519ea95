"""The hub's protocol, for one repository.

Model info, tree (paged), paths-info, and `resolve` with HEAD and GET, as huggingface_hub's client
asks for them. As on the hub, a large file is a redirect to a content location of another origin
(a second port), which knows nothing of tokens and answers ranges. Sources:
https://huggingface.co/docs/hub/api, the client's own code, RFC 9110 sections 13 and 14 for
conditions and ranges.
"""

from __future__ import annotations

import json
import re
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from runbook.steps.publish.answering import Answering, Query, Refusal, malformed
from runbook.steps.publish.repository import File

PAGE = 1000
API = "/api/models/"
CONTENT = "/content/"


class Handler(Answering):
    """Requests of both origins; `server.content` says which one it is."""

    def respond(self, path: str, query: Query, body: bytes) -> None:
        if self.server.content:
            self._content(path)
        elif path.startswith(API):
            self._authorize()
            self._api(path.removeprefix(API), query, body)
        else:
            self._authorize()
            self._resolve(path.lstrip("/"))

    # Who may read

    def _authorize(self) -> None:
        repository, token = self.server.repository, self.server.token
        if self.headers.get("Authorization") == f"Bearer {token}" and token:
            return
        if self.headers.get("Authorization") and token:
            raise Refusal(
                HTTPStatus.UNAUTHORIZED, "", "Invalid credentials in Authorization header"
            )
        # As on the hub, a private repository is not told from one that does not exist, and a
        # gated one is listed for everyone.
        if repository.access == "private":
            raise Refusal(HTTPStatus.UNAUTHORIZED, "RepoNotFound", "Repository not found")

    def _authorize_content(self) -> None:
        repository = self.server.repository
        if repository.access == "gated" and not self.headers.get("Authorization"):
            raise Refusal(
                HTTPStatus.UNAUTHORIZED,
                "GatedRepo",
                f"Access to model {repository.name} is restricted. You must have access to it and"
                f" be authenticated to access it. Please log in.",
            )

    # Listing

    def _api(self, path: str, query: Query, body: bytes) -> None:
        repository = self.server.repository
        name = "/".join(path.split("/")[: repository.name.count("/") + 1])
        if name != repository.name:
            raise Refusal(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        verb, _, rest = path.removeprefix(name).lstrip("/").partition("/")
        if verb == "":
            self._send_json(self._info())
        elif verb == "revision":
            self._check_revision(rest)
            self._send_json(self._info())
        elif verb == "auth-check":
            self._authorize_content()
            self._send_json({})
        elif verb == "tree":
            revision, _, folder = rest.partition("/")
            self._check_revision(revision)
            self._tree(folder.strip("/"), query)
        elif verb == "paths-info":
            self._check_revision(rest)
            self._send_json(self._paths_info(body))
        else:
            raise Refusal(HTTPStatus.NOT_FOUND, "", f"Nothing is served at {self.path}")

    def _check_revision(self, revision: str) -> None:
        if revision not in ("main", self.server.repository.revision):
            raise Refusal(HTTPStatus.NOT_FOUND, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _info(self) -> dict[str, Any]:
        repository = self.server.repository
        return {
            "_id": repository.revision[:24],
            "id": repository.name,
            "modelId": repository.name,
            "author": repository.name.partition("/")[0],
            "sha": repository.revision,
            "private": repository.access == "private",
            "gated": "manual" if repository.access == "gated" else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": ["safetensors"],
            "siblings": [{"rfilename": f.path} for f in repository.files],
        }

    def _tree(self, folder: str, query: Query) -> None:
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        repository = self.server.repository
        found = [
            *({"type": "directory", "oid": oid, "size": 0, "path": path}
              for path, oid in repository.folders.items() if path),
            *(f.listing() for f in repository.files),
        ]  # fmt: skip
        entries = sorted(
            (
                entry
                for entry in found
                if entry["path"].startswith(prefix)
                and (recursive or "/" not in entry["path"].removeprefix(prefix))
            ),
            key=lambda entry: str(entry["path"]),
        )
        if folder and not entries:
            raise Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", f"{folder} does not exist")
        limit = min(_count(query, "limit", PAGE), self.server.page)
        start = _count(query, "cursor", 0)
        if not limit:
            raise malformed("`limit`")
        headers = {}
        if start + limit < len(entries):
            target = urlsplit(self.path).path
            more = f"recursive={recursive}&limit={limit}&cursor={start + limit}"
            headers["Link"] = f'<{self.server.url}{target}?{more}>; rel="next"'
        self._send_json(entries[start : start + limit], headers)

    def _paths_info(self, body: bytes) -> list[dict[str, Any]]:
        try:
            if "json" in (self.headers.get("Content-Type") or ""):
                paths = json.loads(body)["paths"]
            else:
                paths = parse_qs(body.decode(), errors="strict").get("paths", [])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise malformed("the list of paths") from error
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise malformed("the list of paths")
        wanted = [self.server.repository.find(path) for path in paths]
        return [f.listing() for f in wanted if f is not None]

    # Content

    def _resolve(self, path: str) -> None:
        repository = self.server.repository
        match = re.fullmatch(rf"{re.escape(repository.name)}/resolve/([^/]+)/(.+)", path)
        if match is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "RepoNotFound", "Repository not found")
        self._authorize_content()
        self._check_revision(match[1])
        file = repository.find(match[2])
        if file is None:
            raise Refusal(HTTPStatus.NOT_FOUND, "EntryNotFound", "Entry not found")
        if file.sha256 is None:
            self._send_file(file, {"X-Repo-Commit": repository.revision})
            return
        self._send(
            HTTPStatus.FOUND,
            {
                "Location": f"{self.server.content_url}{CONTENT}{file.sha256}/{quote(file.path)}",
                "X-Repo-Commit": repository.revision,
                "X-Linked-Size": str(file.size),
                "X-Linked-ETag": f'"{file.sha256}"',
                "Accept-Ranges": "bytes",
            },
        )

    def _content(self, path: str) -> None:
        sha256 = path.removeprefix(CONTENT).partition("/")[0]
        file = self.server.repository.find_large(sha256)
        if file is None or not path.startswith(CONTENT):
            raise Refusal(HTTPStatus.NOT_FOUND, "", "No such content")
        self._send_file(file, {})

    def _send_file(self, file: File, headers: dict[str, str]) -> None:
        etag = self.etag(file)
        headers = {
            **headers,
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        condition = self.headers.get("If-Range")
        asked = self.headers.get("Range") if condition in (None, etag) else None
        span = parse_range(asked, file.size)
        if span is None:
            self._send(HTTPStatus.OK, {**headers, "Content-Length": str(file.size)})
            start, stop = 0, file.size
        elif span[0] >= span[1]:
            headers["Content-Range"] = f"bytes */{file.size}"
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
            return
        else:
            start, stop = span
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
            headers["Content-Length"] = str(stop - start)
            self._send(HTTPStatus.PARTIAL_CONTENT, headers)
        if self.command != "HEAD":
            self.send_content(file, start, stop)

    def etag(self, file: File) -> str:
        """The validator of a file's content, quoted."""
        return f'"{file.etag}"'

    def send_content(self, file: File, start: int, stop: int) -> None:
        """The bytes from `start` up to `stop`, by sendfile(2)."""
        with (self.server.repository.folder / file.path).open("rb") as source:
            sent = self.connection.sendfile(source, start, stop - start)
        if sent != stop - start:
            raise ConnectionResetError(f"{file.path} is shorter than {stop} bytes")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """A Range header as (start, stop), stop excluded; empty if it cannot be satisfied; None if
    there is none, or one that a server may ignore (several ranges, another unit)."""
    match = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", (header or "").strip())
    if match is None or match[1] == match[2] == "":
        return None
    if match[1] == "":
        return max(0, size - int(match[2])), size
    stop = int(match[2]) + 1 if match[2] else size
    return int(match[1]), min(stop, size)


def _count(query: Query, name: str, default: int) -> int:
    """A number of a query."""
    given = query.get(name, [str(default)])[0]
    if not re.fullmatch(r"[0-9]{1,9}", given):
        raise malformed(f"`{name}`")
    return int(given)
