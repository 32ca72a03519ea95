"""What the environment says of proxies and certificates."""

from __future__ import annotations

import os

import pytest
import trustme

from runbook.protocol import PreconditionNotMet
from runbook.steps.common.network import origin, proxy_for, trust

NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
P, Q = "http://proxy:3128", "http://other:8080"


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No setting of this user takes part."""
    for name in (*NAMES, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


PROXIES = [
    ({}, "https://hub.org/x", None),
    ({"HTTPS_PROXY": P}, "https://hub.org/x", P),
    ({"HTTPS_PROXY": P}, "http://hub.org/x", None),
    ({"HTTP_PROXY": P}, "http://hub.org/x", P),
    ({"HTTP_PROXY": P, "REQUEST_METHOD": "GET"}, "http://hub.org/x", None),
    ({"http_proxy": P, "REQUEST_METHOD": "GET"}, "http://hub.org/x", P),
    ({"ALL_PROXY": P}, "https://hub.org/x", P),
    ({"all_proxy": P}, "http://hub.org/x", P),
    ({"ALL_PROXY": P, "HTTPS_PROXY": Q}, "https://hub.org/x", Q),
    ({"HTTPS_PROXY": P, "https_proxy": Q}, "https://hub.org/x", Q),
    ({"HTTPS_PROXY": P, "https_proxy": ""}, "https://hub.org/x", None),
    ({"HTTPS_PROXY": "proxy:3128"}, "https://hub.org/x", P),
    ({"HTTPS_PROXY": "http://u:p@proxy:3128"}, "https://hub.org/x", "http://u:p@proxy:3128"),
    ({"ALL_PROXY": P}, "http://127.0.0.1:8000/", None),
    ({"ALL_PROXY": P}, "http://localhost:8000/", None),
    ({"ALL_PROXY": P}, "http://[::1]:8000/", None),
    ({"ALL_PROXY": "socks5://x:1"}, "http://127.0.0.1:8000/", None),
]
EXCEPTIONS = [  # NO_PROXY, host, whether it goes past the proxy
    ("*", "hub.org", True),
    ("hub.org", "hub.org", True),
    ("HUB.org", "hub.ORG", True),
    ("hub.org", "cdn.hub.org", True),
    ("hub.org", "myhub.org", False),
    (".hub.org", "cdn.hub.org", True),
    ("*.hub.org", "cdn.hub.org", True),
    ("a.org, hub.org", "hub.org", True),
    ("a.org hub.org", "hub.org", True),
    ("a.org,,b.org", "hub.org", False),
    ("hub.org:443", "hub.org", True),
    ("hub.org:8443", "hub.org", False),
    ("hub.org:8443", "hub.org:8443", True),
    ("10.0.0.0/8", "10.1.2.3", True),
    ("10.0.0.0/8", "11.1.2.3", False),
    ("10.1.2.3/8", "10.9.9.9", True),
    ("10.1.2.3", "10.1.2.3", True),
    ("10.1.2.3:443", "10.1.2.3", True),
    ("10.1.2.3:80", "10.1.2.3", False),
    ("fd00::/8", "[fd00::7]", True),
    ("fd00::/8", "[fe80::7]", False),
    ("[fd00::7]:443", "[fd00::7]", True),
    ("10.0.0.0/8", "hub.org", False),
    ("10.0.0.0/99", "10.0.0.1", False),
    ("hub.org.", "hub.org", True),
    ("hub.org", "hub.org.", True),
]


@pytest.mark.parametrize(("settings", "url", "proxy"), PROXIES)
def test_proxy(settings, url, proxy, monkeypatch):
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(url) == proxy


@pytest.mark.parametrize(("exceptions", "host", "past"), EXCEPTIONS)
def test_servers_without_a_proxy(exceptions, host, past, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", P)
    monkeypatch.setenv("NO_PROXY", exceptions)
    assert proxy_for(f"https://{host}/x") == (None if past else P)


@pytest.mark.parametrize(
    "value",
    ["socks5://p:1080", "SOCKS5H://p:1", "socks4://p:1", "ftp://p:1", "http://", "http://p:x",
     "http://p:99999", "http://u:secret@p:x"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "ALL_PROXY", "https_proxy"])
def test_a_proxy_that_cannot_be_used_is_refused_in_words(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(PreconditionNotMet) as refusal:
        proxy_for("https://hub.org/x")
    assert refusal.value.code == "proxy_not_supported"
    assert refusal.value.message.startswith(name)
    assert "secret" not in str(refusal.value.error_dict())
    assert "NO_PROXY=hub.org" in str(refusal.value.remedy)


def test_certificates(tmp_path, monkeypatch):
    ours, theirs = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(tmp_path / "ours.pem"))
    theirs.cert_pem.write_to_path(str(tmp_path / "theirs.pem"))

    def known() -> int:
        return trust().cert_store_stats()["x509_ca"]

    assert known() > 50
    assert trust() is trust(), "read once"
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ours.pem"))
    assert known() == 1
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "theirs.pem"))
    assert known() == 2
    monkeypatch.delenv("SSL_CERT_FILE")
    assert known() == 1
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path))
    assert known() == 0, "a folder is asked as certificates come"
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert known() > 50


@pytest.mark.parametrize(
    "name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"]
)
@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_certificates_that_cannot_be_read(name, content, tmp_path, monkeypatch):
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv(name, os.fspath(path))
    with pytest.raises(PreconditionNotMet) as refusal:
        trust()
    assert refusal.value.code == "certificates_unreadable"
    assert name in refusal.value.message
    assert str(path) in refusal.value.message


def test_origin():
    assert origin("https://Hub.org/x") == origin("https://hub.org:443/y")
    assert origin("https://hub.org") != origin("http://hub.org")
    assert origin("https://hub.org") != origin("https://hub.org:444")
