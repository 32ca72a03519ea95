"""What a benchmark asks: requests of one class of prompt, of a length, the same ones for a seed."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.errors import USAGE
from runbook.protocol import PreconditionNotMet, StepFailure
from runbook.steps.common.shipped import shipped
from runbook.steps.measure.served import Served

CLASSES = ("random", "prose", "code", "file")
ROUNDS = 4
"""Times that a text is cut or lengthened to come to its length: each comes a good deal nearer."""
NEAR = 4
"""Tokens by which a text may miss its length."""


@dataclass(frozen=True, slots=True)
class Asked:
    """`prompts` names the class; the file's path for `file`. Lengths in tokens; `input_length` None
    leaves texts as they are."""

    kind: str
    file: Path | None
    input_length: int | None
    output_length: int
    ignore_eos: bool
    thinking: bool


def requests(served: Served, asked: Asked, count: int, seed: int) -> list[tuple[str, bytes]]:
    """(path, body) of so many streamed requests at temperature 0. Another seed gives other texts,
    so that no prefix of an earlier repetition is in the server's cache."""
    chance = random.Random(seed)
    more = {
        "model": served.model,
        "max_tokens": asked.output_length,
        "temperature": 0,
        "ignore_eos": asked.ignore_eos,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if asked.kind == "random":
        return [
            ("/completions", json.dumps({"prompt": ids} | more).encode())
            for ids in _random_ids(served, asked.input_length or 0, count, chance)
        ]
    more["chat_template_kwargs"] = {"thinking": asked.thinking}
    return [
        ("/chat/completions", json.dumps({"messages": _messages(text)} | more).encode())
        for text in _texts(served, asked, count, chance)
    ]


def digest(made: list[tuple[str, bytes]]) -> str:
    """What tells whether two results were of the same requests."""
    summed = hashlib.sha256()
    for path, body in made:
        summed.update(path.encode() + b"\0" + body + b"\0")
    return summed.hexdigest()[:16]


def _random_ids(
    served: Served, length: int, count: int, chance: random.Random
) -> Iterator[list[int]]:
    """Random token ids, sent as they are, so that the length is exact. The last tenth of the
    vocabulary is left out: special tokens are there in the tokenizers of DeepSeek, as are the first
    few."""
    config = served.folder / "config.json"
    try:
        vocabulary = int(json.loads(config.read_bytes())["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreconditionNotMet(
            "the size of the model's vocabulary cannot be read",
            code="no_vocabulary",
            cause=f"{type(error).__name__}: {error}",
            remedy="ask with --prompts prose",
            where=str(config),
        ) from error
    low, high = max(3, vocabulary // 100), max(4, vocabulary * 9 // 10)
    for _ in range(count):
        yield [chance.randrange(low, high) for _ in range(length)]


def _messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _texts(served: Served, asked: Asked, count: int, chance: random.Random) -> Iterator[str]:
    if asked.kind == "file":
        known = read_file(asked.file or Path())
        first = chance.randrange(len(known)) if count < len(known) else 0
        yield from (known[(first + n) % len(known)] for n in range(count))
        return
    given = known_prompts()[asked.kind]
    a_token = 0.0
    for n in range(count):
        ask = given["asks"][n % len(given["asks"])]
        if asked.input_length is None:
            yield f"{_filler(given, chance, 1)}\n{ask}"
            continue
        text, a_token = _of_length(served, asked, given, ask, chance, a_token)
        yield text


def _of_length(
    served: Served,
    asked: Asked,
    given: dict[str, Any],
    ask: str,
    chance: random.Random,
    characters: float,
) -> tuple[str, float]:
    """A text that has the length in tokens, as the server counts them with its chat template, and
    the characters of a token, from which the next one starts."""
    wanted = asked.input_length or 0
    whole = _filler(given, chance, wanted)
    kept = int(wanted * (characters or 4.0))
    for _ in range(ROUNDS):
        text = f"{given['lead']}{whole[: max(kept, 0)]}\n{ask}"
        got = served.ask(
            "/tokenize",
            {
                "model": served.model,
                "messages": _messages(text),
                "chat_template_kwargs": {"thinking": asked.thinking},
            },
        )["count"]
        if abs(got - wanted) <= NEAR or kept <= 0 < got - wanted:
            break
        characters = max(0.5, len(text) / got)
        kept += round((wanted - got) * characters)
    if got - wanted > NEAR:
        raise PreconditionNotMet(
            f"no prompt of the class {asked.kind} has {wanted} tokens",
            code="prompt_too_short",
            cause=f"its question alone has {got} tokens with the chat template",
            remedy=f"ask for --input-length {got} or more, or for --prompts random",
        )
    return text, len(text) / got


def _filler(given: dict[str, Any], chance: random.Random, tokens: int) -> str:
    """Text of at least so many tokens: none has more than the characters of a whole line."""
    made: list[str] = []
    while sum(map(len, made)) < 8 * tokens:
        a, b = chance.sample(given["words"], 2)
        made.append(chance.choice(given["filler"]).format(n=chance.randrange(10**6), a=a, b=b))
    return "".join(made)


def known_prompts() -> dict[str, Any]:
    """The classes that are shipped, by name."""
    from importlib.resources import files

    found: dict[str, Any] = shipped(files("runbook.steps.measure") / "prompts.yaml")
    return found


def read_file(path: Path) -> list[str]:
    """The prompts of a file of JSON lines, {"prompt": text} each, as of the dataset `custom` of
    `vllm bench serve`. Raises StepFailure."""
    found: list[str] = []
    try:
        lines = [text for text in path.read_text().splitlines() if text.strip()]
        for text in lines:
            found.append(str(json.loads(text)["prompt"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        cause = f"prompt {len(found) + 1}: {type(error).__name__}: {error}"
        raise _unreadable(path, cause) from error
    if not found:
        raise _unreadable(path, "it has no prompt")
    return found


def _unreadable(path: Path, cause: str) -> StepFailure:
    return StepFailure(
        f"{path} is no file of prompts",
        code="bad_prompts",
        exit_code=USAGE,
        cause=cause,
        remedy='write one JSON object a line, {"prompt": "..."}',
        where=str(path),
    )
