"""The lines of servers' logs."""

from __future__ import annotations

from runbook.steps.common.server_log import Tail


class TestTail:
    def test_only_whole_lines_each_once(self, tmp_path):
        log = tmp_path / "log"
        tail = Tail(log)
        assert list(tail.lines()) == []
        with log.open("wb") as file:
            file.write(b"one\ntw")
            file.flush()
            assert list(tail.lines()) == ["one"]
            file.write("o\n\nthrée\n".encode()[:-3])
            file.flush()
            assert list(tail.lines()) == ["two"]
            file.write("thrée\n".encode()[-3:])
            file.flush()
            assert list(tail.lines()) == ["thrée"]
        assert list(tail.lines()) == []

    def test_bars_that_overwrite_themselves(self, tmp_path):
        log = tmp_path / "log"
        log.write_bytes(b"a:  0%\ra: 50%\ra: 100%\r\nb\n")
        assert list(Tail(log).lines()) == ["a:  0%", "a: 50%", "a: 100%", "b"]

    def test_bytes_that_are_no_text(self, tmp_path):
        log = tmp_path / "log"
        log.write_bytes(b"\xff\xfe ok\n")
        assert list(Tail(log).lines()) == ["\ufffd\ufffd ok"]
