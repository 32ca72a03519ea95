"""The user's package indexes, as they are configured for pip, for uv too.

No index is named here. uv does not read pip's configuration, so its settings are handed over in
the environment, which keeps credentials in index addresses out of command lines and logs.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping

from runbook.protocol import PreconditionNotMet

# A later section overrides an earlier one, as in pip: configuration files, then PIP_* variables.
_SECTIONS = ("global", "install", ":env:")
# pip's setting, uv's variable, and what joins several values there.
_TRANSLATION = (
    ("index-url", "UV_DEFAULT_INDEX", None),
    ("extra-index-url", "UV_INDEX", " "),
    ("find-links", "UV_FIND_LINKS", ","),
    ("trusted-host", "UV_INSECURE_HOST", " "),
    ("cert", "SSL_CERT_FILE", None),
    ("client-cert", "SSL_CLIENT_CERT", None),
    ("proxy", "ALL_PROXY", None),
    ("timeout", "UV_HTTP_TIMEOUT", None),
    ("retries", "UV_HTTP_RETRIES", None),
)
UNSEEDED = {"UV_VENV_SEED": "false"}
"""Keeps `uv venv` from what a user may have it do: put the newest pip of the index, which no lock
names, into the environments that are made."""
_UV_SYNONYMS = {
    "UV_DEFAULT_INDEX": ("UV_INDEX_URL",),
    "UV_INDEX": ("UV_EXTRA_INDEX_URL",),
}


def pip_settings() -> dict[str, str]:
    """pip's effective settings for `pip install`, by long option name."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if listing.returncode != 0:
        raise PreconditionNotMet(
            "pip cannot read its configuration",
            code="pip_configuration",
            cause=listing.stderr.strip()[-2000:],
            remedy="pip config debug",
        )
    return parse_settings(listing.stdout)


def parse_settings(listing: str) -> dict[str, str]:
    """From the output of `pip config list`, one `section.option='value'` a line."""
    sections: dict[str, dict[str, str]] = {name: {} for name in _SECTIONS}
    for line in listing.splitlines():
        name, found, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if not found or section not in sections:
            continue
        text = ast.literal_eval(value) if value[:1] in "'\"" else value
        sections[section][option.removeprefix("default-")] = str(text).strip()
    merged: dict[str, str] = {}
    for name in _SECTIONS:
        merged.update(sections[name])
    return merged


def uv_environment(settings: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that make uv use pip's indexes. What the user has set for uv stays."""
    result = {}
    for option, variable, joint in _TRANSLATION:
        names = (variable, *_UV_SYNONYMS.get(variable, ()))
        if not settings.get(option) or any(environ.get(name) for name in names):
            continue
        value = settings[option]
        result[variable] = joint.join(value.split()) if joint else value
    if not environ.get("UV_INDEX_STRATEGY"):
        # pip looks in all indexes; uv would stop at the first that knows the name. The hashes
        # decide what is installed, so no index can slip in another file.
        result["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return result


def uv_index_options(settings: Mapping[str, str]) -> list[str]:
    """What uv takes only on its command line."""
    return ["--no-index"] if settings.get("no-index", "").lower() in ("1", "true", "yes") else []


def without_credentials(text: str) -> str:
    """Addresses with user and password taken out, for messages."""
    return re.sub(r"(\w+://)[^/@\s]+@", r"\1", text)
