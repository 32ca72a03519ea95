"""Pack vLLM 0.33.0, patched, and what it imports for a GPU machine without a network.

    python tests/gpu/stage.py OUT [--wheels FOLDER] [--part-mib 57]

writes OUT/part.00 ...: an xz archive of a site-packages folder for CPython 3.12 on x86-64, in
pieces. Wheels come from the package index. vLLM asks for torch 2.14; its extensions use torch's
stable ABI and ran with torch 2.11.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

VLLM = "vllm==0.33.0"
SERIES = Path("steps/vllm/patches/0.33.0")
HERE = Path(__file__).parent
LOCKS = ("vllm-0.33.0.requirements.txt", "requirements.txt")
LEFT_OUT = (
    "_vllm_fa2_C",
    "/vllm-rs",
    "_flashkda",
    "_qutlass",
    ".jpg",
    "swagger",
    "third_party/fmha_sm100/",
)
"""Parts of vLLM's wheel that no request of ours reaches: other attention kernels, an HTTP server
in Rust, pictures. 0.9 GB unpacked."""
TOKENIZERS = ("mistral_common/", 500_000)
"""Example tokenizers of mistral-common: files below this name, larger than this."""
PLATFORMS = (
    *(f"manylinux_2_{n}_x86_64" for n in (39, 36, 35, 34, 31, 28, 27, 24, 17)),
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
    "linux_x86_64",
)
STUBS = {
    # pydantic-extra-types imports it for the names of languages, of which vLLM asks none.
    "pycountry/__init__.py": (
        "def __getattr__(name):\n"
        "    if name.startswith('__'):\n"
        "        raise AttributeError(name)\n"
        "    return []\n"
    ),
}


def requirements() -> list[str]:
    """`name==version` of every package, as locked for CPython 3.12 on x86-64."""
    environment = default_environment() | {
        "python_version": "3.12",
        "python_full_version": "3.12.3",
        "platform_machine": "x86_64",
        "sys_platform": "linux",
    }
    locked = {_normal(Requirement(VLLM).name): VLLM}
    for lock in LOCKS:
        for line in (resources.files("runbook.env") / lock).read_text().splitlines():
            if not re.match(r"[\w.-]+==", line):
                continue
            wanted = Requirement(line.rstrip(" \\"))
            if wanted.marker is None or wanted.marker.evaluate(environment):
                pin = f"{wanted.name}{wanted.specifier}"
                locked.setdefault(_normal(wanted.name), pin)
    names = (HERE / "packages.txt").read_text().splitlines()
    return [locked[_normal(name)] for name in names if name and not name.startswith("#")]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def download(folder: Path) -> list[Path]:
    """The wheels, those that are not there yet from the package index."""
    folder.mkdir(parents=True, exist_ok=True)

    def there() -> dict[str, Path]:
        found = {}
        for wheel in folder.glob("*.whl"):
            name, version = wheel.name.split("-")[:2]
            found[f"{_normal(name)}=={version}"] = wheel
        return found

    wanted = {f"{_normal(pin.split('==')[0])}=={pin.split('==')[1]}": pin for pin in requirements()}
    missing = [pin for key, pin in wanted.items() if key not in there()]
    if missing:
        print(f"download {len(missing)} packages", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
        command += [f"--platform={platform}" for platform in PLATFORMS]
        subprocess.run([*command, "-d", str(folder), *missing], check=True)
    return [there()[key] for key in wanted]


def _members(archive: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """(path in site-packages, entry) for each file that is wanted."""
    for entry in archive.infolist():
        name = entry.filename
        if name.endswith("/") or any(part in name for part in LEFT_OUT):
            continue
        if name.startswith(TOKENIZERS[0]) and entry.file_size > TOKENIZERS[1]:
            continue
        if ".data/" in name:
            kind, _, name = name.split(".data/", 1)[1].partition("/")
            if kind not in ("purelib", "platlib"):
                continue
        yield name, entry


def unpack(wheel: Path, site: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, entry in _members(archive):
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(archive.read(entry))
            if entry.external_attr >> 16 & 0o111:  # zipfile loses it; compilers among them need it
                path.chmod(0o755)


def patch(site: Path, series: Path) -> None:
    for patch in yaml.safe_load((series / "series.yaml").read_text())["patches"]:
        with (series / patch["file"]).open() as diff:
            subprocess.run(["patch", "-s", "-p1", "-d", str(site)], stdin=diff, check=True)


def pack(site: Path, out: Path, part_mib: int) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("part.*"):
        old.unlink()
    pack = ["tar", "-C", str(site), "--sort=name", "--owner=0", "--group=0", "-cf", "-", "."]
    # Blocks, so that many cores can unpack it.
    press = ["xz", "-T0", "-1", "--block-size=32MiB"]
    split = ["split", "-b", str(part_mib << 20), "-d", "-", str(out / "part.")]
    with subprocess.Popen(pack, stdout=subprocess.PIPE) as tar:
        with subprocess.Popen(press, stdin=tar.stdout, stdout=subprocess.PIPE) as xz:
            subprocess.run(split, stdin=xz.stdout, check=True)
        if tar.wait() or xz.returncode:
            raise SystemExit("packing failed")
    return sorted(out.glob("part.*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheels", type=Path, help="keep the downloaded wheels here")
    parser.add_argument("--part-mib", type=int, default=57)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out.parent) as scratch:
        site = Path(scratch, "site")
        for wheel in download(options.wheels or Path(scratch, "wheels")):
            unpack(wheel, site)
        for name, text in STUBS.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        patch(site, HERE.parents[1] / SERIES)
        print("pack", flush=True)
        for part in pack(site, options.out, options.part_mib):
            print(part, part.stat().st_size)


if __name__ == "__main__":
    main()
