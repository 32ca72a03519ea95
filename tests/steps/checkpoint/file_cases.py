"""Faults that concern the files of a checkpoint, or what lies beside its weights."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.steps.mtp import tiny
from tests.steps.mtp.defects import Defect, edit_index


def config(**values: object):
    return lambda t: t.config.update(values)


def in_place_of_safetensors(*names: str):
    def damage(folder: Path) -> None:
        for path in (*folder.glob("*.safetensors"), folder / "model.safetensors.index.json"):
            path.unlink()
        for name in names:
            (folder / name).write_bytes(b"GGUF" + b"\0" * 20)

    return damage


def cut_short(folder: Path) -> None:
    """The shard ends within the tensor weight_shape, which is read."""
    from runbook.steps.checkpoint.checkpoint import open_folder

    found = open_folder(folder)
    shape = next(t for n, t in found.tensors.items() if n.endswith("weight_shape"))
    with (folder / shape.shard).open("r+b") as file:
        file.truncate(shape.begin + 3)


def listing(**values: object):
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return damage


FILES: dict[str, Defect] = {
    "GGUF": Defect("weights_foreign", damage=in_place_of_safetensors("model-Q4_K_M.gguf")),
    "pickles": Defect("weights_foreign", damage=in_place_of_safetensors("pytorch_model.bin")),
    "GGUF and pickles": Defect(
        "weights_foreign", damage=in_place_of_safetensors("a.gguf", "b.gguf", "c.bin")
    ),
    "no weights": Defect("weights_absent", damage=in_place_of_safetensors("notes.txt")),
    "a pipe": Defect(
        "file_odd", damage=lambda f: os.mkfifo(f / "x.safetensors"), severity="warning"
    ),
    "a link to nowhere": Defect(
        "file_odd", damage=lambda f: (f / "more.txt").symlink_to("gone"), severity="warning"
    ),
    "a link to itself": Defect(
        "file_odd", damage=lambda f: (f / "loop").symlink_to("loop"), severity="warning"
    ),
    **{
        f"a tokenizer's configuration that is {what}": Defect(
            "tokenizer_invalid",
            damage=lambda f, text=text: (f / "tokenizer_config.json").write_text(text),
        )
        for what, text in {
            "cut short": '{"a": ',
            "a list": "[]",
            "nested without end": "[" * 100_000,
            "empty": "",
        }.items()
    },
    "code": Defect(
        "custom_code",
        damage=lambda f: (f / "modeling_x.py").write_text("import os\n"),
        severity="warning",
    ),
    "a class of another repository": Defect(
        "custom_code",
        plant=config(auto_map={"AutoModel": "owner/name--modeling.Model"}),
        severity="warning",
    ),
    "classes with long names": Defect(
        "custom_code",
        plant=config(auto_map={"AutoModel": "m" * 150, "AutoConfig": ["c" * 50, None]}),
        severity="warning",
    ),
    "a tensor not in the index": Defect(
        "index_lacks",
        damage=lambda f: edit_index(f, lambda d: d["weight_map"].pop("embed.weight")),
        mended=True,
    ),
    "braces and control characters in a name": Defect(
        "shard_length", damage=lambda f: _renamed_and_cut(f, "a{x}\x1b[2J.safetensors")
    ),
    "cut within weight_shape": Defect("shard_length", damage=cut_short),
}


def _renamed_and_cut(folder: Path, name: str) -> None:
    path = folder / tiny.MTP_SHARD
    path.write_bytes(path.read_bytes()[:-3])
    path.rename(folder / name)
