"""Secrets stay out of what is written, however the text is cut."""

import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook.redact import Redactor

VALUE = 'hf_"Abc/def+ghi'


@pytest.fixture(scope="module", autouse=True)
def secret():
    patch = pytest.MonkeyPatch()
    patch.setenv("HF_TOKEN", VALUE)
    patch.setenv("OTHER", "hf_")
    yield
    patch.undo()


def test_forms():
    redactor = Redactor(["HF_TOKEN", "UNSET"])
    assert redactor.text(f"a {VALUE} b") == "a [HF_TOKEN] b"
    assert redactor.text(f"url?t={quote(VALUE, safe='')}") == "url?t=[HF_TOKEN]"
    assert json.loads(redactor.text(json.dumps({"x": VALUE}))) == {"x": "[HF_TOKEN]"}


def test_values_too_short_to_be_secret_are_left():
    assert Redactor(["OTHER"]).text("hf_hub") == "hf_hub"
    assert not Redactor(["OTHER"]).active


@given(
    pieces=st.lists(st.sampled_from([VALUE, VALUE[:5], VALUE[3:], "x", "\n", "hf", "h"])),
    cuts=st.lists(st.integers(0, 200)),
)
def test_a_stream_is_redacted_as_the_whole(pieces, cuts):
    data = "".join(pieces).encode()
    redactor = Redactor(["HF_TOKEN"])
    whole = redactor.whole(data)
    out, last = [], 0
    for cut in sorted(min(c, len(data)) for c in cuts):
        out.append(redactor.feed(data[last:cut]))
        last = cut
    out += [redactor.feed(data[last:]), redactor.flush()]
    assert b"".join(out) == whole
    assert VALUE.encode() not in b"".join(out)


def test_nothing_is_held_back_longer_than_needed():
    redactor = Redactor(["HF_TOKEN"])
    assert redactor.feed(b"line one\nhf_") == b"line one\n"
    assert redactor.feed(b"hub is a library\n") == b"hf_hub is a library\n"
