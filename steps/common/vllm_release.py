"""The locked release that a target builds on: `env/vllm-<target>.lock.json`.

Names, versions and hashes; where the files come from is the user's pip configuration. One address
may be in it: that of a publisher's own index, for wheels that plain indexes lack. Only the standard
library: each `check` reads it.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runbook.protocol import PreconditionNotMet, StepFailure

ENV = Path(__file__).parents[2] / "env"


@dataclass(frozen=True, slots=True)
class BaseWheel:
    """A published wheel; `file` is its name, `bytes` its size."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class OwnIndex:
    """A publisher's package index; `wheels` are those of one package that plain indexes lack:
    SHA-256 by file name."""

    url: str
    wheels: dict[str, str]

    def wheel(self, python: str) -> OwnWheel | None:
        """The wheel for this machine and a minor version of Python; None if it has none."""
        tag = f"cp{python.replace('.', '')}"
        for file, sha256 in self.wheels.items():
            name, version, *_, abi, platform = file.removesuffix(".whl").split("-")
            if abi == tag and platform.endswith(f"_{os.uname().machine}"):
                return OwnWheel(file, name, version, sha256, platform)
        return None


@dataclass(frozen=True, slots=True)
class OwnWheel:
    """One of them; `platform` is the tag of its file name."""

    file: str
    name: str
    version: str
    sha256: str
    platform: str


@dataclass(frozen=True, slots=True)
class Release:
    """`distribution` is the name on the index, which for CPU builds is not `vllm`; `local` starts
    the local version of the patched wheel; `requirements` is a file beside the lock; `pythons`
    are the minor versions that it has hashes for; `build_requirements` is what `mode: source`
    compiles with. `download_bytes` and `disk_bytes` are what a first install takes, for plans."""

    path: Path
    distribution: str
    version: str
    local: str
    requirements: Path
    pythons: tuple[str, ...]
    drop_requirements: tuple[str, ...]
    build_requirements: Path | None
    download_bytes: int
    disk_bytes: int
    wheels: dict[str, BaseWheel]
    own_index: OwnIndex | None = None

    def wheel(self) -> BaseWheel:
        """The wheel for this machine."""
        key = f"{sys.platform}-{os.uname().machine}"
        if key not in self.wheels:
            raise PreconditionNotMet(
                f"{self.distribution} {self.version} has no locked wheel for {key}",
                code="wheel_not_locked",
                cause=f"{self.path.name} has wheels for {', '.join(sorted(self.wheels))}",
                remedy="use `mode: source`, or make a lock on this machine (make lock)",
            )
        return self.wheels[key]

    def need_build_requirements(self) -> Path:
        if self.build_requirements is None:
            raise StepFailure(
                f"{self.path.name} has no build requirements",
                code="build_not_locked",
                remedy="use `mode: wheel`, or a lock with `build_requirements`",
            )
        return self.build_requirements

    def python(self, wanted: str | None) -> str:
        """The minor version of Python to use: the one asked for, else this one if there are
        hashes for it, else the first on PATH that there are hashes for."""
        chosen = wanted or self._own_python()
        if chosen not in self.pythons:
            raise PreconditionNotMet(
                f"the requirements are not locked for Python {chosen}",
                code="python_not_locked",
                cause=f"{self.path.name} is for Python {', '.join(self.pythons)}",
                remedy=f'give the step `python: "{self.pythons[0]}"`, or leave `python` out',
            )
        return chosen

    def _own_python(self) -> str:
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        if here in self.pythons:
            return here
        from shutil import which

        return next((v for v in self.pythons if which(f"python{v}")), self.pythons[0])


def lock_path(target: str, lock: str | None) -> Path:
    """The lock of a target: the shipped one, another shipped one by file name, or a path."""
    if lock is not None and "/" in lock:
        return Path(lock).absolute()
    return ENV / (lock or f"vllm-{target}.lock.json")


def load_release(path: Path) -> Release:
    """Read a lock; raises `StepFailure` if it is absent or not of this form."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        data: dict[str, Any] = json.loads(path.read_bytes())
        _require_types(data)
        build = data.get("build_requirements")
        return Release(
            path=path,
            distribution=data["distribution"],
            version=data["version"],
            local=data["local"],
            requirements=path.parent / data["requirements"],
            pythons=tuple(data["pythons"]),
            drop_requirements=tuple(data["drop_requirements"]),
            build_requirements=path.parent / build if build else None,
            download_bytes=data["download_bytes"],
            disk_bytes=data["disk_bytes"],
            wheels={key: BaseWheel(**wheel) for key, wheel in data["wheels"].items()},
            own_index=OwnIndex(**data["own_index"]) if "own_index" in data else None,
        )
    except FileNotFoundError:
        locks = sorted(found.name for found in ENV.glob("vllm-*.lock.json"))
        raise StepFailure(
            f"there is no lock {path}",
            code="lock_missing",
            cause=f"shipped are {', '.join(locks) or 'none'}",
            remedy="name a shipped target, or give `lock` the path of your own",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StepFailure(
            f"{path} is not a lock of a vLLM release",
            code="lock_malformed",
            cause=f"{type(error).__name__}: {error}",
            remedy="write the lock anew (`make lock` in the repository of runbook)",
        ) from error


_TEXTS = ("distribution", "version", "local", "requirements")
_LISTS = ("pythons", "drop_requirements")


def _require_types(data: Any) -> None:
    """Raises TypeError or KeyError for values that are not of their type."""
    if not isinstance(data, dict):
        raise TypeError("expected keys and values")
    own = data.get("own_index", {"url": "", "wheels": {"": ""}})
    texts = [data[name] for name in _TEXTS] + [data.get("build_requirements") or "", own["url"]]
    for name in _LISTS:
        if not isinstance(data[name], list):
            raise TypeError(f"{name} must be a list")
        texts += data[name]
    for wheel in data["wheels"].values():
        texts += [wheel["file"], wheel["sha256"]]
    texts += [part for item in own["wheels"].items() for part in item]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{next(t for t in texts if not isinstance(t, str))!r:.80} must be a text")
    numbers = [data["download_bytes"], data["disk_bytes"]]
    numbers += [wheel["bytes"] for wheel in data["wheels"].values()]
    if not data["pythons"] or not all(type(number) is int for number in numbers):
        raise TypeError("sizes must be whole numbers, and pythons at least one")
