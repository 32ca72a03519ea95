"""An installer's words become one failure with its cause."""

from __future__ import annotations

import pytest

from runbook.protocol import PreconditionNotMet
from runbook.remedy import Remedy
from runbook.steps.common.packages.pip_command import SYMPTOMS
from runbook.steps.common.packages.symptoms import Symptom, diagnose

RETRY = (
    "WARNING: Retrying (Retry(total={left})) after connection broken by "
    "'NewConnectionError(refused)': /torch/"
)


@pytest.mark.parametrize(
    ("output", "code", "retryable"),
    [
        ("Collecting a\nOSError: [Errno 28] No space left on device", "disk_full", False),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES from", "hash_mismatch", True),
        (
            RETRY.format(left=4) + "\nERROR: No matching distribution found",
            "index_unreachable",
            True,
        ),
        ("ERROR: No matching distribution found for a==1", "package_not_found", False),
    ],
)
def test_the_first_symptom_that_fits_decides(output, code, retryable):
    failure = diagnose(output, SYMPTOMS)
    assert (failure.code, failure.retryable) == (code, retryable)
    assert isinstance(failure.remedy, Remedy)
    assert isinstance(failure, PreconditionNotMet) == (code == "disk_full")


def test_the_cause_begins_where_it_shows_and_repeats_nothing():
    retries = [RETRY.format(left=left) for left in (4, 3, 2, 1, 0)]
    failure = diagnose("\n".join(["Collecting a", *retries, "ERROR: gave up"]), SYMPTOMS)
    assert failure.cause.splitlines() == [retries[0], "ERROR: gave up"]


def test_what_is_not_known_is_left_to_the_caller():
    assert diagnose("all is well", SYMPTOMS) is None


def test_groups_of_the_pattern_stand_in_message_and_remedy():
    symptom = Symptom(
        r"no (?P<name>\w+)",
        "none",
        "there is no {name}",
        Remedy("run", text="get {name}, {command}"),
    )
    failure = diagnose("no torch", [symptom])
    assert failure.message == "there is no torch"
    assert str(failure.remedy) == "get torch, `runbook run`"
