"""Keeps the values of secrets out of everything that is written."""

from __future__ import annotations

import bisect
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

from runbook import logins
from runbook.errors import PRECONDITION, RunbookError

SHORTEST = 8
"""Characters. A shorter value would blank out ordinary words, and is guessed in hours."""
SHORTEST_FORM = 6
"""Bytes of an encoded piece of a value that are looked for."""
# Values that stand in ordinary output or are words of our own records.
COMMON = frozenset(
    (
        "localhost",
        "127.0.0.1",
        "undefined",
        "username",
        "password",
        "password1",
        "passw0rd",
        "changeme",
        "production",
        "development",
        "staging",
        "anonymous",
        "12345678",
        "123456789",
        "1234567890",
        "runbook/1",
        "workspace",
        "checkpoint",
        "checkpoints",
        "satisfied",
        "cancelled",
        "interrupted",
        "orphaned",
        "finished",
        "progress",
        "question",
        "endpoint",
        "retrying",
        "retryable",
        "exit_code",
        "blocked",
        "never_ran",
        "inactive",
    )
)

_EVENT = re.compile(r"(?:run|step|attempt|undo)\.[a-z]+")
"""Types of events."""

_named: set[str] = set()
_OF_URLS = re.compile(r"PROXY|ENDPOINT|URL|INDEX|MIRROR|CHANNEL", re.IGNORECASE)
_LOGIN = re.compile(r"(\b[a-z][a-z0-9+.-]*://)([^/\s'\"<>`]*)@", re.IGNORECASE)


class Redactor:
    """Replaces the values of the named environment variables by `[NAME]`, and with them what no
    document declares: the token of the hub's login, passwords in URLs of the environment, and in
    any URL who logs in with which password, by `***`. `given` is plain data: passwords in its URLs
    are looked for outside of them too.

    What is looked for: the value, each of its lines if it has several, and the forms that these
    take in URLs, JSON, Python, base64 (whatever stands before them) and hexadecimal. `feed` works
    on a stream: it holds back the end of a chunk that may be the beginning of a form. Raises
    RunbookError if a value is such that ordinary output would be blanked out.
    """

    def __init__(self, names: Iterable[str], given: Any = None) -> None:
        values = {name: value for name in names if (value := os.environ.get(name))}
        for name, value in values.items():
            if why := unfit(value):
                raise _refused(name, why)
        _named.update(values)
        forms: dict[bytes, bytes] = {}
        for name, value in (*values.items(), *_undeclared(), *_of_urls(given)):
            for form in _forms(value):
                forms.setdefault(form, f"[{name}]".encode())
        self._forms = forms
        self._sorted = sorted(forms)
        # Where one form begins another, the longer one, which comes after it, is meant.
        any_form = b"|".join(map(re.escape, reversed(self._sorted)))
        self._pattern = re.compile(any_form) if forms else None
        self._first = frozenset(form[0] for form in forms)
        self._longest = max(map(len, forms), default=0)
        self._held = b""
        self._open = b""

    @property
    def knows(self) -> bool:
        """Whether there is any value to look for; logins in URLs are, always."""
        return self._pattern is not None

    def whole(self, data: bytes) -> bytes:
        """Redact data that is complete in itself."""
        return logins.hide(self._known(data))

    def _known(self, data: bytes) -> bytes:
        if self._pattern is None:
            return data
        return self._pattern.sub(lambda match: self._forms[match[0]], data)

    def text(self, text: str) -> str:
        if self._pattern is None and "@" not in text:
            return text
        errors = _escape(text)
        return self.whole(text.encode(errors=errors)).decode(errors=errors)

    def data(self, value: Any) -> Any:
        """Redact every text in plain data, before it is encoded."""
        if self._pattern is None and not logins.possible(value):
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.data(key): self.data(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.data(item) for item in value]
        return value

    def feed(self, chunk: bytes) -> bytes:
        """Redact the next chunk of a stream; what may belong to a value comes with a later call."""
        data = self._open + self._feed_known(chunk)
        start = logins.unended(data)
        self._open = data[start:]
        return logins.hide(data[:start])

    def _feed_known(self, chunk: bytes) -> bytes:
        if self._pattern is None:
            return chunk
        data = self._held + chunk
        out, position = [], 0
        hold = self._open_end(data, position)
        # Before `hold` no longer form can begin than the one that is found.
        while (match := self._pattern.search(data, position)) and match.start() < hold:
            out += [data[position : match.start()], self._forms[match[0]]]
            position = match.end()
            if position > hold:
                hold = self._open_end(data, position)
        self._held = data[hold:]
        return b"".join([*out, data[position:hold]])

    def flush(self) -> bytes:
        """The end of the stream."""
        held, self._held, self._open = self._open + self._known(self._held), b"", b""
        return logins.hide(held)

    def _open_end(self, data: bytes, position: int) -> int:
        """Where the first end of `data` begins that more data could make a form."""
        for start in range(max(position, len(data) - self._longest + 1), len(data)):
            if data[start] in self._first and self._begins(data[start:]):
                return start
        return len(data)

    def _begins(self, part: bytes) -> bool:
        """Whether a form begins with `part` and is longer."""
        index = bisect.bisect_right(self._sorted, part)
        return index < len(self._sorted) and self._sorted[index].startswith(part)


def without_password(text: str, instead: str = "") -> str:
    """A text whose URLs do not say who logs in, and with which password."""
    return _LOGIN.sub(rf"\1{instead}", text)


def _undeclared() -> Iterator[tuple[str, str]]:
    """Secrets that programs find by themselves, as (name, value): the token that `hf auth login`
    keeps, which stands for HF_TOKEN, and the passwords of proxies, indexes and endpoints."""
    token = _login_token()
    if token and not unfit(token):
        yield "HF_TOKEN", token
    for name, value in os.environ.items():
        if "@" in value and _OF_URLS.search(name):
            yield from ((name, form) for form in _forms_of_logins(value))


def _of_urls(given: Any) -> Iterator[tuple[str, str]]:
    yield from (("PASSWORD", form) for form in _forms_of_logins(given))


def _forms_of_logins(value: Any) -> Iterator[str]:
    """What logs in by the URLs of plain data, as it stands there and unquoted."""
    from urllib.parse import unquote

    for password in logins.passwords(value):
        yield from (form for form in {password, unquote(password)} if form and not unfit(form))


def _login_token() -> str:
    """By the variables of huggingface_hub, which takes long to import; "" if there is none."""
    place = os.environ.get("HF_TOKEN_PATH")
    if not place:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        place = f"{os.environ.get('HF_HOME') or f'{base}/huggingface'}/token"
    try:
        with open(os.path.expanduser(place), "rb") as file:
            return os.fsdecode(file.read(4096)).strip()
    except OSError:
        return ""


def know(name: str) -> None:
    """Keep the value of a variable out of what this process says: it is used, though no document
    declares it."""
    if not unfit(os.environ.get(name, "")):
        _named.add(name)


def of_this_process() -> Redactor:
    """A redactor of every secret that one was made for, as far as values can be kept out still."""
    return Redactor(sorted(name for name in _named if not unfit(os.environ.get(name, ""))))


def unfit(value: str) -> str:
    """Why a value cannot be kept out of what is written; "" if it can."""
    if len(value) < SHORTEST:
        return f"it has fewer than {SHORTEST} characters"
    word = value.strip().lower()
    if word in COMMON or _EVENT.fullmatch(word):
        return "it is a common word"
    return ""


def _refused(name: str, why: str) -> RunbookError:
    return RunbookError(
        f"the value of the secret {name} cannot be kept out of logs and records: {why}",
        code="secret_unfit",
        exit_code=PRECONDITION,
        cause="all that looks like it would be blanked out, ordinary output included",
        remedy=f"set {name} to a real credential, or unset it, or take it out of `secrets:`",
        where=f"environment variable {name}",
    )


def _escape(text: str) -> str:
    """How the half characters of a text are encoded: as the bytes they stand for, if they do."""
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return "surrogatepass"
    return "surrogateescape"


def _bytes(text: str) -> bytes:
    return text.encode(errors=_escape(text))


def _forms(value: str) -> Iterator[bytes]:
    """What a value looks like where it may turn up."""
    lines = [line.strip() for line in value.splitlines() if len(line.strip()) >= SHORTEST]
    for text in dict.fromkeys((value, value.strip(), *lines)):
        yield from _encoded(text)


def _encoded(text: str) -> Iterator[bytes]:
    from urllib.parse import quote, quote_plus

    raw = os.fsencode(text)
    yield raw
    percent = {quote(raw, safe=""), quote(raw), quote_plus(raw)}
    for form in percent:
        yield form.encode()
        yield re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), form).encode()
    readable = raw.decode(errors="surrogateescape")
    for ascii_only in (True, False):
        escaped = json.dumps(readable, ensure_ascii=ascii_only)[1:-1]
        yield _bytes(escaped)
        yield _bytes(json.dumps(escaped, ensure_ascii=ascii_only)[1:-1])
    yield _bytes(repr(readable)[1:-1])
    yield repr(raw)[2:-1].encode()
    yield raw.hex().encode()
    yield raw.hex().upper().encode()
    yield from _base64(raw)


def _base64(raw: bytes) -> Iterator[bytes]:
    """The characters of base64 that depend on nothing but the value, for each of the three places
    at which it can begin in a group of three bytes."""
    from base64 import b64encode, urlsafe_b64encode

    for offset, skip in enumerate((0, 2, 3)):
        until = (offset + len(raw)) * 8 // 6
        for encode in (b64encode, urlsafe_b64encode):
            form = encode(bytes(offset) + raw)[skip:until]
            if len(form) >= SHORTEST_FORM:
                yield form
