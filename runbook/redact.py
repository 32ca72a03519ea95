"""Keeps the values of secrets out of everything that is written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from typing import Any

# A shorter value would blank out ordinary words and could not be a credential.
SHORTEST = 4


class Redactor:
    """Replaces the values of the named environment variables by `[NAME]`.

    The forms that a value takes in a URL and in JSON are replaced too. `feed` works on a stream:
    it holds back the end of a chunk that may be the beginning of a value.
    """

    def __init__(self, names: Iterable[str]) -> None:
        forms: dict[bytes, bytes] = {}
        for name in names:
            value = os.environ.get(name, "")
            if len(value) < SHORTEST:
                continue
            from urllib.parse import quote

            for form in {value, quote(value, safe=""), json.dumps(value)[1:-1]}:
                forms[form.encode(errors="surrogateescape")] = f"[{name}]".encode()
        self._forms = forms
        longest_first = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile(b"|".join(map(re.escape, longest_first))) if forms else None
        self._prefixes = {form[:n] for form in forms for n in range(1, len(form))}
        self._longest = max(map(len, forms), default=0)
        self._held = b""

    @property
    def active(self) -> bool:
        """Whether there is anything to replace."""
        return self._pattern is not None

    def whole(self, data: bytes) -> bytes:
        """Redact data that is complete in itself."""
        if self._pattern is None:
            return data
        return self._pattern.sub(lambda match: self._forms[match[0]], data)

    def text(self, text: str) -> str:
        if self._pattern is None:
            return text
        return self.whole(text.encode(errors="surrogateescape")).decode(errors="surrogateescape")

    def data(self, value: Any) -> Any:
        """Redact every text in JSON data."""
        if self._pattern is None:
            return value
        return json.loads(self.text(json.dumps(value, ensure_ascii=False)))

    def feed(self, chunk: bytes) -> bytes:
        """Redact the next chunk of a stream; what may belong to a value comes with a later call."""
        if self._pattern is None:
            return chunk
        data = self._held + chunk
        out, position = [], 0
        for match in self._pattern.finditer(data):
            out += [data[position : match.start()], self._forms[match[0]]]
            position = match.end()
        rest = data[position:]
        hold = 0
        for length in range(min(self._longest - 1, len(rest)), 0, -1):
            if rest[-length:] in self._prefixes:
                hold = length
                break
        cut = len(rest) - hold
        self._held = rest[cut:]
        return b"".join([*out, rest[:cut]])

    def flush(self) -> bytes:
        """The end of the stream."""
        held, self._held = self._held, b""
        return self.whole(held)
