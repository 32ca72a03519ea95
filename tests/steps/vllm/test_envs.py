"""The VLLM_* variables that a vLLM knows, from the text of its envs.py."""

from __future__ import annotations

import pytest

from runbook.protocol import StepFailure
from runbook.steps.vllm.envs import known_variables

# As vLLM writes it.
SOURCE = '''
"""VLLM_NOT_ONE is only spoken of."""
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    VLLM_HOST_IP: str = ""
    LD_LIBRARY_PATH: str | None = None

def level():
    return os.getenv("VLLM_ASKED_FOR", "VLLM_ and no more")

environment_variables = {
    # "VLLM_COMMENTED": lambda: 1,
    "VLLM_HOST_IP": lambda: os.getenv("VLLM_HOST_IP", ""),
    "VLLM_CPU_KVCACHE_SPACE": lambda: int(os.getenv("VLLM_CPU_KVCACHE_SPACE", "4")),
    "CUDA_HOME": lambda: os.environ.get("CUDA_HOME"),
}
'''


def test_declared_names_and_names_asked_for(tmp_path):
    (tmp_path / "envs.py").write_text(SOURCE)
    assert known_variables(tmp_path / "envs.py") == [
        "VLLM_ASKED_FOR",
        "VLLM_CPU_KVCACHE_SPACE",
        "VLLM_HOST_IP",
    ]


def test_a_vllm_without_such_a_file_knows_none(tmp_path):
    assert known_variables(tmp_path / "envs.py") == []


def test_what_is_no_python_is_a_failure_in_words(tmp_path):
    (tmp_path / "envs.py").write_text("def (")
    with pytest.raises(StepFailure) as caught:
        known_variables(tmp_path / "envs.py")
    assert caught.value.code == "source_malformed"
