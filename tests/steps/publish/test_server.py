"""The local hub, asked by huggingface_hub's own client and by plain HTTP."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

import huggingface_hub
import pytest
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from runbook.steps.common.stamp import Stamp
from runbook.steps.publish.handler import parse_range
from runbook.steps.publish.repository import KIND, Repository
from runbook.steps.publish.server import start
from tests.steps.common.hub.hub import write_repository

NAME = "org/tiny"
SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_repository(folder)
    return folder


@pytest.fixture
def serve(folder):
    servers = []

    def begin(access="open", **options):
        hub, content = start(Repository.of(folder, NAME, access), **options)
        servers.extend([hub, content])
        return hub

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def get(url, method="GET", **headers):
    """One plain request, nothing followed: (status, headers, body)."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=5)
    connection.request(
        method, parts.path, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def tree_of(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def test_snapshot_by_the_hubs_own_client(serve, folder, tmp_path):
    hub = serve()
    path = snapshot_download(
        NAME, endpoint=hub.url, cache_dir=tmp_path / "cache", local_dir=tmp_path / "d", token=False
    )
    found = tree_of(tmp_path / "d")
    assert {k: v for k, v in found.items() if not k.startswith(".cache/")} == tree_of(folder)
    assert path == str(tmp_path / "d")


def test_model_info_and_tree(serve, folder):
    hub = serve()
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info(NAME, revision="main")
    assert info.sha == hub.repository.revision
    assert len(info.sha) == 40
    assert {s.rfilename for s in info.siblings} == set(tree_of(folder))
    entries = {e.path: e for e in api.list_repo_tree(NAME, recursive=True)}
    assert set(entries) == {*tree_of(folder), "extra"}
    large = entries[SHARD]
    assert large.lfs.sha256 == hub.repository.find(SHARD).sha256
    assert large.lfs.size == large.size == (folder / SHARD).stat().st_size
    assert entries["config.json"].lfs is None
    top = {e.path for e in api.list_repo_tree(NAME)}
    assert "extra" in top
    assert "extra/notes with space.md" not in top
    inside = [e.path for e in api.list_repo_tree(NAME, "extra")]
    assert inside == ["extra/notes with space.md"]


def test_tree_is_paged(serve, folder):
    hub = serve(page=2)
    found = [
        e.path for e in HfApi(endpoint=hub.url, token=False).list_repo_tree(NAME, recursive=True)
    ]
    assert len(found) == len(set(found)) == len(tree_of(folder)) + 1


def test_paths_info(serve):
    hub = serve()
    found = HfApi(endpoint=hub.url, token=False).get_paths_info(NAME, [SHARD, "none"])
    assert [(f.path, f.lfs.sha256) for f in found] == [(SHARD, hub.repository.find(SHARD).sha256)]


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda api: api.model_info("org/none"), RepositoryNotFoundError),
        (lambda api: api.model_info(NAME, revision="v1"), RevisionNotFoundError),
        (lambda api: list(api.list_repo_tree(NAME, "none")), RemoteEntryNotFoundError),
        (lambda api: hf_hub_download(NAME, "none", endpoint=api.endpoint, token=False),
         RemoteEntryNotFoundError),
    ],
)  # fmt: skip
def test_what_does_not_exist(serve, ask, error, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error):
        ask(HfApi(endpoint=serve().url, token=False))


@pytest.mark.parametrize(
    ("access", "error"), [("private", RepositoryNotFoundError), ("gated", GatedRepoError)]
)
def test_closed_repository(serve, access, error):
    hub = serve(access, token="hf_right")
    with pytest.raises(error):
        HfApi(endpoint=hub.url, token=False).auth_check(NAME)
    HfApi(endpoint=hub.url, token="hf_right").auth_check(NAME)
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.url, token="hf_wrong").auth_check(NAME)
    url = hf_hub_url(NAME, SHARD, endpoint=hub.url)
    assert get(url)[0] == 401
    assert get(url, Authorization="Bearer hf_right")[0] == 302


def test_large_file_is_a_redirect_to_another_origin(serve, folder):
    hub = serve()
    status, headers, body = get(hf_hub_url(NAME, SHARD, endpoint=hub.url), "HEAD")
    file = hub.repository.find(SHARD)
    assert (status, body) == (302, b"")
    assert headers["X-Repo-Commit"] == hub.repository.revision
    assert headers["X-Linked-Size"] == str(file.size)
    assert headers["X-Linked-ETag"] == f'"{file.sha256}"'
    assert urlsplit(headers["Location"]).port != urlsplit(hub.url).port
    assert get(headers["Location"])[2] == (folder / SHARD).read_bytes()
    assert get(headers["Location"].replace(file.sha256, "0" * 64))[0] == 404


def test_small_file_comes_from_the_hub_itself(serve, folder):
    hub = serve()
    status, headers, body = get(hf_hub_url(NAME, "config.json", endpoint=hub.url))
    assert status == 200
    assert body == (folder / "config.json").read_bytes()
    assert headers["ETag"] == f'"{hub.repository.find("config.json").oid}"'


def test_ranges_and_conditions(serve, folder):
    hub = serve()
    url = get(hf_hub_url(NAME, SHARD, endpoint=hub.url))[1]["Location"]
    data = (folder / SHARD).read_bytes()
    status, headers, body = get(url, Range="bytes=10-19")
    assert (status, body) == (206, data[10:20])
    assert headers["Content-Range"] == f"bytes 10-19/{len(data)}"
    etag = headers["ETag"]
    assert get(url, Range="bytes=-5")[2] == data[-5:]
    assert get(url, Range="bytes=5-", If_Range=etag)[0] == 206
    status, _, body = get(url, Range="bytes=5-", If_Range='"other"')
    assert (status, body) == (200, data), "another version: the whole of it"
    status, headers, _ = get(url, Range=f"bytes={len(data)}-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(data)}")


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=5-", (5, 10)),
        ("bytes=5-99", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=10-", (10, 10)),
        ("bytes=-", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
    ],
)
def test_range_header(header, span):
    assert parse_range(header, 10) == span


def test_listens_on_the_loopback_only(serve):
    hub = serve()
    assert hub.server_address[0] == "127.0.0.1"


def test_manifest_is_read_back(folder, tmp_path):
    repository = Repository.of(folder, NAME)
    Stamp(KIND, made=repository.dump()).write(tmp_path / "m.json")
    assert Repository.load(tmp_path / "m.json") == repository
    (tmp_path / "m.json").write_text("{}")
    with pytest.raises(ValueError, match="no manifest"):
        Repository.load(tmp_path / "m.json")


BIG = "9" * 5000
PATHS_INFO = f"POST /api/models/{NAME}/paths-info/main HTTP/1.1\r\n"
BODIES = [b"{", b"[]", b"7", b'{"paths":7}', b'{"paths":[7]}', b"{}", b"\xff", b"[" * 9999]
MALFORMED = [
    # A request without the headers that each has, its body, the status of the answer.
    (f"GET /api/models/{NAME}/tree/main?limit=x HTTP/1.1", b"", 400),
    (f"GET /api/models/{NAME}/tree/main?limit=-1 HTTP/1.1", b"", 400),
    (f"GET /api/models/{NAME}/tree/main?limit=0 HTTP/1.1", b"", 400),
    (f"GET /api/models/{NAME}/tree/main?cursor={BIG} HTTP/1.1", b"", 400),
    (f"GET /api/models/{NAME}/tree/main?cursor=%ff HTTP/1.1", b"", 400),
    (f"GET /{NAME}/resolve/main/%ff HTTP/1.1", b"", 400),
    (f"GET /{NAME}/resolve/main/a%00b HTTP/1.1", b"", 400),
    (f"GET /{NAME}/resolve/main%0a/a%0d%0ab HTTP/1.1", b"", 400),
    ("GET http://[::1 HTTP/1.1", b"", 400),
    (f"{PATHS_INFO}Content-Length: x", b"", 400),
    (f"{PATHS_INFO}Content-Length: -5", b"", 400),
    (f"{PATHS_INFO}Content-Length: {BIG}", b"", 413),
    (f"{PATHS_INFO}Content-Length: 9999999", b"", 413),
    (f"{PATHS_INFO}Transfer-Encoding: chunked", b"", 400),
    *(
        (f"{PATHS_INFO}Content-Type: application/json\r\nContent-Length: {len(body)}", body, 400)
        for body in BODIES
    ),
    (f"{PATHS_INFO}Content-Length: 8", b"paths=%f", 200),
    (f"GET /api/models/{NAME}/revision/\xe9 HTTP/1.1", b"", 404),
    (f"GET /{NAME}/resolve/main/config.json HTTP/1.1\r\nRange: bytes={BIG}-", b"", 200),
    ("GET", b"", 400),
    ("GET / HTTP/9.9", b"", 505),
    ("BREW / HTTP/1.1", b"", 501),
]


@pytest.mark.parametrize(("request_", "body", "status"), MALFORMED)
def test_malformed_requests(serve, capsys, request_, body, status):
    import socket

    hub = serve()
    with socket.create_connection(hub.server_address) as connection:
        head = f"{request_}\r\nHost: x\r\nConnection: close\r\n\r\n".encode("latin-1")
        connection.sendall(head + body)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    first = answer.partition(b"\r\n")[0]
    assert str(status).encode() in (first if first.startswith(b"HTTP") else answer), answer[:300]
    assert "Traceback" not in capsys.readouterr().err
