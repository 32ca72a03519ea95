"""Code beside a model's weights runs only if its digest was named: a table of ways to run it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from runbook.files import write_json
from runbook.protocol import PreconditionNotMet
from runbook.steps.common import remote_code, service

CODE = b"import os\n"
DIGEST = hashlib.sha256(CODE).hexdigest()
TRUST = ["--trust-remote-code"]
FLAGS = "trust-remote-code: true\n"

# files beside config.json, arguments, digests named, the code of the refusal ("" for none)
CASES = {
    "no code": ({}, TRUST, [], ""),
    "trust is off": ({"m.py": CODE}, [], [], ""),
    "trust is off in words": ({"m.py": CODE}, ["--no-trust-remote-code"], [], ""),
    "named": ({"m.py": CODE}, TRUST, [DIGEST], ""),
    "not named": ({"m.py": CODE}, TRUST, [], "code_not_approved"),
    "another is named": ({"m.py": CODE + b"#"}, TRUST, [DIGEST], "code_not_approved"),
    "one of two": ({"m.py": CODE, "n.py": b""}, TRUST, [DIGEST], "code_not_approved"),
    "the same twice": ({"m.py": CODE, "n.py": CODE}, TRUST, [DIGEST], ""),
    "deep": ({"a/b/m.py": CODE}, TRUST, [], "code_not_approved"),
    "compiled": ({"m.pyc": CODE}, TRUST, [], "code_not_approved"),
    "a library": ({"m.so": CODE}, TRUST, [], "code_not_approved"),
    "underscores": ({"m.py": CODE}, ["--trust_remote_code"], [], "code_not_approved"),
    "abbreviated": ({"m.py": CODE}, ["--trust-rem"], [], "code_not_approved"),
    "with a value": ({"m.py": CODE}, ["--trust-remote-code=True"], [], "code_not_approved"),
    "in a file of flags": ({"m.py": CODE, "f": FLAGS.encode()}, ["--config", "{m}/f"], [],
                           "code_not_approved"),
    "a file of flags that cannot be read": ({"m.py": CODE}, ["--config=/no/such"], [],
                                            "code_not_approved"),
    "a file of other flags": ({"m.py": CODE, "f": b"seed: 1\n"}, ["--config", "{m}/f"], [], ""),
    "another tokenizer": ({}, [*TRUST, "--tokenizer", "{other}"], [], "code_not_approved"),
    "another tokenizer, named": ({}, [*TRUST, "--tokenizer={other}"], [DIGEST], ""),
    "the tokenizer of a repository": ({}, [*TRUST, "--tokenizer", "o/r"], [], "code_elsewhere"),
    "another config": ({}, [*TRUST, "--hf_config_path", "{other}"], [], "code_not_approved"),
    "a draft model": ({}, [*TRUST, "--speculative-config", '{"model": "{other}"}'], [],
                      "code_not_approved"),
    "a draft model, dotted": ({}, [*TRUST, "-sc.model", "{other}"], [], "code_not_approved"),
    "no draft model": ({}, [*TRUST, "-sc", '{"method": "mtp"}'], [], ""),
    "drafts without a model": ({}, [*TRUST, "-sc", '{"model": "ngram"}'], [], ""),
    "auto_map of this folder": (
        {"m.py": CODE, "tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["m.T", null]}}'},
        TRUST, [DIGEST], ""),
    "auto_map of another repository": (
        {"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["o/r--m.T", null]}}'},
        TRUST, [], "code_elsewhere"),
    "auto_map deep down": (
        {"video_preprocessor_config.json": b'{"a": [{"auto_map": {"AutoConfig": "o/r--m.C"}}]}'},
        TRUST, [], "code_elsewhere"),
    "auto_map among the arguments": (
        {}, [*TRUST, "--hf-overrides", '{"auto_map": {"AutoConfig": "o/r--m.C"}}'], [],
        "code_elsewhere"),
}  # fmt: skip


def command(folder: Path, files: dict[str, bytes], arguments: list[str]) -> list[str]:
    model, other = folder / "model", folder / "other"
    for path, content in {"config.json": b"{}", **files}.items():
        (model / path).parent.mkdir(parents=True, exist_ok=True)
        (model / path).write_bytes(content)
    other.mkdir()
    (other / "t.py").write_bytes(CODE)
    said = [a.replace("{m}", str(model)).replace("{other}", str(other)) for a in arguments]
    return ["/v/vllm", "serve", str(model), *said]


@pytest.mark.parametrize("name", CASES)
def test_only_code_that_was_named_runs(name, tmp_path):
    files, arguments, approved, code = CASES[name]
    argv = command(tmp_path, files, arguments)
    reason = remote_code.refusal(argv, approved)
    assert (reason.code if reason else "") == code
    spec = {"argv": argv, "env": {}, "path": [], "trusted_code": approved}
    if not code:
        service.write_spec(tmp_path / "service", spec)
        return
    with pytest.raises(PreconditionNotMet) as caught:
        service.write_spec(tmp_path / "service", spec)
    assert caught.value.code == code
    assert not (tmp_path / "service").exists()


def test_the_refusal_names_files_and_digests_and_its_remedy_works(tmp_path):
    argv = command(tmp_path, {"a.py": CODE, "sub/b.py": b"x = 1\n"}, TRUST)
    reason = remote_code.refusal(argv, [])
    assert reason is not None
    for path, digest in remote_code.files(tmp_path / "model").items():
        assert f"{path} (sha256 {digest})" in reason.message
        assert digest in reason.remedy
    told = reason.remedy.partition("trusted_code`: ")[2].partition(";")[0]
    assert remote_code.refusal(argv, told.split(", ")) is None


def test_a_file_that_cannot_be_read_is_never_approved(tmp_path):
    argv = command(tmp_path, {}, TRUST)
    os.mkfifo(tmp_path / "model" / "m.py")
    (tmp_path / "model" / "self").symlink_to(".")
    reason = remote_code.refusal(argv, ["", DIGEST])
    assert reason is not None and "m.py readable" in str(reason.remedy)


def test_what_changed_since_is_not_started_again(tmp_path):
    """As the user's systemd does it after a crash or a reboot: by the launcher alone."""
    argv = command(tmp_path, {"m.py": CODE}, TRUST)
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho it runs\n")
    program.chmod(0o755)
    argv[0] = str(program)
    here = tmp_path / "service"
    here.mkdir()
    write_json(here / "spec.json", {"argv": argv, "env": {}, "path": [], "trusted_code": [DIGEST]})

    def launched() -> tuple[int, str]:
        status = subprocess.run(service.launcher(here), start_new_session=True).returncode
        return status, service.log_path(here).read_text()

    assert launched() == (0, "it runs\n")
    (tmp_path / "model" / "m.py").write_bytes(CODE + b"evil()\n")
    status, log = launched()
    assert status == 126
    assert "it runs" not in log and "code that is not approved" in log
    assert json.loads((here / "state.json").read_text())["ready"] is False
