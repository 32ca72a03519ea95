"""Logins in URLs, of which no document says that they are secret: `https://name:password@host`."""

from __future__ import annotations

import marshal
import re
from collections.abc import Iterator
from typing import Any

MASK = "***@"
TOKEN = 20
"""Characters. What logs in without a password and is longer is a token: `https://ghp_...@host`."""
LONGEST = 1000
"""Bytes of a login that are looked at."""
# The scheme does not matter; JSON may escape the slashes.
_LOGIN = re.compile(rb"(:\\?/\\?/)([^/\s'\"<>`\\]{1,1000})@")
_BEGINNINGS = (b"://", b":\\/", b":/\\")
"""One of these begins each login."""
_OPEN = re.compile(rb":(?:\\?(?:/(?:\\?(?:/[^/\s'\"<>`\\]{0,1000})?)?)?)?\Z")


def hide(data: bytes) -> bytes:
    """Text with `***` for who logs in, in URLs with a password or token. A name alone stays."""
    return _LOGIN.sub(_masked, data) if b"@" in data else data


def unended(data: bytes) -> int:
    """Where the end of a chunk begins that more data could make a login."""
    found = _OPEN.search(data, max(0, len(data) - LONGEST - 5))
    return found.start() if found is not None else len(data)


def hidden(value: Any) -> Any:
    """Plain data without the logins of URLs, as records have it."""
    if isinstance(value, str):
        if "@" not in value:
            return value
        return hide(value.encode(errors="surrogatepass")).decode(errors="surrogatepass")
    if isinstance(value, dict):
        return {hidden(key): hidden(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [hidden(item) for item in value]
    return value


def passwords(value: Any) -> Iterator[str]:
    """The passwords and tokens of URLs in plain data."""
    if possible(value):
        yield from _passwords(value)


def _passwords(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        for found in _LOGIN.finditer(value.encode(errors="surrogatepass")):
            if _masked(found) != found[0]:
                name, _, password = found[2].partition(b":")
                if password:
                    yield password.decode(errors="surrogatepass")
                if not password or len(name) >= TOKEN:  # a token may stand for the name
                    yield name.decode(errors="surrogatepass")
    elif isinstance(value, dict):
        for item in value.values():
            yield from _passwords(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _passwords(item)


def possible(value: Any) -> bool:
    """Whether plain data may have one. Quick: it is asked of all that a run records and tells."""
    if isinstance(value, str):
        return "@" in value
    try:
        data = marshal.dumps(value)  # far quicker than `repr`; its texts are in UTF-8
    except ValueError:
        return "@" in repr(value)
    return any(begin in data for begin in _BEGINNINGS) and "@" in repr(value)


def _masked(match: re.Match[bytes]) -> bytes:
    told = b":" in match[2] or len(match[2]) >= TOKEN
    return match[1] + MASK.encode() if told else match[0]
