from __future__ import annotations

import pytest

from runbook.steps.toolkit.proof import NotACubin, cubin_architecture, sm
from tests.steps.toolkit.conftest import cubin

# The first 64 bytes of cubins of one kernel, by nvcc 13.0.88 with -arch=sm_120 and sm_90.
SM_120 = bytes.fromhex(
    "7f454c46020101410800000000000000"
    "0200be00010000000000000000000000"
    "7014000000000000f00e000000000000"
    "02780006400038000500400016000100"
)
SM_90 = bytes.fromhex(
    "7f454c46020101410800000000000000"
    "0200be00010000000000000000000000"
    "680d000000000000a809000000000000"
    "045a000640003800050040000f000100"
)


@pytest.mark.parametrize(
    ("header", "architecture"),
    [
        (SM_120, 120),
        (SM_90, 90),
        (cubin(121), 121),
        # CUDA 12: ABI version 7, the number in the lowest byte (and the virtual one above).
        (SM_90[:7] + b"\x33\x07" + SM_90[9:48] + bytes.fromhex("5a055a00") + SM_90[52:], 90),
    ],
)
def test_the_architecture_of_a_cubin(header: bytes, architecture: int) -> None:
    assert cubin_architecture(header) == architecture


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not a 64-bit"),
        (SM_120[:40], "not a 64-bit"),
        (b"#!/bin/sh\n" + b" " * 64, "not a 64-bit"),
        (SM_120[:18] + b"\x3e\x00" + SM_120[20:], "machine 62"),
    ],
)
def test_what_is_no_cubin(data: bytes, complaint: str) -> None:
    with pytest.raises(NotACubin, match=complaint):
        cubin_architecture(data)


@pytest.mark.parametrize(
    ("architecture", "name", "number"),
    [("12.0", "sm_120", 120), ("12.0a", "sm_120a", 120), ("12.1f", "sm_121f", 121)],
)
def test_the_names_of_an_architecture(architecture: str, name: str, number: int) -> None:
    assert sm(architecture) == (name, number)
