"""What conda packages installed into a prefix, by the records in its `conda-meta`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from runbook.steps.common.store import sha256_file
from runbook.steps.toolkit.conda_lock import CondaPackage


def damage(prefix: Path, package: CondaPackage) -> str:
    """The first path below the prefix that is not as the package made it; "" if all are.

    A package that is not installed, or of which another archive is, is reported by its record.
    """
    name = f"conda-meta/{package.metadata}"
    record = _read(prefix / name)
    if record is None or record.get("sha256") != package.sha256:
        return name
    try:
        for entry in record["paths_data"]["paths"]:
            path = prefix / entry["_path"]
            if entry["path_type"] == "softlink":
                if not path.is_symlink():
                    return str(entry["_path"])
            elif entry["path_type"] == "hardlink":
                wanted = entry.get("sha256_in_prefix") or entry["sha256"]
                if path.is_symlink() or sha256_file(path) != wanted:
                    return str(entry["_path"])
    except (LookupError, TypeError):
        return name
    except OSError:
        return str(entry["_path"])
    return ""


def drop_torn_records(prefix: Path) -> list[str]:
    """Remove records that a kill or a power cut left half-written, and give their names: the
    installer would refuse the whole prefix, but installs a package without a record again."""
    torn = [path for path in prefix.glob("conda-meta/*.json") if _read(path) is None]
    for path in torn:
        os.unlink(path)
    return [path.name for path in torn]


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "paths_data" in record else None
