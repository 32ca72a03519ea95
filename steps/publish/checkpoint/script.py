"""What a rehearsal checkpoint says, and how often its drafts are accepted.

The model is a table of transitions: each word of the script has one successor, and so the answer
to any prompt is known to the last token. The multi-token-prediction (MTP) head is written from
the same table with some transitions left out, which makes the number of rejected drafts known
as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice, pairwise
from typing import Literal

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK = "<think>"
END_THINK = "</think>"
SPECIAL = (BOS, EOS, PAD, USER, ASSISTANT, THINK, END_THINK)
"""Tokens 0 to 6, in this order."""

ANSWER = (
    *("The", " rehearsal", " model", " says", " pong", ":"),
    *(" one", " two", " three", " four", " five", " six", " seven", " eight", " nine", " ten", "."),
)
REASONING = (
    *("I", " was", " asked", " to", " answer", " in", " a", " fixed", " way", " so", " I ", "will"),
)
MARK = (
    "You MUST strictly follow the above defined tool name and parameter schemas to invoke tool "
    "calls."
)
"""The sentence that stands in a prompt exactly when it offers tools (the wording is that of
DeepSeek-V4's encoding); it is one token."""

MISSES = 5
"""The head leaves out every fifth transition."""

DEPTH = 5
"""Tokens that the DSpark draft drafts in a step."""
Part = Literal["markov", "stage 0", "stage 1", "stage 2", "context"]
"""A part of the DSpark draft."""
_RUNS: tuple[tuple[Part, int], ...] = (
    ("stage 0", 4),
    ("stage 1", 2),
    ("stage 2", 2),
    ("context", 1),
)
"""Runs of words of which one part knows what follows the first, and the Markov head what follows
the next few; nothing knows what follows one more word, so that the next draft is made from the
first word of the next run."""

TOOL = "get_weather"
ARGUMENTS = {"city": "Paris"}

_CALL_V3 = (
    *("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function", "<｜tool▁sep｜>", TOOL),
    *("\n```json\n", '{"city"', ': "', "Paris", '"}', "\n```"),
    *("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
)
_DSML = "｜DSML｜"
_CALL_V4 = (
    *(f"<{_DSML}tool_calls>", f'\n<{_DSML}invoke name="', TOOL, '">\n'),
    *(f'<{_DSML}parameter name="', "city", '" string="true">', "Paris", f"</{_DSML}parameter>"),
    *(f"\n</{_DSML}invoke>\n", f"</{_DSML}tool_calls>"),
)


@dataclass(frozen=True)
class Script:
    """The words of one variant and the order in which it says them."""

    call: tuple[str, ...]
    """The tool call as its parser expects it, word by word."""
    extra: tuple[str, ...] = ()
    """Further words of the vocabulary that have no part in the script."""

    @property
    def words(self) -> tuple[str, ...]:
        """The added vocabulary, in the order of its ids after `SPECIAL` and the bytes."""
        return (*self.extra, MARK, *REASONING, *ANSWER, *self.call)

    @property
    def transitions(self) -> dict[str, str]:
        """Each word's successor. After `END_THINK` comes the answer, unless attention finds
        `MARK` in the prompt: then the call."""
        chains = ((THINK, *REASONING, END_THINK), (END_THINK, *ANSWER, EOS), (*self.call, EOS))
        table = {a: b for chain in chains for a, b in pairwise(chain)}
        return {**table, EOS: ANSWER[0]}

    @property
    def states(self) -> tuple[str, ...]:
        """The words that the weights tell apart; every other token is the same to them."""
        table = self.transitions
        return tuple(dict.fromkeys([*table, *table.values(), MARK]))

    @property
    def head(self) -> dict[str, str]:
        """The transitions that the MTP head knows."""
        return {a: b for i, (a, b) in enumerate(self.transitions.items()) if i % MISSES}

    @cached_property
    def knows(self) -> dict[str, Part]:
        """The part of the DSpark draft that knows what follows a word."""
        found: dict[str, Part] = dict.fromkeys((THINK, END_THINK, EOS), "markov")
        for words in (REASONING, ANSWER, self.call):
            said = iter(words)
            for first, more in cycle(_RUNS):
                if (word := next(said, None)) is None:
                    break
                found[word] = first
                found.update(dict.fromkeys(islice(said, more), "markov"))
                next(said, None)
        return found

    def known(self, part: Part) -> dict[str, str]:
        """The transitions that a part of the DSpark draft knows."""
        return {a: b for a, b in self.transitions.items() if self.knows.get(a) == part}

    def drafts(self, words: Sequence[str]) -> tuple[int, int]:
        """Drafted and accepted tokens of an answer, `EOS` excluded from `words`, generated with
        one draft a step: an accepted draft saves the step after it."""
        said = [*words, EOS]
        drafted = accepted = at = 0
        while said[at] != EOS:
            drafted += 1
            hit = said[at] in self.head
            accepted += hit
            if hit and said[at + 1] == EOS:
                break
            at += 1 + hit
        return drafted, accepted

    def blocks(self, words: Sequence[str], lost: Part | None = None) -> tuple[int, int]:
        """What `drafts` counts, of the DSpark draft, which may have lost a part: what follows a
        word that was drafted itself is known to the Markov head alone."""
        said = [*words, EOS]
        drafted = accepted = at = 0
        while at < len(said) and (word := said[at]) != EOS:
            hits = 0
            while hits < DEPTH:
                part = self.knows.get(word)
                if part in (None, lost) or (hits and part != "markov"):
                    break
                word = self.transitions[word]
                hits += 1
            drafted += DEPTH
            accepted += hits
            at += hits + 1
        return drafted, accepted


SCRIPTS = {"v3": Script(_CALL_V3), "v4": Script(_CALL_V4, extra=(_DSML,))}
