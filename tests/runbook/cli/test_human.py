import pytest

from runbook.cli import human, terminal

PATH = "/a/path/that/is/longer/than/the/room"


@pytest.mark.parametrize(
    ("width", "text", "lines"),
    [
        (0, "no terminal: " + "one line, " * 20, 1),
        (40, "it fits", 1),
        (40, "these are words that do not fit beside the rest", 2),
        (40, f"there is no {PATH}", 2),
        (25, "too narrow a terminal to wrap anything", 1),
    ],
)
def test_long_text_is_wrapped_below_where_it_began(monkeypatch, width, text, lines):
    monkeypatch.setattr(terminal, "_width", lambda: width)
    shown = terminal.hanging(text, 10).split("\n")
    assert len(shown) == lines
    assert all(line.startswith(" " * 10) for line in shown[1:])
    assert " ".join(line.removeprefix(" " * 10) for line in shown) == text
    assert lines == 1 or len(shown[0]) <= width - 10


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"type": "run.carried", "steps": {"a": {"state": "failed"}}}, "steps=a failed"),
        (
            {"type": "run.started", "runnable": ["a", "b"], "forced": []},
            "runnable=a, b forced=none",
        ),
        ({"type": "attempt.started", "process": {"pid": 3}, "ok": True}, "process=pid 3 ok=yes"),
        ({"type": "run.started", "inputs": {"port": 1, "to": {"x": "y"}}}, "inputs=port 1, to x y"),
    ],
)
def test_an_event_is_told_in_words(event, said):
    assert human.event({"seq": 1, "time": "x", **event}).endswith(said)
