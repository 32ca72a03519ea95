"""What has changed since a checkpoint, and what is known of a step when it is decided."""

from __future__ import annotations

import hashlib

import pytest

from runbook.planning.look import Look, digest
from runbook.protocol import Check, Reason

FINGERPRINT = {
    "with": {"a": 1}, "code": "x@1", "files": None, "needs": {"n": "d"},
    "made": {"n": "r/n.1", "m": ""}, "facts": {},
}  # fmt: skip
UNMET = Check.unsatisfied(Reason("missing", "missing"))


def look(fingerprint=FINGERPRINT, old=FINGERPRINT, **fields):
    made = Look({"id": "one"})
    made.fingerprint = fingerprint
    if old is not None:
        made.checkpoint = {"fingerprint": old, "outputs": {}}
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def test_a_digest_is_of_the_value():
    text = '{"a":[1,"é"],"b":null}'.encode()
    assert digest({"b": None, "a": [1, "é"]}) == hashlib.sha256(text).hexdigest()


def test_nothing_is_known_at_first():
    made = Look({"id": "one"})
    assert (made.active, made.lasting, made.broken) == (True, True, False)
    assert made.raw is made.inputs is made.checkpoint is made.begun is made.context is None
    assert made.fingerprint == {} and made.check == Check(False)
    assert made.changed() == () and made.remade() == [] and made.made == ""


@pytest.mark.parametrize(
    ("now", "old", "changed"),
    [
        ({}, FINGERPRINT, ()),
        ({}, None, ()),
        ({}, "text", ("with",)),
        ({"with": {"a": 2}}, FINGERPRINT, ("with",)),
        ({"code": "x@2", "files": "f"}, FINGERPRINT, ("code", "files")),
        ({"facts": {"gpu": 1}}, FINGERPRINT, ("facts",)),
        ({"made": {"n": "r/n.2", "m": ""}}, FINGERPRINT, ("n (made anew)",)),
        ({"made": {"n": "r/n.2", "m": "r/m.1"}}, FINGERPRINT,
         ("n (made anew)", "m (made anew)")),
        ({"made": {"n": "", "m": ""}}, FINGERPRINT, ()),
        ({"made": {"n": "r/n.2", "m": ""}, "needs": {"n": "e"}}, FINGERPRINT, ("needs",)),
        ({"made": {"n": "r/n.2", "m": ""}, "code": "x@2"}, FINGERPRINT,
         ("code", "n (made anew)")),
        ({}, {**FINGERPRINT, "made": None}, ("n (made anew)",)),
        ({}, {k: v for k, v in FINGERPRINT.items() if k != "made"}, ("n (made anew)",)),
        ({"made": None}, FINGERPRINT, ()),
        ({"with": {"u": "http://a:b@c"}}, {**FINGERPRINT, "with": {"u": "http://***@c"}}, ()),
    ],
)  # fmt: skip
def test_what_changed(now, old, changed):
    assert look({**FINGERPRINT, **now}, old).changed() == changed


@pytest.mark.parametrize(
    ("checkpoint", "begun", "made"),
    [
        (None, None, ""),
        ({}, None, ""),
        ({"made": "r/one.1"}, None, "r/one.1"),
        ({"made": "r/one.1"}, {"attempt": "r/one.2"}, "r/one.2"),
        (None, {"attempt": "r/one.2"}, "r/one.2"),
    ],
)
def test_which_attempt_made_what_is_there(checkpoint, begun, made):
    assert look(checkpoint=checkpoint, begun=begun).made == made


@pytest.mark.parametrize(
    ("fields", "view"),
    [
        ({}, {}),
        ({"checkpoint": None}, {"has_checkpoint": False}),
        ({"check": Check.satisfied({"a": 1})}, {"outputs_differ": True}),
        ({"check": UNMET, "checkpoint": {"fingerprint": FINGERPRINT, "outputs": {"a": 1}}}, {}),
        ({"check": Check.satisfied({"u": "http://a:b@c"}),
          "checkpoint": {"fingerprint": FINGERPRINT, "outputs": {"u": "http://***@c"}}}, {}),
        ({"check": Check.satisfied({"a": 1}), "checkpoint": None}, {"has_checkpoint": False}),
        ({"fingerprint": {**FINGERPRINT, "code": "y"}}, {"changed": ("code",)}),
        ({"begun": {"fingerprint": digest(FINGERPRINT)}}, {"begun": "same"}),
        ({"begun": {"fingerprint": "another"}}, {"begun": "other"}),
    ],
)  # fmt: skip
def test_what_is_known_of_a_step(fields, view):
    made = look(**fields)
    found = made.view(forced=True, runnable=False, last_attempt="failed")._asdict()
    expected = {
        "check": made.check, "has_checkpoint": True, "changed": (), "outputs_differ": False,
        "last_attempt": "failed", "begun": "", "forced": True, "runnable": False,
    }  # fmt: skip
    assert found == {**expected, **view}


@pytest.mark.parametrize(
    ("recorded", "found", "digest"), [({"a": 1}, {"a": 1}, "d"), ({"a": 1}, {"a": 2}, "")]
)
def test_the_digest_of_outputs_is_taken_from_the_record_while_they_are_the_same(
    recorded, found, digest
):
    made = look(check=Check.satisfied(found))
    made.checkpoint = {"outputs": recorded, "outputs_digest": "d"}
    assert made.recorded_digest() == digest
    made.checkpoint = None
    assert made.recorded_digest() == ""
