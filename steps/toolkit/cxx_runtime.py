"""The C++ run-time library that programs of a conda g++ need, where the machine's is older.

What g++ 14 compiles wants the symbols of its own libstdc++ (GLIBCXX_3.4.33), and a Python that is
not conda's has loaded the machine's libstdc++ long before, for torch: a run path in the compiled
library would come too late. So the search path must be right from the start, and must show
nothing else of the conda prefix, whose OpenSSL or zlib no other program should get.
"""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

LIBRARIES = ("libstdc++.so.6", "libgcc_s.so.1")
FOLDER = "lib/cxx-runtime"


def search_path(prefix: Path) -> str:
    """The LD_LIBRARY_PATH that programs compiled in a conda prefix need; "" if none is."""
    own = prefix / "lib" / LIBRARIES[0]
    system = system_library()
    if system is not None and system.is_relative_to(prefix.resolve()):
        system = None  # this process itself runs with the path that is to be told
    if not own.exists() or _release(own.resolve()) <= _release(system):
        return ""
    folder = prefix / FOLDER
    folder.mkdir(exist_ok=True)
    for library in LIBRARIES:
        link, target = folder / library, f"../{library}"
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    present = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return ":".join([str(folder), *(entry for entry in present if entry not in ("", str(folder)))])


def system_library() -> Path | None:
    """The libstdc++ that a program of this machine gets; None if it has none."""
    try:
        ctypes.CDLL(LIBRARIES[0])
    except OSError:
        return None
    maps = Path("/proc/self/maps").read_text()
    found = re.search(rf"(/\S*/{re.escape(LIBRARIES[0])}\S*)$", maps, re.MULTILINE)
    return Path(found[1]).resolve() if found else None


def _release(library: Path | None) -> tuple[int, ...]:
    """(6, 0, 33) of libstdc++.so.6.0.33; the higher, the newer."""
    found = re.search(r"\.so\.([\d.]+)$", library.name) if library else None
    return tuple(map(int, found[1].split("."))) if found else ()
