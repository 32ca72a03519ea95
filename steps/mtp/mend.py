"""What can be mended, decided: from findings to edits of config, index and single tensors.

Pure: nothing is read but what the linter has read, nothing is written.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from runbook.steps.checkpoint.lint import Finding
from runbook.steps.checkpoint.lint.config import modules
from runbook.steps.checkpoint.lint.files import lacking
from runbook.steps.checkpoint.lint.subject import SCALES, Subject
from runbook.steps.checkpoint.lint.tensors import renamed
from runbook.steps.checkpoint.patterns import Patterns
from runbook.steps.checkpoint.quantization import PROBES, Scheme

Key = tuple[str, str]
"""A tensor by shard and name."""


@dataclass(frozen=True)
class Edit:
    """What becomes of one tensor: dropped, renamed, given its true dtype, or dequantised."""

    drop: bool = False
    name: str | None = None
    dtype: str | None = None
    scale: str | None = None
    """The name of the scale to dequantise with; the result is BF16."""


@dataclass
class Plan:
    """The edits that turn a checkpoint into one that its target loads."""

    config: dict[str, Any]
    edits: dict[Key, Edit] = field(default_factory=dict)
    listed: dict[str, str] = field(default_factory=dict)
    """Tensors to add to the index."""
    copies: dict[str, str] = field(default_factory=dict)
    """Tensors to add under a new name: alias to original."""
    mended: list[str] = field(default_factory=list)

    def edit(self, key: Key, edit: Edit) -> None:
        """Combine: what drops or dequantises a tensor makes renames of it pointless."""
        old = self.edits.get(key)
        if old is None or edit.drop or edit.scale:
            self.edits[key] = edit
        elif not (old.drop or old.scale):
            self.edits[key] = Edit(name=edit.name or old.name, dtype=edit.dtype or old.dtype)

    @property
    def shards(self) -> set[str]:
        """The shards that must be written anew."""
        return {shard for shard, _ in self.edits}

    def digest(self, source: object) -> str:
        """Identifies the plan for a state of the source, so that its interrupted application can
        go on."""
        parts = [
            source,
            self.config,
            sorted((k, vars(e)) for k, e in self.edits.items()),
            self.listed,
            self.copies,
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def plan(about: Subject, findings: Iterable[Finding], aliases: bool = False) -> Plan:
    """The edits for those findings of severity error or warning that can be mended."""
    made = Plan(copy.deepcopy(about.checkpoint.config))
    for finding in findings:
        mend = MENDS.get(finding.id)
        if mend is not None and finding.severity in ("error", "warning"):
            mend(about, finding.tensors, made)
            if finding.id not in made.mended:
                made.mended.append(finding.id)
    if aliases and about.layout is not None:
        have = about.checkpoint.index
        wanted = about.layout.aliases
        made.copies = {a: o for a, o in wanted.items() if a not in have and o in have}
        if made.copies:
            made.mended.append("mtp_aliases")
    return made


Mend = Callable[[Subject, tuple[str, ...], Plan], None]


def _quantization(made: Plan) -> dict[str, Any]:
    section: dict[str, Any] = made.config["quantization_config"]
    return section


def _add(section: dict[str, Any], key: str, new: Iterable[str]) -> None:
    """Add to a list of a config, which may be absent or null."""
    values = list(section.get(key) or [])
    section[key] = values + [v for v in new if v not in values]


def _actorder(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    for group in _quantization(made)["config_groups"].values():
        if (group.get("weights") or {}).get("actorder") in ("static", "weight"):
            group["weights"]["actorder"] = None


def _scale_fmt(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    _quantization(made)["scale_fmt"] = "ue8m0"


def _expert_dtype(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    made.config["expert_dtype"] = "bf16"


def _declare(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    made.config["num_nextn_predict_layers"] = max(1, len(about.mtp_blocks()))


def _targets(made: Plan, scheme: Scheme, new: Iterable[str]) -> None:
    _add(_quantization(made)["config_groups"][scheme.name], "targets", new)


def _probe(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    scheme = next((s for s in about.quantization.schemes if s.stored == "int4"), None)
    if scheme is not None:
        _targets(made, scheme, [rf"re:.*experts\.\d+\.({'|'.join(PROBES)})$"])


def _fused(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    assert about.layout is not None
    parts = dict(modules(about.layout))
    for name in names:
        scheme = about.quantization.linear(
            name, [about.layout.vllm_name(x.base) for x in parts[name]]
        )
        if scheme is not None:
            parent, leaf = name.rsplit(".", 2)[-2:]
            _targets(made, scheme, [rf"re:.*\.{parent}\.{leaf}$"])


def _ignore(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    assert about.layout is not None
    layout = about.layout
    parts = dict(modules(layout))
    new: list[str] = []
    for name in names:
        if name in parts:
            new.append(name)
            new += [layout.vllm_name(x.base) for x in parts[name]]
            new += [x.base for x in parts[name]]
        else:
            new.append(rf"re:{re.escape(name)}\.\d+\..*")
    _add(_quantization(made), "ignore", dict.fromkeys(new))


def _dequantise(about: Subject, bases: tuple[str, ...], made: Plan) -> None:
    assert about.layout is not None
    layout = about.layout
    for base in bases:
        weight, scale = about.tensor(f"{base}.weight"), about.scale(layout.linears[base])
        if weight is None or scale is None:
            continue
        made.edit((weight.shard, weight.name), Edit(scale=scale.name))
        for suffix in SCALES:
            found = about.tensor(base + suffix)
            if found is not None:
                made.edit((found.shard, found.name), Edit(drop=True))
    section = _quantization(made)
    only, others = _names(about, set(bases))
    for group in section["config_groups"].values():
        group["targets"] = [t for t in group.get("targets") or [] if not _only(t, only, others)]
    compressor = any(layout.linears[base].role == "compressor" for base in bases)
    ignored = r"re:.*\.compressor\..*" if compressor else r"re:.*\.indexer\.weights_proj$"
    _add(section, "ignore", [ignored])


def _only(target: str, only: list[str], others: list[str]) -> bool:
    """Whether a target names some of the first and none of the others."""
    match = Patterns([target]).match
    return any(map(match, only)) and not any(map(match, others))


def _names(about: Subject, bases: set[str]) -> tuple[list[str], list[str]]:
    """Names under which targets may know the linears of `bases`, and those of all others."""
    assert about.layout is not None
    only: list[str] = []
    others: list[str] = []
    for name, parts in modules(about.layout):
        into = only if all(x.base in bases for x in parts) else others
        into += [name, *(about.layout.vllm_name(x.base) for x in parts), *(x.base for x in parts)]
    return only, others


def _rename(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    for name in names:
        tensor, new = about.tensor(name), renamed(name)
        if tensor is not None and new is not None:
            made.edit((tensor.shard, name), Edit(name=new))


def _rename_scales(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    for name in names:
        tensor = about.tensor(name)
        if tensor is not None:
            made.edit((tensor.shard, name), Edit(name=name.rpartition(".")[0] + ".weight_scale"))


def _retype(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    for name in names:
        tensor = about.tensor(name)
        if tensor is not None:
            made.edit((tensor.shard, name), Edit(dtype="F8_E8M0"))


def _list(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    wanted = set(lacking(about))
    for tensor in about.checkpoint.stale:
        if tensor.name in wanted:
            made.listed.setdefault(tensor.name, tensor.shard)


def _drop(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    files = set(about.checkpoint.index.values())
    for tensor in about.checkpoint.stale:
        if tensor.shard in files and tensor.name in about.checkpoint.index:
            made.edit((tensor.shard, tensor.name), Edit(drop=True))


def _nothing(about: Subject, names: tuple[str, ...], made: Plan) -> None:
    """The index is written anew whenever it changes, its size with it."""


MENDS: dict[str, Mend] = {
    "actorder_static": _actorder,
    "scale_fmt": _scale_fmt,
    "expert_dtype": _expert_dtype,
    "mtp_undeclared": _declare,
    "mtp_overdeclared": _declare,
    "expert_probe": _probe,
    "fused_targets": _fused,
    "quant_overmatched": _ignore,
    "compressor_quantised": _dequantise,
    "indexer_weights_quantised": _dequantise,
    "name_drift": _rename,
    "gate_bias_name": _rename,
    "scale_name": _rename_scales,
    "scale_u8": _retype,
    "index_lacks": _list,
    "index_size": _nothing,
    "tensor_duplicate": _drop,
}
