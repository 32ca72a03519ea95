"""Logins in URLs: which are told of, which are hidden, in plain data of any form."""

from __future__ import annotations

import pytest

from runbook import logins
from runbook.logins import TOKEN

T = "t" * TOKEN
HALF = "\ud800"
# URLs, what is left of them, and who logs in by them.
URLS = [
    ("https://u:p@h/", "https://***@h/", ["p"]),
    ("https://u:p:q@h/", "https://***@h/", ["p:q"]),
    ("https://u:@h/", "https://***@h/", ["u"]),
    ("https://:p@h/", "https://***@h/", ["p"]),
    ("https://u@h/", "https://u@h/", []),
    (f"https://{T}@h/", "https://***@h/", [T]),
    (f"https://{T[1:]}@h/", f"https://{T[1:]}@h/", []),
    (f"https://{T}:x@h/", "https://***@h/", ["x", T]),
    (f"https://{T[1:]}:x@h/", "https://***@h/", ["x"]),
    (f"https://{T}t:x@h/", "https://***@h/", ["x", f"{T}t"]),
    ("a https://u:p@h b://c:d@e", "a https://***@h b://***@e", ["p", "d"]),
    (f"https://{HALF}:{HALF}@h {HALF}", f"https://***@h {HALF}", [HALF]),
    (f"https://{T}{HALF}@h", "https://***@h", [f"{T}{HALF}"]),
    ("me@h", "me@h", []),
    ("", "", []),
]


@pytest.mark.parametrize(("text", "left", "found"), URLS)
def test_who_logs_in(text, left, found):
    assert logins.hidden(text) == left
    assert list(logins.passwords(text)) == found
    for value in ([text], (text,), {"k": [text]}, {"k": {"l": text}}):
        assert list(logins.passwords(value)) == found
    assert list(logins.passwords({text: 1})) == []
    given = {text: [text, (text, 1), None, True], "n": 1.5}
    assert logins.hidden(given) == {left: [left, [left, 1], None, True], "n": 1.5}


@pytest.mark.parametrize(
    ("value", "may"),
    [
        ("a@b", True),
        ("ab", False),
        (["ab", {"x": ("http://a@b",)}], True),
        (["ab", {"x": ("http://ab", object())}], False),
        (["ab", {"x": ("http://a@b", object())}], True),
        ({r"http:\/\/a@b": 1}, True),
        ([r"http:/\/a@b"], True),
        (["http://ab", "a@b"], True),
        (["a@b", "/"], False),
        ({"a": "b", "c": [1, None, 2.5]}, False),
        (["x" * 64, "é\udc80"], False),
        (None, False),
        (7, False),
    ],
)
def test_whether_there_may_be_one(value, may):
    assert logins.possible(value) is may


@pytest.mark.parametrize(
    ("data", "held"),
    [
        (b"text", b""),
        (b"text:", b":"),
        (b"text:/", b":/"),
        (b"text://", b"://"),
        (b"text://u", b"://u"),
        (b"text://u:p", b"://u:p"),
        (b"text://u:p ", b""),
        (b"text://u/", b""),
        (b"text:\\/\\/u:p", b":\\/\\/u:p"),
        (b"://" + b"x" * 1000, b"://" + b"x" * 1000),
        (b"://" + b"x" * 1001, b""),
        (b":\\/\\/" + b"x" * 1000, b":\\/\\/" + b"x" * 1000),
    ],
)
def test_what_more_data_could_make_a_login(data, held):
    assert data[logins.unended(data) :] == held


def test_a_login_has_an_end():
    whole = b"://" + b"x" * 1000 + b"@h"
    assert logins.hide(whole) == b"://***@h"
    assert logins.hide(b"://" + b"x" * 1001 + b"@h") == b"://" + b"x" * 1001 + b"@h"
