"""Defaults at every depth are those that pydantic itself fills in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ByteSize, ConfigDict, Field

from runbook.document import registry
from runbook.document.compile import BOOKS, compile_book
from runbook.document.fields import keys_of, models_at, with_defaults


class Leaf(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 1
    tags: list[str] = []


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["tree"] = "tree"
    leaf: Leaf = Leaf()
    branches: list[Leaf] = []


class Stone(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["stone"]
    weight: float


class World(BaseModel):
    model_config = ConfigDict(extra="forbid")
    first: Tree | None = None
    any: Annotated[Tree | Stone | None, Field(description="x")] = None
    named: dict[str, Leaf] = Field(default_factory=lambda: {"a": Leaf()})
    from_: str = Field(default="here", alias="from")
    limit: ByteSize | None = None
    path: Path = Path("out")
    pair: tuple[int, ...] = (1, 2)
    options: dict[str, Any] = {}


GIVEN: list[dict[str, Any]] = [
    {},
    {"first": {}},
    {"first": {"leaf": {"size": 3}, "branches": [{}, {"tags": ["x"]}]}},
    {"any": {"kind": "stone", "weight": 1.5}},
    {"any": {"branches": [{}]}},
    {"named": {"x": {}, "y": {"size": 2}}},
    {"from": "there", "pair": [3]},
    {"options": {"size": None, "deep": {"x": []}}},
    {"first": None, "limit": 5},
]


@pytest.mark.parametrize("given", GIVEN, ids=json.dumps)
def test_as_pydantic_does(given: dict[str, Any]) -> None:
    expected = World.model_validate(given).model_dump(mode="json", by_alias=True)
    assert with_defaults(World, given) == expected


def test_templates_stay_as_they_are() -> None:
    reference = {"$ref": ["facts", "cpu"]}
    given: dict[str, Any] = {"first": reference, "named": {"x": {"size": reference}}}
    filled = with_defaults(World, given)
    assert filled["first"] == reference
    assert filled["named"] == {"x": {"size": reference, "tags": []}}


def test_models_on_the_way() -> None:
    assert models_at(World, ()) == [World]
    assert models_at(World, ("any",)) == [Tree, Stone]
    assert models_at(World, ("first", "branches", 0)) == [Leaf]
    assert models_at(World, ("named", "x")) == [Leaf]
    assert models_at(World, ("options", "x")) == []
    assert models_at(World, ("nothing",)) == []
    assert "from" in keys_of(World) and "from_" not in keys_of(World)


@pytest.mark.parametrize("book", sorted(path.stem for path in BOOKS.glob("*.yaml")))
def test_shipped_steps_are_whole(book: str) -> None:
    """Validation adds nothing to what a compiled book gives a step with nothing to render."""
    found = 0
    for step in compile_book(book, [], None, {}, require_inputs=False)["steps"]:
        if any(op in json.dumps(step["with"]) for op in ('"$ref"', '"$join"', '"$jinja"')):
            continue
        found += 1
        model = registry.load_step(step["uses"], step["folder"]).Inputs
        whole = model.model_validate(step["with"]).model_dump(mode="json")
        assert whole == step["with"], step["id"]
    assert found
