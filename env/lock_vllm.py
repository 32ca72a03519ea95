"""Write the lock of a vLLM release again: `python -m runbook.env.lock_vllm TARGET...`.

A target has `vllm-<target>.lock.json`, of which all but `wheels` is written by hand, and may have
`vllm-<target>.in` with further requirements. `own_index` names the wheels of its publisher's index.
`build_requirements`, if it is there, is made from `vllm-<target>.build.in`.
The hashes and sizes of the wheels, `vllm-<target>.requirements.txt` and
`vllm-<target>.registries.json` are made from them with the indexes that the user's pip is
configured with. No host name is written.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from runbook.env.registries import registries
from runbook.files import write_atomic
from runbook.steps.common.packages.indexes import pip_settings, uv_environment, uv_index_options
from runbook.steps.common.packages.wheel import Wheel
from runbook.steps.common.store import sha256_file

HERE = Path(__file__).parent
PLATFORM_TAGS = {
    "linux-x86_64": ("manylinux_2_35_x86_64", "manylinux_2_28_x86_64"),
    "linux-aarch64": ("manylinux_2_35_aarch64", "manylinux_2_28_aarch64"),
}
HEADER = """\
# The environment of vLLM {version}: everything but vLLM itself, for Python {pythons} on Linux.
# Written by `python -m runbook.env.lock_vllm {target}`; do not edit.
"""
BUILD_HEADER = """\
# What vLLM {version} is compiled with, for Python {pythons} on Linux.
# Written by `python -m runbook.env.lock_vllm {target}`; do not edit.
"""


def download(distribution: str, version: str, platform: str, python: str, folder: Path) -> Path:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary", ":all:", "--python-version", python, "--dest", str(folder)),
            *(f"--platform={tag}" for tag in PLATFORM_TAGS[platform]),
            f"{distribution}=={version}",
        ],
        check=True,
    )
    return next(folder.glob("*.whl"))


def requirements_of(wheel: Path, dropped: Sequence[str]) -> list[str]:
    """The requirements in a wheel's metadata, without those of extras and the dropped ones."""
    with Wheel(wheel) as opened:
        metadata = (opened.read(f"{opened.dist_info}/METADATA") or b"").decode()
    without = {canonicalize_name(name) for name in dropped}
    found = re.findall(r"^Requires-Dist: *(.+)$", metadata.partition("\n\n")[0], re.MULTILINE)
    return [
        line
        for line in found
        if not re.search(r";.*\bextra\s*==", line)
        and canonicalize_name(re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]) not in without
    ]


def resolve(requirements: Sequence[str], python: str) -> str:
    """Every package, pinned and with the hashes of all its files, for `python` and later."""
    settings = pip_settings()
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--universal"),
            *("--python-version", python, "--generate-hashes", "--no-header", "--no-annotate"),
            *uv_index_options(settings),
        ],
        input="\n".join(requirements),
        env={**os.environ, **uv_environment(settings, os.environ)},
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise SystemExit(answer.stderr)
    return answer.stdout


def with_own_hashes(text: str, own_index: Mapping[str, Any] | None) -> str:
    """Requirements with the hashes of the wheels that are on their publisher's own index: not all
    of them are where the lock is made."""
    if own_index is None:
        return text
    name, version = next(iter(own_index["wheels"])).split("-")[:2]
    block = rf"(?m)^({re.escape(f'{name}=={version}')} [^\n]*\\\n)((?:    --hash=\S+(?: \\)?\n)+)"

    def with_all(match: re.Match[str]) -> str:
        hashes = {*re.findall(r"sha256:(\w+)", match[2]), *own_index["wheels"].values()}
        return match[1] + " \\\n".join(f"    --hash=sha256:{h}" for h in sorted(hashes)) + "\n"

    text, count = re.subn(block, with_all, text)
    if count != 1:
        raise SystemExit(f"the requirements do not pin {name}=={version} once")
    return text


def lock(target: str) -> None:
    path = HERE / f"vllm-{target}.lock.json"
    data = json.loads(path.read_bytes())
    python = data["pythons"][0]
    extra = HERE / f"vllm-{target}.in"
    requirements = extra.read_text().splitlines() if extra.exists() else []
    for platform in data["wheels"]:
        with tempfile.TemporaryDirectory() as folder:
            wheel = download(data["distribution"], data["version"], platform, python, Path(folder))
            data["wheels"][platform] = {
                "file": wheel.name,
                "sha256": sha256_file(wheel),
                "bytes": wheel.stat().st_size,
            }
            requirements += requirements_of(wheel, data["drop_requirements"])
            known = registries(wheel)
    words = {"version": data["version"], "pythons": ", ".join(data["pythons"]), "target": target}
    text = HEADER.format(**words) + resolve(sorted(set(requirements)), python)
    text = with_own_hashes(text, data.get("own_index"))
    write_atomic(HERE / data["requirements"], text.encode())
    if "build_requirements" in data:
        wanted = (HERE / f"vllm-{target}.build.in").read_text().splitlines()
        text = BUILD_HEADER.format(**words) + resolve(wanted, python)
        write_atomic(HERE / data["build_requirements"], text.encode())
    names = HERE / f"vllm-{target}.registries.json"
    write_atomic(names, (json.dumps(known, indent=1) + "\n").encode())
    write_atomic(path, (json.dumps(data, indent=2) + "\n").encode())
    print(f"wrote {path} and {data['requirements']}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write the lock of a vLLM release again.")
    parser.add_argument("target", nargs="+")
    for target in parser.parse_args(argv).target:
        lock(target)


if __name__ == "__main__":
    main()
