"""Checks of what the model says: names, exact answers, reasoning, ends, many at once, far back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from runbook.steps.smoke.answers import Answer
from runbook.steps.smoke.client import Client, Unanswered
from runbook.steps.smoke.findings import (
    Findings,
    Layer,
    from_build,
    from_model,
    from_serve,
    logs_of_serve,
)

Verdict = tuple[str, Layer, str, Any]

FILLER = "Entry {n}: the wind was {wind} and the keeper saw {ships} ships pass the light.\n"
WINDS = ("north", "east", "south", "west", "calm", "strong", "weak")
TOKENS_A_LINE = 16
"""Of the filler, at least, in tokenizers of large vocabularies."""
DEPTHS = (0.1, 0.5, 0.9)
"""Where in the text the sentence stands that is asked for."""


def models(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """The server answers to the name."""
    names = client.models()
    found.note(", ".join(names))
    if inputs.model not in names:
        found.fail(
            "model_not_listed",
            "server",
            f"the server answers to {', '.join(names) or 'no name'}, not to {inputs.model}",
            from_serve(),
        )


def echo(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """A fixed prompt gives a fixed answer."""
    case = inputs.echo
    answer = client.chat(case)
    found.note(answer.content[:200])
    before = len(found.outcomes[-1].verdicts)
    judge(found, "echo", "answer", answer.content, case["expect"], answer)
    part = case["contains"]
    if (
        part is not None
        and part not in answer.content
        and len(found.outcomes[-1].verdicts) == before
    ):
        found.fail(
            "echo_wrong",
            "weights",
            f"the answer is {answer.content[:80]!r}, without {part!r}",
            from_model("the weights, their packing or a kernel is damaged: {command}"),
        )


def reasoning(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """The reasoning comes apart from the answer."""
    case = inputs.reasoning
    answer = client.chat(case)
    found.note(f"{len(answer.reasoning)} characters of reasoning, then: {answer.content[:200]}")
    judge(found, "reasoning", "reasoning", answer.reasoning, case["expect"], answer)
    judge(found, "reasoning_answer", "answer", answer.content, case["expect_answer"], answer)


def finish(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """An answer ends because it is at its end, or because its tokens are used up, and says so."""
    case = inputs.echo
    whole = client.chat(case)
    cut = client.chat(case | {"max_tokens": 1})
    found.note(f"{whole.finish_reason} of {case['max_tokens']} tokens, {cut.finish_reason} of 1")
    if whole.finish_reason != "stop":
        found.fail(
            "finish_not_stop",
            "weights",
            f"the answer does not end by itself: {whole.finish_reason} after "
            f"{whole.completion_tokens} tokens",
            from_model("the end token may be wrong in generation_config.json, or weights be "
                       "damaged: {command}"),
        )  # fmt: skip
    if (cut.finish_reason, cut.completion_tokens) != ("length", 1) and whole.completion_tokens > 1:
        found.fail(
            "finish_not_length",
            "server",
            f"max_tokens 1 gave {cut.completion_tokens} tokens and ended by {cut.finish_reason}",
            from_build(),
        )


def concurrency(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """As many at once as the server takes, each with its own right answer."""
    case = inputs.concurrency
    cases = case["cases"] or [inputs.echo]
    asked = [cases[n % len(cases)] for n in range(case["sequences"])]

    def ask(one: dict[str, Any]) -> Answer:
        with client.another() as own:
            return own.chat(one)

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, asked))
    client.answers += answers
    wrong = [
        f"{a.content[:80]!r} to {one['prompt'][:80]!r}"
        for one, a in zip(asked, answers, strict=True)
        if not _right(a.content, one)
    ]
    found.note(f"{len(asked) - len(wrong)} of {len(asked)} right")
    if wrong:
        found.fail(
            "concurrent_answers_differ",
            "attention",
            f"{len(wrong)} of {len(asked)} answers at once are wrong: {'; '.join(wrong[:3])}",
            from_build("answers mix, or a kernel fails with several sequences; serve fewer by "
                       "`max_num_seqs`, or build anew: {command}"),
        )  # fmt: skip


def _right(content: str, case: dict[str, Any]) -> bool:
    """Whether an answer is the one that was expected; any that is not empty if none was."""
    if case["expect"] is not None and content != case["expect"]:
        return False
    return bool(content.strip()) and (case["contains"] or "") in content


def needle(client: Client, inputs: SimpleNamespace, found: Findings) -> None:
    """A sentence far back in a long text is found, at each depth: what is within some hundred
    tokens proves nothing where attention is sparse."""
    case = inputs.needle
    tokens, lost = [], []
    for number, depth in enumerate(DEPTHS):
        word = f"{('heron', 'otter', 'badger')[number]}-{7919 * (number + 2) % 9000 + 1000}"
        answer = client.chat(case | {"prompt": haystack(case["tokens"], depth, word)})
        tokens.append(answer.prompt_tokens)
        if word not in answer.content:
            lost.append(f"{depth:.0%} deep: {answer.content[:80]!r}")
    found.note(f"{len(DEPTHS) - len(lost)} of {len(DEPTHS)} found in {min(tokens)} tokens")
    if min(tokens) < case["tokens"]:
        found.fail(
            "needle_too_short",
            "question",
            f"the text has {min(tokens)} tokens, {case['tokens']} were meant",
            "raise `needle.tokens` of the smoke step",
        )
    if lost:
        found.fail(
            "needle_lost",
            "attention",
            f"what stands far back is forgotten: {'; '.join(lost)}",
            from_build("the sparse attention, its indexer or its compressed cache is damaged: "
                       "{command}"),
        )  # fmt: skip


def haystack(tokens: int, depth: float, word: str) -> str:
    """A text of at least so many tokens that says the word once, and a question for it."""
    lines = [
        FILLER.format(n=n, wind=WINDS[n % len(WINDS)], ships=n * 37 % 90 + 10)
        for n in range(tokens // TOKENS_A_LINE + 1)
    ]
    lines.insert(int(depth * len(lines)), f"The code word of the harbour is {word}.\n")
    return (
        "".join(lines) + "\nWhat is the code word of the harbour? Answer with the code word alone."
    )


def judge(
    found: Findings, name: str, what: str, got: str, want: str | None, answer: Answer
) -> None:
    """One part of an answer against what was expected; any that is not empty if that is None."""
    if want is not None and got == want:
        return
    if answer.is_only_markup():
        found.fail(
            f"{name}_only_special_tokens",
            "weights",
            f"the {what} is {got[:80]!r}, special tokens alone",
            from_model("a kernel or the weights give no numbers any more: {command}"),
        )
    elif not got.strip():
        found.fail(*why_empty(name, what, answer))
    elif want is not None:
        found.fail(
            f"{name}_differs",
            "weights",
            f"the {what} is {got!r}, expected {want!r}",
            from_model("the weights, their packing or a kernel is damaged: {command}"),
        )


def why_empty(name: str, what: str, answer: Answer) -> Verdict:
    """Whose fault it is that a part of an answer is empty."""
    count = f"{answer.completion_tokens} tokens, {answer.finish_reason}"
    code, message = f"{name}_empty", f"the {what} is empty ({count})"
    nothing = not answer.content.strip() and not answer.reasoning.strip()
    if nothing and answer.completion_tokens > 1:
        return (
            f"{name}_void",
            "weights",
            f"{answer.completion_tokens} tokens were generated and none of them has a text",
            from_model("they are special tokens: a kernel or the weights are damaged: {command}"),
        )
    if what == "reasoning":
        return code, "parser", message, (
            "set `reasoning_parser` of the serve step, or ask with `thinking: true`"
        )  # fmt: skip
    if answer.finish_reason == "length":
        remedy = "raise `max_tokens`: the reasoning used the tokens up"
        return code, "question", message, remedy
    if answer.reasoning.strip():
        return code, "parser", f"{message}, its text stayed in the reasoning", (
            "set the `reasoning_parser` of the serve step that belongs to the model"
        )  # fmt: skip
    return code, "weights", message, logs_of_serve()


__all__ = ["Unanswered", "concurrency", "echo", "finish", "models", "needle", "reasoning"]
