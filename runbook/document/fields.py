"""Questions about pydantic models that pydantic has no function for."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from runbook.document.template import operator, quote
from runbook.protocol import Json


def keys_of(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """A model's fields by the name that they have in a document."""
    return {_key(name, field): field for name, field in model.model_fields.items()}


def _key(name: str, field: FieldInfo) -> str:
    if isinstance(field.validation_alias, str):
        return field.validation_alias
    return field.alias or name


def is_open(model: type[BaseModel]) -> bool:
    """Whether a model takes keys that it does not declare."""
    return model.model_config.get("extra") == "allow"


def _branches(annotation: Any) -> Iterator[Any]:
    """An annotation without `Annotated`, one by one if it is a union."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _branches(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _branches(argument)
    elif isinstance(annotation, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        yield from _branches(annotation.__value__)
    else:
        yield annotation


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a value of this annotation may be an instance of."""
    return [b for b in _branches(annotation) if isinstance(b, type) and issubclass(b, BaseModel)]


def _item(annotation: Any) -> list[Any]:
    """What the items of a list, or the values of a mapping, are annotated with."""
    found = []
    for branch in _branches(annotation):
        arguments = typing.get_args(branch)
        if arguments:
            found.append(arguments[-1] if arguments[-1] is not Ellipsis else arguments[0])
    return found


def models_at(model: type[BaseModel], path: Iterable[str | int]) -> list[type[BaseModel]]:
    """The models that may describe the mapping at a path below an instance of `model`."""
    annotations: list[Any] = [model]
    for name in path:
        inner: list[Any] = []
        for annotation in annotations:
            for candidate in models_in(annotation):
                field = keys_of(candidate).get(str(name))
                if field is not None:
                    inner.append(field.annotation)
            inner += _item(annotation)
        annotations = inner
    return [m for annotation in annotations for m in models_in(annotation)]


def with_defaults(model: type[BaseModel], values: Mapping[str, Json]) -> dict[str, Json]:
    """A compiled mapping, defaults filled in at every depth; what is there stays as it is."""
    filled: dict[str, Json] = {}
    for key, field in keys_of(model).items():
        if key in values:
            filled[key] = _fill(field.annotation, values[key])
        elif not field.is_required():
            default = field.get_default(call_default_factory=True, validated_data=dict(filled))
            filled[key] = quote(to_jsonable_python(default, by_alias=True))
    return filled | {k: v for k, v in values.items() if k not in filled}


def _fill(annotation: Any, value: Json) -> Json:
    if isinstance(value, dict) and not operator(value):
        candidates = models_in(annotation)
        for candidate in candidates:
            if len(candidates) == 1 or _accepts(candidate, value):
                return with_defaults(candidate, value)
        items = _item(annotation)
        return {k: _fill(items[0], v) for k, v in value.items()} if len(items) == 1 else value
    if isinstance(value, list):
        items = _item(annotation)
        return [_fill(items[0], v) for v in value] if len(items) == 1 else value
    return value


def _accepts(model: type[BaseModel], values: Mapping[str, Json]) -> bool:
    known = keys_of(model)
    return (is_open(model) or all(k in known for k in values)) and all(
        k in values for k, field in known.items() if field.is_required()
    )
