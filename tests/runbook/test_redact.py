"""Secrets stay out of what is written, however the text is cut and the value encoded."""

import base64
import json
import os
import re
from typing import get_args, get_type_hints
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook import redact, shapes
from runbook.errors import PRECONDITION, RunbookError
from runbook.redact import Redactor
from runbook.state import crash
from runbook.state import shapes as recorded

VALUE = 'hf_"Abc/def+ghi'
LONGER = VALUE + " jkl"
STRANGE = "päss wörd \\ \"quoted\" 'it' \N{SNOWMAN}"
LINES = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"
SECRETS = {"HF_TOKEN": VALUE, "LONGER": LONGER, "STRANGE": STRANGE, "LINES": LINES}


@pytest.fixture(scope="module", autouse=True)
def secret():
    patch = pytest.MonkeyPatch()
    for name, value in SECRETS.items():
        patch.setenv(name, value)
    yield
    patch.undo()


def inside_base64(value: str, before: int) -> str:
    text = b"x" * before + value.encode() + b"yz"
    return base64.b64encode(text).decode()


FORMS = {
    "itself": lambda v: v,
    "url": lambda v: quote(v, safe=""),
    "url path": quote,
    "url form": quote_plus,
    "url in lower case": lambda v: re.sub("%..", lambda m: m[0].lower(), quote(v, safe="")),
    "json": json.dumps,
    "json in utf-8": lambda v: json.dumps(v, ensure_ascii=False),
    "json in json": lambda v: json.dumps(json.dumps(v)),
    "json in json in utf-8": lambda v: json.dumps(
        json.dumps(v, ensure_ascii=False), ensure_ascii=False
    ),
    "python": repr,
    "python bytes": lambda v: repr(v.encode()),
    "hexadecimal": lambda v: v.encode().hex(),
    "hexadecimal in upper case": lambda v: v.encode().hex().upper(),
    **{f"base64 after {n}": lambda v, n=n: inside_base64(v, n) for n in range(4)},
    "base64 for urls": lambda v: base64.urlsafe_b64encode(v.encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", SECRETS)
def test_forms(name, form):
    written = FORMS[form](SECRETS[name])
    out = Redactor([name]).text(f"<{written}>")
    assert f"[{name}]" in out
    left = out.replace(f"[{name}]", "")
    window = 7  # what is left of it is too little to tell it by
    parts = {written[n : n + window] for n in range(len(written) - window)}
    if not form.startswith("base64"):  # whose ends hold what stands around the value
        assert not any(part in left for part in parts), left
    else:
        assert len(left) <= 14, left


def test_plain_data_is_redacted_before_it_is_encoded():
    given = {STRANGE: [STRANGE, {"x": f"a{STRANGE}b"}, 1, None, True], "n": 1.5}
    assert Redactor(["STRANGE"]).data(given) == {
        "[STRANGE]": ["[STRANGE]", {"x": "a[STRANGE]b"}, 1, None, True],
        "n": 1.5,
    }


@pytest.mark.parametrize("text", ["\ud800 half", "\udcff byte", "\ud800\udcff"])
def test_half_characters_survive(text):
    assert Redactor(["HF_TOKEN"]).text(text + VALUE) == text + "[HF_TOKEN]"


def test_a_value_that_is_no_utf8_is_found(monkeypatch):
    raw = b"caf\xe9-caf\xe9"
    monkeypatch.setenv("RAW", os.fsdecode(raw))
    redactor = Redactor(["RAW"])
    assert redactor.whole(b"<" + raw + b">") == b"<[RAW]>"
    assert redactor.data({"a": os.environ["RAW"]}) == {"a": "[RAW]"}


def test_a_single_line_of_a_value_is_found():
    assert Redactor(["LINES"]).text("got hkiG9w0BAQEFAASC") == "got [LINES]"


def test_where_one_secret_begins_another_the_longer_is_meant():
    for names in (["HF_TOKEN", "LONGER"], ["LONGER", "HF_TOKEN"]):
        redactor = Redactor(names)
        assert redactor.text(f"{LONGER} {VALUE}.") == "[LONGER] [HF_TOKEN]."
        out = redactor.feed(VALUE.encode()) + redactor.feed(b" jkl") + redactor.flush()
        assert out == b"[LONGER]"


@pytest.mark.parametrize(
    "value", ["1", "true", "hf_", "1234567", "localhost", "LocalHost", "satisfied", "12345678"]
)
def test_values_that_cannot_be_kept_out_are_refused(monkeypatch, value):
    monkeypatch.setenv("WEAK", value)
    with pytest.raises(RunbookError) as refused:
        Redactor(["WEAK"])
    assert refused.value.exit_code == PRECONDITION
    assert refused.value.code == "secret_unfit"
    why = "it has fewer than 8 characters" if len(value) < 8 else "it is a common word"
    assert str(refused.value) == (
        f"the value of the secret WEAK cannot be kept out of logs and records: {why}"
    )
    assert refused.value.cause == (
        "all that looks like it would be blanked out, ordinary output included"
    )
    assert refused.value.remedy == (
        "set WEAK to a real credential, or unset it, or take it out of `secrets:`"
    )
    assert refused.value.where == "environment variable WEAK"
    assert "WEAK" in refused.value.message and value not in refused.value.message.split()


def test_the_words_of_our_own_records_are_no_secrets():
    kinds = get_args(get_type_hints(recorded.Event)["type"])
    words = [*kinds, *get_args(shapes.State), *get_args(shapes.DecisionVerb)]
    assert len(kinds) > 10
    assert [word for word in words if not redact.unfit(word)] == []


def test_a_secret_without_a_value_hides_nothing(monkeypatch):
    monkeypatch.setenv("EMPTY", "")
    assert Redactor(["EMPTY", "UNSET"])._pattern is None


PIECES = [
    *SECRETS.values(),
    *(form(value) for form in FORMS.values() for value in (VALUE, STRANGE)),
    *(value[:5] for value in SECRETS.values()),
    *(value[3:] for value in SECRETS.values()),
    *("x", "\n", "hf", "h", " jkl"),
]


@given(
    pieces=st.lists(st.sampled_from(PIECES), max_size=8),
    cuts=st.lists(st.integers(0, 600), max_size=12),
)
def test_a_stream_is_redacted_as_the_whole(pieces, cuts):
    data = "".join(pieces).encode()
    redactor = Redactor(SECRETS)
    out, last = [], 0
    for cut in sorted({min(c, len(data)) for c in cuts}):
        out.append(redactor.feed(data[last:cut]))
        last = cut
    out += [redactor.feed(data[last:]), redactor.flush()]
    assert b"".join(out) == redactor.whole(data)
    assert VALUE.encode() not in b"".join(out)


def test_all_but_the_end_of_the_longest_form_is_held_back():
    redactor = Redactor(["HF_TOKEN"])
    longest = max(redactor._forms, key=len)
    assert redactor.feed(longest[:-1]) == b""
    assert redactor.feed(longest[-1:]) + redactor.flush() == b"[HF_TOKEN]"


def test_where_one_secret_begins_in_another_each_is_told_once(monkeypatch):
    monkeypatch.setenv("ONE", "abcdefgh")
    monkeypatch.setenv("TWO", "fghijklm")
    redactor = Redactor(["ONE", "TWO"])
    assert redactor.feed(b"abcdefgh") + redactor.feed(b"x") + redactor.flush() == b"[ONE]x"


def test_after_its_end_a_stream_may_begin_anew():
    redactor = Redactor(["HF_TOKEN"])
    for _ in range(2):
        assert redactor.feed(b"x://u:p hf_") == b"x://u:p "
        assert redactor.flush() == b"hf_"
        assert redactor.feed(b"x://u:p") == b"x"
        assert redactor.flush() == b"://u:p"


def test_nothing_is_held_back_longer_than_needed():
    redactor = Redactor(["HF_TOKEN"])
    assert redactor.feed(b"line one\nhf_") == b"line one\n"
    assert redactor.feed(b"hub is a library\n") == b"hf_hub is a library\n"


def test_a_report_of_a_defect_holds_no_secret(tmp_path):
    Redactor(["STRANGE"])
    for error in (ValueError(STRANGE), KeyError(STRANGE), OSError(2, f"no {STRANGE}")):
        report = crash.write(error, tmp_path).read_text()
        assert "[STRANGE]" in report and "snow" not in report.lower() and "wörd" not in report


def test_a_value_of_eight_characters_is_long_enough(monkeypatch):
    monkeypatch.setenv("EIGHT", "ab cd_ef")
    assert Redactor(["EIGHT"]).text("ab cd_ef ab+cd_ef") == "[EIGHT] [EIGHT]"
    monkeypatch.setenv("LINES8", "first line\n  8letters \n")
    assert Redactor(["LINES8"]).text("8letters") == "[LINES8]"
    monkeypatch.setenv("PADDED", " padded value ")
    assert Redactor(["PADDED"]).text("x=padded value;") == "x=[PADDED];"
    assert redact.unfit(" Satisfied ") == "it is a common word"


def test_a_short_piece_of_base64_is_looked_for_from_six_characters(monkeypatch):
    monkeypatch.setattr(redact, "SHORTEST", 5)
    monkeypatch.setenv("SHORT", "ab+cd")
    forms = set(redact._base64(b"ab+cd"))
    assert forms == {b"YWIrY2", b"FiK2Nk", b"hYitjZ"}
    assert set(redact._base64(b"ab")) == set()


def test_of_the_same_form_the_first_name_is_told(monkeypatch):
    monkeypatch.setenv("ONE", "the same value")
    monkeypatch.setenv("TWO", "the same value")
    assert Redactor(["ONE", "TWO"]).text("the same value") == "[ONE]"
    assert Redactor(["TWO", "ONE"]).text("the same value") == "[TWO]"


def test_a_redactor_of_this_process_knows_every_secret(monkeypatch):
    monkeypatch.setattr(redact, "_named", set())
    monkeypatch.setenv("MINE", "a value of mine")
    assert redact.of_this_process().text("a value of mine") == "a value of mine"
    Redactor(["MINE"])
    assert redact.of_this_process().text("a value of mine") == "[MINE]"


def test_a_variable_that_is_used_undeclared_is_known(monkeypatch):
    monkeypatch.setattr(redact, "_named", set())
    monkeypatch.setenv("USED", "a value of use")
    monkeypatch.setenv("SHORT", "short")
    for name in ("USED", "SHORT", "UNSET"):
        redact.know(name)
    assert redact._named == {"USED"}
    assert redact.of_this_process().text("a value of use") == "[USED]"


@pytest.mark.parametrize("variable", ["HF_TOKEN_PATH", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_login_file_is_where_the_hub_s_client_puts_it(variable, tmp_path, monkeypatch):
    places = {
        "HF_TOKEN_PATH": "",
        "HF_HOME": "token",
        "XDG_CACHE_HOME": "huggingface/token",
        "HOME": ".cache/huggingface/token",
    }
    for name in places:
        monkeypatch.delenv(name, raising=False)
    place = tmp_path / variable / places[variable]
    monkeypatch.setenv(variable, str(tmp_path / variable))
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"hf_\xff_of_the_login\n")
    assert Redactor([]).whole(b"<hf_\xff_of_the_login>") == b"<[HF_TOKEN]>"


def test_the_longest_token_of_a_login_file_is_read(login):
    login.write_text("x" * 5000)
    assert Redactor([]).text("x" * 4096) == "[HF_TOKEN]"
    assert Redactor([]).text("x" * 4095) == "x" * 4095


def test_what_is_refused_counts_no_ordinary_credential():
    assert not redact.unfit("hf_abcdefghijklmnop")
    assert not redact.unfit("correct horse")


@pytest.fixture
def login(tmp_path, monkeypatch):
    """As `hf auth login` leaves it."""
    monkeypatch.delenv("HF_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_of_the_login_file\n")
    return tmp_path / "token"


def test_the_token_of_the_login_file_is_a_secret_that_nobody_declares(login, monkeypatch):
    assert Redactor([]).text("Bearer hf_of_the_login_file") == "Bearer [HF_TOKEN]"
    login.write_text("short")
    assert Redactor([])._pattern is None
    login.unlink()
    assert Redactor([])._pattern is None
    login.mkdir()
    assert Redactor([])._pattern is None
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(login.parent))
    (login.parent / "huggingface").mkdir()
    (login.parent / "huggingface" / "token").write_text("hf_by_another_path")
    assert Redactor([]).text("hf_by_another_path") == "[HF_TOKEN]"
    monkeypatch.setenv("HF_TOKEN_PATH", str(login.parent / "named"))
    (login.parent / "named").write_text("hf_by_its_own_name")
    assert Redactor([]).text("hf_by_its_own_name") == "[HF_TOKEN]"


@pytest.mark.parametrize(
    ("name", "value", "text", "redacted"),
    [
        ("HTTPS_PROXY", "http://me:pass%40word@proxy:1", "pass%40word", "[HTTPS_PROXY]"),
        ("HTTPS_PROXY", "http://me:pass%40word@proxy:1", "pass@word", "[HTTPS_PROXY]"),
        ("HF_ENDPOINT", "https://me:hubsecret@hub/x", "at https://me:hubsecret@hub/x",
         "at https://***@hub/x"),
        ("PIP_EXTRA_INDEX_URL", "https://a https://u:indexsecret@i/", "indexsecret",
         "[PIP_EXTRA_INDEX_URL]"),
        ("NOTES", "http://me:password9@x", "password9", "password9"),
        ("PIP_INDEX_URL", "https://u:indexsecret@i/simple", "u:indexsecret@", "u:[PIP_INDEX_URL]@"),
        ("PIP_INDEX_URL", "https://a-token-that-stands-alone@i/simple",
         "a-token-that-stands-alone", "[PIP_INDEX_URL]"),
        ("HTTPS_PROXY", "http://proxy:1", "http://proxy:1", "http://proxy:1"),
        ("HTTPS_PROXY", "http://me@proxy:1", "http://me@proxy:1", "http://me@proxy:1"),
    ],
)  # fmt: skip
def test_passwords_of_the_environment_s_urls(name, value, text, redacted, login, monkeypatch):
    login.unlink()
    monkeypatch.setenv(name, value)
    assert Redactor([]).text(text) == redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://u:p@host/x", "http://host/x"),
        ("see https://token@host, and HTTP://a:b@c:1/", "see https://host, and HTTP://c:1/"),
        ("socks5h://u:p%40q@h", "socks5h://h"),
        ("nothing@here and http://host/a@b", "nothing@here and http://host/a@b"),
        ("'http://u:p@h'", "'http://h'"),
    ],
)
def test_passwords_are_not_shown(text, shown):
    assert redact.without_password(text) == shown


# text, and what is left of it
LOGINS = {
    "a password": ("git clone https://u:p@host/x", "git clone https://***@host/x"),
    "a name alone": ("ssh://git@host/x", "ssh://git@host/x"),
    "a name alone, with a port": ("ssh://git@host:22/a@b", "ssh://git@host:22/a@b"),
    "a token": ("https://ghp_0123456789abcdefghij@host", "https://***@host"),
    "two": ("http://a:b@c,http://d:e@f", "http://***@c,http://***@f"),
    "escaped": ('{"u":"http:\\/\\/a:b@c"}', '{"u":"http:\\/\\/***@c"}'),
    "an @ in it": ("ftp://u:a@b@host/", "ftp://***@host/"),
    "no login": ("http://host:80/ and me@host", "http://host:80/ and me@host"),
    "hidden already": ("http://***@host", "http://***@host"),
    "a scheme alone": ("https:", "https:"),
}


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("name", LOGINS)
def test_logins_in_urls_are_hidden_however_the_text_is_cut(name, size):
    text, left = LOGINS[name]
    assert Redactor([]).text(text) == left
    assert Redactor([]).data({text: [text]}) == {left: [left]}
    redactor, data = Redactor([]), text.encode()
    out = [redactor.feed(data[n : n + size]) for n in range(0, len(data), size)]
    assert b"".join(out) + redactor.flush() == left.encode()


def test_a_stream_is_not_held_for_what_cannot_be_a_login():
    redactor = Redactor([])
    assert redactor.feed(b"50% at http://host/x") == b"50% at http://host/x"
    long = b"://" + b"x" * 5000
    assert redactor.feed(long) == long and redactor.flush() == b""


def test_a_password_of_a_given_url_is_hidden_in_all_its_forms():
    given = {"with": [{"url": "https://me:pa%24%24word-of-me@host/"}]}
    basic = base64.b64encode(b"me:pa$$word-of-me").decode()
    for form in ("pa$$word-of-me", "pa%24%24word-of-me", f"Authorization: Basic {basic}"):
        assert "[PASSWORD]" in Redactor([], given).text(form)
    assert Redactor([], {"url": "https://u:abc@h"}).text("abc") == "abc", "too short to be told"
