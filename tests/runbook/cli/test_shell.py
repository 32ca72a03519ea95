"""Command lines as shells read them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from runbook.cli import shell

WORDS = {
    "plain": b"/srv/one",
    "empty": b"",
    "a space and quotes": b'it\'s "one" `x` $HOME',
    "not UTF-8": b"w\xff s",
    "before a digit": b"w\xff7\x017",
    "UTF-8": "größe → 日本".encode(),
    "both": "größe".encode() + b'\xfc\'s \\n 100% %s $x `y` "z"',
    "a newline within": b"one\ntwo",
    "a control sequence": b"\x1b[31mred\x1b[0m\r\t\x7f",
    "a separator that no terminal shows": "a\u2028b\u00a0c".encode(),
    "an option": b"-x\xff",
}


@pytest.mark.parametrize("program", ["sh", "bash", "zsh", "ksh"])
def test_a_shell_reads_the_words_as_they_were(program):
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")
    words = [os.fsdecode(word) for word in WORDS.values()]
    line = shell.join(["printf", "%s\\0", *words])
    assert line.isprintable()
    line.encode()
    done = subprocess.run([program, "-c", line], capture_output=True, check=True)
    assert dict(zip(WORDS, done.stdout.split(b"\0"), strict=False)) == WORDS
