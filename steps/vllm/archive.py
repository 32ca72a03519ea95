"""Source archives, by digest."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import tarfile
import zlib
from pathlib import Path

from runbook.protocol import Context, StepFailure
from runbook.steps.common.store import Store, sha256_file

_TIMEOUT = 60  # seconds without a byte
_BLOCK = 1 << 20
# What reading a damaged archive raises, by its compression; and what members raise that are a file
# here and a folder there.
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, ValueError)
_CLASHES = (FileExistsError, IsADirectoryError, NotADirectoryError)


def obtain(ctx: Context, store: Store, location: str, sha256: str) -> Path:
    """The archive with this digest: from the cache, else from an http(s) address or a path.

    A download that broke off goes on where it stopped, if the server can do that.
    """
    with store.work(sha256):
        return store.find(sha256) or _obtain(ctx, store, location, sha256)


def _obtain(ctx: Context, store: Store, location: str, sha256: str) -> Path:
    name = re.split(r"[?#]", location)[0].rstrip("/").rpartition("/")[2] or "archive"
    partial = store.partial(sha256) / name
    if re.match(r"https?://", location):
        _download(ctx, location, partial)
    else:
        try:
            shutil.copyfile(location, partial)
        except FileNotFoundError:
            raise StepFailure(
                f"there is no source archive {location}",
                code="archive_missing",
                remedy="correct `source.archive`",
            ) from None
    digest = sha256_file(partial)
    if digest != sha256:
        partial.unlink()
        raise StepFailure(
            f"the source archive {name} is not the one that was pinned",
            code="archive_mismatch",
            cause=f"its SHA-256 is {digest}, pinned is {sha256}",
            remedy="find out why before pinning the new digest: its history may be rewritten",
        )
    archive = store.add(partial)[1]
    partial.parent.rmdir()
    return archive


def _download(ctx: Context, address: str, partial: Path) -> None:
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    from runbook.steps.common import http

    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    what = f"the source archive {partial.name}"
    try:
        with (
            http.session(timeout=_TIMEOUT) as session,
            session.get(address, headers=headers, stream=True) as answer,
        ):
            if answer.status_code == 416:  # all of it was there already
                return
            if not answer.ok:
                raise http.refusal(answer.status_code, address, what)
            if answer.status_code != 206:
                have = 0
            length = answer.headers.get("Content-Length", "")
            total = have + int(length) if length.isdecimal() else None
            with partial.open("ab" if have else "wb") as file:
                while block := answer.raw.read1(_BLOCK):
                    file.write(block)
                    have += len(block)
                    ctx.progress(have, total, "bytes", f"download {partial.name}")
            if total is not None and have < total:
                raise HTTPError(f"{have} of {total} bytes came")
    except (RequestException, HTTPError) as error:
        raise http.failure(error, address, what) from error


def unpack(archive: Path, commit: str, folder: Path) -> None:
    """Unpack a tar archive with one top folder so that its content lies in `folder`.

    `git archive` notes the commit in the archive; where it is noted it must be `commit`.
    """
    aside = folder.with_name(folder.name + ".unpacked")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            noted = tar.pax_headers.get("comment", "")
            if re.fullmatch(r"[0-9a-f]{40}", noted) and noted != commit:
                raise StepFailure(
                    f"the source archive {archive.name} is of another commit",
                    code="commit_mismatch",
                    cause=f"it notes {noted}, pinned is {commit}",
                    remedy="pin the commit and the archive together",
                )
            tar.extractall(aside, filter="data")
    except (*_DAMAGED, *_CLASHES) as error:
        raise StepFailure(
            f"the source archive {archive.name} cannot be unpacked",
            code="archive_malformed",
            cause=str(error),
            remedy="pin a tar archive of plain files, folders and links among them",
        ) from error
    tops = list(aside.iterdir()) if aside.is_dir() else []
    if len(tops) != 1 or tops[0].is_symlink() or not tops[0].is_dir():
        raise StepFailure(
            f"the source archive {archive.name} does not have one folder on top",
            code="archive_malformed",
            remedy="pin one as `git archive --prefix=NAME/` or a source distribution makes it",
        )
    tops[0].replace(folder)
    aside.rmdir()
