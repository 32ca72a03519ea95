"""What coding agents are told of this program: AGENTS.md, the skill, and a page for a book of the
user's own. Made of the table of verbs, the exit codes and the schemas, so that they stay true."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

import runbook
from runbook import errors
from runbook.cli import brief
from runbook.cli.verbs import verbs

SKILL = Path(".agents", "skills", "runbook", "SKILL.md")
"""Where agents look for the skills of a project (agentskills.io)."""
DESCRIPTION = (
    "Set up, serve, check and mend a large language model on GPUs (vLLM, DeepSeek-V4-Flash) from a "
    "declarative runbook with the command `runbook`. Use when told to set up or serve a model, to "
    "drive a runbook.yaml, or to find out why a vLLM start or a build failed."
)
FORMS = frozenset({"form", "workspace", "old_book", "detached", "help"})
"""Parameters that are told once, or not at all."""
MOST_FIELDS = 14
"""Of one thing in an answer: of what has more, `runbook schema` tells."""


def agents_md(book: Mapping[str, Any] | None = None, named: str = "BOOK") -> str:
    """AGENTS.md: that of this program, or of a book, which commands name as `named`."""
    told: dict[str, Any] = {"own": book is not None, "book": named}
    if book is not None:
        told |= {key: book[key] for key in ("name", "description", "secrets", "steps")}
        told["inputs"] = book["declared"]
    return _rendered("AGENTS.md.j2", **told)


def skill() -> str:
    """The skill, in the format of agentskills.io: front matter and text."""
    found = list(_verbs())
    return _rendered(
        "SKILL.md.j2",
        book="BOOK",
        description=DESCRIPTION,
        summary=" ".join((verbs_help() or "").split()),
        version=runbook.__version__,
        verbs=found,
        bare=[f"`{verb['name']}`" for verb in found if verb["bare"]],
    )


def verbs_help() -> str:
    from runbook.cli.main import cli

    return (cli.help or "").split("\n\n")[0]


def _rendered(template: str, **told: Any) -> str:
    from jinja2 import DictLoader, Environment, StrictUndefined

    folder = files("runbook.templates")
    names = (template, "loop.md.j2")
    environment = Environment(
        loader=DictLoader({one: folder.joinpath(one).read_text() for one in names}),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown
    )
    codes = [{"code": code, "meaning": meaning} for code, meaning in errors.EXIT_CODES.items()]
    return environment.get_template(template).render(codes=codes, **told)


def _verbs() -> Iterator[dict[str, Any]]:
    """Each verb as the program has it: usage, the first sentence of its help, options, and the
    fields of its brief answer."""
    from runbook.cli.main import cli

    for name in verbs():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        parameters = [p for p in command.params if p.name not in FORMS]
        options = [p for p in parameters if isinstance(p, click.Option) and not p.hidden]
        context = click.Context(command, info_name=f"runbook {name}")
        words = [w for w in command.collect_usage_pieces(context) if w != "[OPTIONS]"]
        yield {
            "name": name,
            "usage": " ".join(["runbook", name, *words]),
            "help": " ".join((command.help or "").split("\n\n")[0].split()),
            "options": [f"`{_option(option)}`" for option in options],
            "fields": _fields(name),
            "bare": not any(p.name == "form" for p in command.params),
        }


def _option(option: click.Option) -> str:
    if option.is_flag:
        return option.opts[-1]
    return f"{option.opts[-1]} {option.metavar or (option.name or '').upper()}"


def _fields(verb: str) -> list[str]:
    """The fields of a verb's brief answer beside those that all have, and of mappings in it and
    lists of them what is in those."""
    if not verbs()[verb].answer:
        return []
    schema = json.loads(files("runbook").joinpath("schemas", f"{verb}.schema.json").read_text())
    known = schema.get("$defs", {})
    found: dict[str, Any] = {}
    for told in known.values():
        if told.get("properties", {}).get("kind", {}).get("const") == verb:
            found |= told["properties"]
    left_out = {*brief.LEFT_OUT[""], *brief.LEFT_OUT.get(verb, ())}
    common = {"kind", "ok", "next", "inputs", "error", "errors"}
    counted = [brief.COUNTED[verb]] if verb in brief.COUNTED else []
    names = [name for name in found if name not in common | left_out]
    return [*counted, *(_shape(name, found[name], known, left_out) for name in names)]


def _shape(
    name: str, schema: Mapping[str, Any], known: Mapping[str, Any], left_out: set[str]
) -> str:
    inner = schema.get("items", schema)
    options = [inner, *inner.get("anyOf", ())]
    refs = [o["$ref"].rpartition("/")[2] for o in options if "$ref" in o]
    many = "[]" if "items" in schema else ""
    fields = [
        field
        for ref in refs
        for field in known[ref].get("properties", {})
        if f"{name}.{field}" not in left_out
    ]
    if not fields or len(fields) > MOST_FIELDS:
        return f"{name}{many}"
    return f"{name}{many} {{{', '.join(fields)}}}"


def main() -> None:
    """Write AGENTS.md and the skill of this repository."""
    root = Path(__file__).parents[2]
    (root / "AGENTS.md").write_text(agents_md())
    (root / SKILL).parent.mkdir(parents=True, exist_ok=True)
    (root / SKILL).write_text(skill())


if __name__ == "__main__":
    main()
