"""Python code that lies beside a model's weights: `trust_remote_code` runs only what was named.

Whoever starts a server names by SHA-256 each file of code that it may run. Looked at before a
server is started and, by become.py, at every start, so a unit of systemd's starts no other code
after a reboot than the code that was approved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from runbook.files import digest_file, parse, read_json, read_regular
from runbook.protocol import PreconditionNotMet, Reason

SUFFIXES = (".py", ".pyc", ".pyo", ".so")
TRUST = "trust-remote-code"
PLACES = ("model", "tokenizer", "hf-config-path")
"""Options of `vllm serve` that name a folder or repository, code of which it may run."""
SPECULATION = "speculative-config"
NO_MODELS = ("ngram", "[ngram]", "suffix")
"""What `model` of a speculative_config may be besides: a method without a model."""
SHOWN = 20


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of code at any depth, by its path; "" if it cannot be read."""
    found: dict[str, str] = {}
    seen: set[str] = set()
    for above, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(above)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if name.endswith(SUFFIXES):
                path = Path(above, name)
                try:
                    digest = digest_file(path) if path.is_file() else ""
                except OSError:
                    digest = ""
                found[path.relative_to(folder).as_posix()] = digest
    return dict(sorted(found.items()))


def refusal(argv: Sequence[str], approved: Collection[str]) -> Reason | None:
    """Why `vllm serve` must not be started so: it would run code that nobody has approved."""
    words = list(argv)
    if words[1:2] != ["serve"] or not _trusts(words):
        return None
    unread: dict[str, str] = {}
    for place in dict.fromkeys(_places(words)):
        folder = Path(place)
        if not folder.is_dir():
            return _elsewhere(f"code of {place}, which is no folder")
        if named := next(_foreign(folder), None):
            return _elsewhere(f"{named}, which is not in {folder}")
        found = files(folder)
        unread |= {str(folder / n): d for n, d in found.items() if not d or d not in approved}
    if any("auto_map" in word for word in words):
        return _elsewhere("what `auto_map` among the arguments names")
    return _unapproved(unread) if unread else None


def require(spec: dict[str, Any]) -> None:
    """Raise unless all code that a service would run is approved in its `trusted_code`."""
    reason = refusal(spec["argv"], spec.get("trusted_code") or ())
    if reason is not None:
        raise PreconditionNotMet(reason.message, code=reason.code, remedy=reason.remedy)


def _unapproved(files: dict[str, str]) -> Reason:
    listed = [f"{path} (sha256 {digest or 'unknown'})" for path, digest in files.items()]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    digests = ", ".join(sorted(set(filter(None, files.values()))))
    if unreadable := [path for path, digest in files.items() if not digest]:
        remedy = f"make {', '.join(unreadable[:3])} readable or remove it"
    else:
        remedy = f"read these files; if they may run as this user, add to `trusted_code`: {digests}"
    return Reason(
        "code_not_approved",
        "trust_remote_code would run Python code that is not approved: "
        + ", ".join(listed[:SHOWN])
        + more,
        f"{remedy}; else drop trust_remote_code",
    )


def _elsewhere(what: str) -> Reason:
    return Reason(
        "code_elsewhere",
        f"trust_remote_code would run {what}: it cannot be approved by digest",
        "put that code beside the weights and name it there, or drop trust_remote_code",
    )


def _options(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, value) of each option, by the names of vLLM's parser, which takes `_` for `-`."""
    for number, word in enumerate(words):
        if word.startswith("-") and len(word) > 1:
            name, given, value = word.lstrip("-").partition("=")
            after = words[number + 1] if number + 1 < len(words) else ""
            yield name.replace("_", "-"), value if given else after


def _is(name: str, option: str) -> bool:
    """Whether the parser may take it for that option: it takes beginnings of names too."""
    return len(name) > 1 and option.startswith(name)


def _trusts(words: Sequence[str]) -> bool:
    for name, value in _options(words):
        if _is(name, TRUST):
            return True
        if _is(name, "config"):  # a file with more options
            said = read_regular(value)
            if said is None or b"trust" in said:
                return True
    return False


def _places(words: Sequence[str]) -> Iterator[str]:
    """The folders, or repositories of a hub, whose code may be run."""
    yield words[2]
    for name, value in _options(words):
        head, _, key = name.partition(".")
        if any(_is(name, option) for option in PLACES):
            yield value
        elif head == "sc" or _is(head, SPECULATION):
            draft = value if key else _object(value).get("model")
            if isinstance(draft, str) and key in ("", "model") and draft not in NO_MODELS:
                yield draft


def _object(text: str) -> dict[str, Any]:
    value = parse(text.encode(errors="surrogateescape"))
    return value if isinstance(value, dict) else {}


def _foreign(folder: Path) -> Iterator[str]:
    """What `auto_map` takes from another repository (`owner/name--module.Class`)."""
    for path in sorted(folder.glob("*config.json")):
        waiting = [read_json(path)]
        while waiting:
            value = waiting.pop()
            if isinstance(value, dict):
                if "--" in (named := json.dumps(value.get("auto_map"))):
                    yield f"{named} of {path.name}"
                waiting += value.values()
            elif isinstance(value, list):
                waiting += value
