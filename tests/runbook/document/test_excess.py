"""Documents and values that would never end, or take all memory there is."""

from __future__ import annotations

import json
import os
import time

import pytest

from runbook.document import confine
from runbook.document.compile import compile_book
from runbook.document.errors import DocumentInvalid
from runbook.document.template import compile_condition, compile_value, evaluate, render
from runbook.protocol import StepFailure
from tests.runbook.helpers import write_book

pytestmark = pytest.mark.harness

SCOPE = {"inputs": {"n": 10**6, "text": "x" * 1000, "list": ["a"] * 1000, "big": 10**9}}
# Each would take gigabytes or for ever; the code of the failure.
EXCESSIVE = {
    "{{ 'x' * 10**9 }}": "template_failed",
    "{{ 'x' * 1000000000 }}": "template_failed",
    "{{ 1000000000 * 'x' }}": "template_failed",
    "{{ inputs.text * inputs.big }}": "template_failed",
    "{{ inputs.list * inputs.big }}": "template_failed",
    "{{ [0] * 10**9 }}": "template_failed",
    "{{ (1,) * inputs.big }}": "template_failed",
    "{{ 10**(10**9) }}": "template_failed",
    "{{ 9**(9**9) }}": "template_failed",
    "{{ inputs.n ** inputs.n }}": "template_failed",
    "{{ '%1000000000d' % 1 }}": "template_failed",
    "{{ '%*d' % (1000000000, 1) }}": "template_failed",
    "{{ 1e308 * 10 }}": "template_failed",
    "{{ 1e308 * 10 - 1e308 * 10 }}": "template_failed",
    "{{ '{:1000000000}'.format(1) }}": "template_excess",
    "{{ 'x'.center(1000000000) }}": "template_excess",
    "{{ 'x'.ljust(1000000000) | length }}": "template_excess",
    "{{ 'x' | center(1000000000) }}": "template_excess",
    "{{ '\t'.expandtabs(1000000000) }}": "template_excess",
    "{{ inputs.text | indent(1000000000, true) }}": "template_excess",
    "{{ inputs.text.replace('', inputs.text).replace('', inputs.text) }}": "template_excess",
    "{{ inputs.text | replace('', inputs.text) | replace('', inputs.text) }}": "template_excess",
    "{{ [1] | batch(1000000000, 0) | list }}": "template_excess",
    "{% for a in inputs.list %}{% for b in inputs.list %}{% for c in inputs.list %}"
    "{% endfor %}{% endfor %}{% endfor %}": "template_excess",
    "{% for a in inputs.list %}{% for b in inputs.list %}{{ a }}{{ b }}{% endfor %}{% endfor %}"
    "{{ inputs.text }}": "template_excess",
    "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}": "template_failed",
    "{% set a = inputs.text %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}": "template_excess",
    "{% set a = inputs.list %}" + "{% set a = a + a %}" * 40 + "{{ a }}": "template_failed",
}
HARMLESS = {
    "{{ inputs.n * 2 }}": 2 * 10**6,
    "{{ 2 ** 10 }}": 1024,
    "{{ 'ab' * 3 }}": "ababab",
    "{{ '%05d' % inputs.n }}": "1000000",
    "{% for a in [1, 2] %}{{ a }},{% endfor %}": "1,2,",
    "{% for a in [1, 2] %}{{ a }}{% endfor %}{{ facts.cores }}": "128",
    "{{ inputs.text.upper() | length }}": 1000,
    "{{ [1, 2] | map('string') | list }}": ["1", "2"],
    "{{ 'a b'.split() }}": ["a", "b"],
    "{{ 10 / 4 }}": 2.5,
    "{{ {'a': [1]} }}": {"a": [1]},
}
# What is caught while the document is read; an expression as deep as this has no end in sight.
UNREADABLE = [
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "[" * 500 + "]" * 500 + " }}",
    "{{ " + "not " * 20000 + "1 }}",
    "{{ 1" + " + 1" * 20000 + " }}",
    "{% if 1 %}" * 500 + "{% endif %}" * 500,
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("template", EXCESSIVE)
def test_an_excessive_template_is_refused(template):
    with pytest.raises(StepFailure) as refused:
        render(compile_value(template), SCOPE)
    assert refused.value.code == EXCESSIVE[template], refused.value.cause
    assert refused.value.cause and refused.value.remedy
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("template", HARMLESS)
def test_a_harmless_template_gives_its_value(template):
    assert render(compile_value(template), {**SCOPE, "facts": {"cores": 8}}) == HARMLESS[template]


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{% for a in [1] %}{{ nothing.here }}{% endfor %}", "template_undefined"),
        ("{% for a in [1] %}{{ none }}{% endfor %}", "template_null"),
        ("{% for a in [1] %}{{ 1 / 0 }}{% endfor %}", "template_failed"),
    ],
)
def test_what_fails_in_the_other_process_is_told_as_here(template, code):
    with pytest.raises(StepFailure) as failed:
        render(compile_value(template), SCOPE)
    assert failed.value.code == code


def test_a_condition_is_bounded_too():
    with pytest.raises(StepFailure):
        evaluate(compile_condition("'x' * 10**9"), SCOPE)


def test_time_is_limited_where_the_processor_rests(monkeypatch):
    monkeypatch.setattr(confine, "PATIENCE", 0.2)
    with pytest.raises(confine.Excess):
        confine.confined(lambda: time.sleep(60))


def document(tmp_path, text, **inputs):
    path = tmp_path / "book.yaml"
    head = {"runbook": 1, "name": "t", "inputs": inputs}
    step = {"id": "a", "uses": "command", "with": {"run": text}}
    path.write_text(json.dumps({**head, "steps": [step]}))
    return str(path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("template", [*UNREADABLE, *list(EXCESSIVE)[:1]])
def test_a_document_with_such_a_template_is_invalid_at_its_place(tmp_path, template):
    with pytest.raises(DocumentInvalid) as refused:
        compile_book(document(tmp_path, template), [], None, {})
    (error,) = refused.value.errors
    assert error["line"] == 1 and error["breadcrumb"] == "steps[0].with.run"


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    os.truncate(os.open(tmp_path / "huge.yaml", os.O_CREAT | os.O_WRONLY), 1 << 40)
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    cases = {
        "/dev/zero": "device",
        str(tmp_path / "pipe.yaml"): "a pipe",
        str(tmp_path / "huge.yaml"): "larger than 16 MiB",
        str(tmp_path / "loop.yaml"): "symbolic links",
        str(tmp_path): "a folder",
        "nul\0l.yaml": "null",
        "./" + "x" * 5000: "too long",
    }
    for path, why in cases.items():
        with pytest.raises(DocumentInvalid) as refused:
            compile_book(path, [], None, {})
        assert why in str(refused.value), path


DEEP = 100_000
SETS = {
    "list=" + "[" * DEEP: "list",
    "list=" + "[" * DEEP + "]" * DEEP: "list",
    "number=1e999": "number",
    "number=nan": "number",
    "number=" + "9" * 5000: "number",
    "integer=" + "9" * 5000: "integer",
}


@pytest.mark.parametrize("given", SETS, ids=lambda given: given[:12])
def test_values_without_end_are_refused(tmp_path, given):
    kind = SETS[given]
    book = document(tmp_path, "true", **{kind: {"type": kind}})
    with pytest.raises(DocumentInvalid) as refused:
        compile_book(book, [given], None, {})
    assert refused.value.errors[0]["code"] == "wrong_type"
    assert len(str(refused.value)) < 1000


def bomb(levels, width):
    lines = ["l0: &l0 [x]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * width)}]")
    return "\n".join(lines)


TEXTS = {
    "flow": "a: " + "[" * DEEP,
    "block": "".join(f"{' ' * n}a:\n" for n in range(2000)),
    "aliases": bomb(12, 10),
    "many aliases": bomb(4, 99),
    "long key": "? " + "x" * 1_000_000 + "\n: 1",
    "anchors": "\n".join(f"a{n}: &a{n} 1" for n in range(20_000)),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", TEXTS)
def test_yaml_without_end_is_refused(tmp_path, text):
    path = tmp_path / "book.yaml"
    path.write_text(TEXTS[text])
    with pytest.raises(DocumentInvalid) as refused:
        compile_book(str(path), [], None, {})
    assert refused.value.errors[0]["line"] >= 1
    assert len(str(refused.value)) < 4000 or text == "anchors"


def test_a_question_that_cannot_be_asked_is_a_failure_at_its_place(cli):
    approve = "Send {{ 1 / (check.work.bytes) }} of them?"
    cli.book = write_book(cli.home, {"id": "one", "approve": approve})
    line = next(n for n, t in enumerate(cli.book.read_text().splitlines(), 1) if "- approve" in t)
    for verb, step in (("plan", None), ("run", "one")):
        error = cli.json(verb, code=1)["error"]
        assert error["where"] == f"{cli.book}:{line}"
        assert "the question of step one cannot be asked" in error["message"]
        assert "ZeroDivisionError" in error["message"] + error["cause"]
        assert error.get("step") == step
