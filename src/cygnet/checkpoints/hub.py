"""Fetch the weights of a named model into the download cache that every program of the Hugging Face hub shares.

A file is fetched beside the cache's own files, under a name that nobody looks for, and continued there after a stop. It
enters the cache, or the folder asked for, only when its size and its digest are those that the hub lists for the commit
that was chosen at the start. So what is in the cache was verified, and a kill at any moment leaves nothing half done.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from cygnet.checkpoints.catalogue import COMFY_PREFIX, RemoteFile, Source, SourceName, default_cache, entry, snapshots
from cygnet.checkpoints.weight_file import printable
from cygnet.errors import DownloadError
from cygnet.types import CancelToken

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PARTIAL_FOLDER = ".cygnet-partial"
SPARE_BYTES = 256 * 2**20
"""What a download leaves free on the disk."""
MAX_LISTED_FILES = 10_000
_BLOCK = 4 * 2**20


class DiskSpaceError(DownloadError):
    """The files do not fit on the disk."""

    code = "disk_full"


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """``file`` is number ``number`` of ``count``; of all bytes together ``done`` of ``total`` are through ``stage``."""

    stage: Literal["download", "verify"]
    file: str
    number: int
    count: int
    done: int
    total: int


PullSink = Callable[[PullProgress], None]


@dataclass(frozen=True, kw_only=True)
class PulledFile:
    """A verified file: where it is, and whether it had to be fetched."""

    name: str
    path: Path
    bytes: int
    sha256: str
    fetched: bool


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """What :func:`pull` made sure of. ``commit`` is None when only the cache was looked at (offline)."""

    name: str
    source: SourceName
    repo: str
    commit: str | None
    folder: Path
    files: tuple[PulledFile, ...]
    offline: bool


@dataclass(frozen=True)
class _Listed:
    """A file as the hub lists it; ``digest`` is the SHA-256 of large files and git's blob id of small ones."""

    name: str
    size: int
    digest: str
    algorithm: Literal["sha256", "git"]


def pull(
    name: str,
    source: SourceName = "official",
    revision: str | None = None,
    *,
    dtype: str | None = None,
    local_folder: Path | str | None = None,
    on_progress: PullSink | None = None,
    cancel: CancelToken | None = None,
    cache_folder: Path | str | None = None,
    endpoint: str | None = None,
) -> Pulled:
    """Make sure that every file of model ``name`` is here and whole; fetch what is missing.

    ``source`` is ``official`` (the largest: 32-bit), ``comfy`` (single files, of the stored type ``dtype``) or
    ``diffusers``. ``revision`` is a branch, tag or commit; what it means when the call begins is what all files come
    from. Files go to the shared cache (``HF_HUB_CACHE``, ``HF_HOME``; ``cache_folder``), or to ``local_folder``, there
    in ComfyUI's folders if the source is ``comfy``. ``HF_ENDPOINT`` (``endpoint``), ``HF_TOKEN`` and
    ``HF_HUB_OFFLINE`` are honoured; offline, the call only says whether the model is complete.

    Raises ModelNotFoundError or RequestError for a name, source or dtype that there is not, DownloadError with what to
    do if anything cannot be fetched or verified (what was fetched is kept for the next call), Cancelled on ``cancel``.
    """
    model = entry(name)
    chosen = model.source(source)
    wanted = chosen.select(dtype)
    from huggingface_hub import HfApi, constants

    cache = Path(cache_folder) if cache_folder is not None else default_cache()
    if constants.HF_HUB_OFFLINE:
        if local_folder is not None:
            return _offline_in_folder(model.name, chosen, wanted, Path(local_folder))
        return _offline_in_cache(model.name, chosen, wanted, cache, revision)
    api = HfApi(endpoint=endpoint, library_name="cygnet")
    with _explained(chosen.repo):
        commit, listed = _list_files(api, chosen.repo, revision)
        selected = _select(listed, wanted, chosen.repo)
        place: _Place
        if local_folder is None:
            place = _Cache(cache, chosen.repo, commit, api)
        else:
            place = _Folder(Path(local_folder), strip=_prefix(chosen))
        done = _fetch_all(_Job(api, chosen.repo, commit, place, on_progress, cancel or CancelToken()), selected)
        place.finish(revision or constants.DEFAULT_REVISION, selected)
    return Pulled(
        name=model.name,
        source=chosen.name,
        repo=chosen.repo,
        commit=commit,
        folder=place.root,
        files=tuple(done),
        offline=False,
    )


# What there is to fetch ----------------------------------------------------------------------------------------------


def _list_files(api: HfApi, repo: str, revision: str | None) -> tuple[str, list[_Listed]]:
    info = api.model_info(repo, revision=revision, files_metadata=True)
    siblings = info.siblings or []
    if not info.sha or len(siblings) > MAX_LISTED_FILES:
        raise DownloadError(f"the hub's answer about {repo} names no commit or too many files; try again later")
    listed = []
    for sibling in siblings:
        lfs = sibling.lfs
        size = lfs.size if lfs else sibling.size
        digest = lfs.sha256 if lfs else sibling.blob_id
        if size is not None and digest and _is_safe(sibling.rfilename) and _is_hex(digest):
            listed.append(_Listed(sibling.rfilename, size, digest, "sha256" if lfs else "git"))
    return info.sha, listed


def _is_safe(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and not any(c in name for c in "\\:\0")


def _is_hex(digest: str) -> bool:
    return len(digest) in (40, 64) and all(c in "0123456789abcdef" for c in digest)


def _select(listed: Sequence[_Listed], wanted: Sequence[RemoteFile], repo: str) -> list[_Listed]:
    selected: dict[str, _Listed] = {}
    for file in wanted:
        matches = [found for found in listed if _matches(found.name, file.path)]
        if not matches:
            raise DownloadError(
                f"{repo} has no file {file.path!r} at this revision; leave --revision out, or use another --source"
            )
        selected.update((found.name, found) for found in matches)
    return sorted(selected.values(), key=lambda found: found.size)  # small ones first: they show early what is wrong


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatchcase(name, pattern)


# Where it goes -------------------------------------------------------------------------------------------------------


class _Place:
    """Where files end up, and where they grow until they may."""

    root: Path

    def present(self, file: _Listed) -> Path | None:
        """The file, if something of its size is already there."""
        raise NotImplementedError

    def partial(self, file: _Listed) -> Path:
        """Where the file grows; on the same disk as where it ends up."""
        raise NotImplementedError

    def place(self, file: _Listed, partial: Path) -> Path:
        """Move the verified file to where it belongs, in one step."""
        raise NotImplementedError

    def keep(self, file: _Listed, present: Path) -> Path:
        """What was present is verified; returns where to use it."""
        return present

    def drop(self, file: _Listed, present: Path) -> None:
        """What was present turned out to be damaged: remove it, or refuse to."""
        raise NotImplementedError

    def finish(self, revision: str, files: Sequence[_Listed]) -> None:
        """All ``files`` are there: remove what served to fetch them, and nothing of another model's."""
        for file in files:
            partial = self.partial(file)
            for leftover in (partial, _lock_of(partial)):
                leftover.unlink(missing_ok=True)
        with suppress(OSError):  # another pull may be at work in it
            self.partial(files[0]).parent.rmdir()


class _Folder(_Place):
    """A folder of the user's choice."""

    def __init__(self, root: Path, *, strip: str) -> None:
        self.root, self._strip = root, strip

    def _target(self, file: _Listed) -> Path:
        return self.root / file.name.removeprefix(self._strip)

    def present(self, file: _Listed) -> Path | None:
        target = self._target(file)
        return target if target.is_file() and target.stat().st_size == file.size else None

    def partial(self, file: _Listed) -> Path:
        return self.root / PARTIAL_FOLDER / file.digest

    def place(self, file: _Listed, partial: Path) -> Path:
        target = self._target(file)
        if target.exists():
            raise DownloadError(
                f"{printable(target.name)!r} is in the folder already and differs from the hub's file; move it away"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)
        return target

    def drop(self, file: _Listed, present: Path) -> None:
        raise DownloadError(
            f"{printable(present.name)!r} is in the folder already, as large as the hub's file but with another "
            "content; move it away and pull again"
        )


class _Cache(_Place):
    """The shared cache: ``blobs`` by digest, and per commit a snapshot of links to them."""

    def __init__(self, cache: Path, repo: str, commit: str, api: HfApi) -> None:
        self._cache, self._repo, self._commit, self._api = cache, repo, commit, api
        self._storage = cache / f"models--{repo.replace('/', '--')}"
        self.root = self._storage / "snapshots" / commit

    def present(self, file: _Listed) -> Path | None:
        for path in (self.root / file.name, self._storage / "blobs" / file.digest):
            if path.is_file() and path.stat().st_size == file.size:
                return path
        return None

    def partial(self, file: _Listed) -> Path:
        return self._storage / PARTIAL_FOLDER / file.digest

    def place(self, file: _Listed, partial: Path) -> Path:
        blob = self._storage / "blobs" / file.digest
        blob.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, blob)
        return self._link(file, blob)

    def keep(self, file: _Listed, present: Path) -> Path:
        return present if present == self.root / file.name else self._link(file, present)

    def _link(self, file: _Listed, blob: Path) -> Path:
        """Let the hub's own library add the snapshot's link: it knows disks and systems without links."""
        from huggingface_hub import hf_hub_download

        path = Path(
            hf_hub_download(
                self._repo,
                file.name,
                revision=self._commit,
                cache_dir=self._cache,
                endpoint=self._api.endpoint,
                library_name="cygnet",
            )
        )
        if blob.exists() and not os.path.samefile(path, blob):
            raise DownloadError(f"the hub now gives another {printable(file.name)!r} than it listed; pull again")
        return path

    def drop(self, file: _Listed, present: Path) -> None:
        (self._storage / "blobs" / file.digest).unlink(missing_ok=True)
        present.unlink(missing_ok=True)

    def finish(self, revision: str, files: Sequence[_Listed]) -> None:
        super().finish(revision, files)
        if revision == self._commit or not _is_safe(revision):
            return
        # Other programs that are offline look a branch up here.
        reference = self._storage / "refs" / revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        fresh = reference.with_name(f"{reference.name}.{os.getpid()}.new")
        fresh.write_text(self._commit, encoding="ascii")
        os.replace(fresh, reference)


# Fetching ------------------------------------------------------------------------------------------------------------


@dataclass
class _Job:
    api: HfApi
    repo: str
    commit: str
    place: _Place
    on_progress: PullSink | None
    cancel: CancelToken
    done: int = 0
    total: int = 0
    number: int = 0
    count: int = 0

    def report(self, stage: Literal["download", "verify"], file: _Listed, within: int) -> None:
        """Tell how far the work is, ``within`` bytes into ``file``; raises Cancelled if a stop was asked for."""
        if self.on_progress is not None:
            self.on_progress(
                PullProgress(
                    stage=stage,
                    file=file.name,
                    number=self.number,
                    count=self.count,
                    done=self.done + within,
                    total=self.total,
                )
            )
        self.cancel.check()


def _fetch_all(job: _Job, files: Sequence[_Listed]) -> list[PulledFile]:
    job.total, job.count = sum(file.size for file in files), len(files)
    _check_space(job.place, files)
    results = []
    for number, file in enumerate(files, start=1):
        job.number = number
        results.append(_fetch(job, file))
        job.done += file.size
    return results


def _fetch(job: _Job, file: _Listed) -> PulledFile:
    if (present := job.place.present(file)) is not None:
        sha256, right = _digest(job, file, present)
        if right:
            path = job.place.keep(file, present)
            return PulledFile(name=file.name, path=path, bytes=file.size, sha256=sha256, fetched=False)
        job.place.drop(file, present)
    partial = job.place.partial(file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _lock(partial):
        for last in (False, True):
            continued = partial.exists() and partial.stat().st_size > 0
            _download(job, file, partial)
            sha256, right = _digest(job, file, partial)
            if right:
                path = job.place.place(file, partial)
                return PulledFile(name=file.name, path=path, bytes=file.size, sha256=sha256, fetched=True)
            partial.unlink()
            if last or not continued:  # a continued file may have been begun wrongly: once more from the start
                break
    raise DownloadError(
        f"{printable(file.name)!r} arrived damaged: its checksum is not the one that the hub lists. It was thrown "
        "away; pull again, and if it stays so, look for a proxy or a mirror (HF_ENDPOINT) that changes files"
    )


def _download(job: _Job, file: _Listed, partial: Path) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public, but not in __all__

    have = partial.stat().st_size if partial.exists() else 0
    if have > file.size:
        partial.unlink()
        have = 0
    if have == file.size and partial.exists():
        return
    job.report("download", file, have)
    url = hf_hub_url(job.repo, file.name, revision=job.commit, endpoint=job.api.endpoint)
    with partial.open("ab") as handle:
        http_get(
            url,
            handle,
            resume_size=have,
            headers=build_hf_headers(library_name="cygnet"),
            expected_size=file.size,
            displayed_filename=file.name,
            _tqdm_bar=_Meter(lambda within: job.report("download", file, within), have),
        )
        handle.flush()
        os.fsync(handle.fileno())


class _Meter:
    """Stands where the hub's library has its progress bar; counts bytes and passes them on."""

    def __init__(self, report: Callable[[int], None], start: int) -> None:
        self._report, self._bytes = report, start

    def update(self, count: float = 1) -> None:
        """``count`` more bytes came (fewer, if the server began again)."""
        self._bytes += int(count)
        self._report(self._bytes)

    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def _digest(job: _Job, file: _Listed, path: Path) -> tuple[str, bool]:
    """SHA-256 of the file at ``path``, and whether it is what the hub lists."""
    sha256 = hashlib.sha256()
    git = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    size = 0
    with path.open("rb") as handle:
        while block := handle.read(_BLOCK):
            sha256.update(block)
            if file.algorithm == "git":
                git.update(block)
            size += len(block)
            job.report("verify", file, size)
    found = sha256.hexdigest() if file.algorithm == "sha256" else git.hexdigest()
    return sha256.hexdigest(), size == file.size and found == file.digest


def _check_space(place: _Place, files: Sequence[_Listed]) -> None:
    needed = 0
    for file in files:
        if place.present(file) is None:
            partial = place.partial(file)
            needed += file.size - min(file.size, partial.stat().st_size if partial.is_file() else 0)
    existing = place.root.absolute()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed and needed + SPARE_BYTES > free:
        raise DiskSpaceError(
            f"{needed / 1e9:.1f} GB are still to be fetched, but the disk has {free / 1e9:.1f} GB free; make room, "
            "choose another disk (HF_HOME or --local-dir), or fetch smaller files (--source comfy --dtype ...)"
        )


@contextmanager
def _lock(partial: Path) -> Iterator[None]:
    """One process at a time works on a partial file; a second one waits."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, but not in __all__

    with WeakFileLock(_lock_of(partial)):
        yield


def _lock_of(partial: Path) -> Path:
    return partial.with_name(partial.name + ".lock")


# Without a network, and when it fails --------------------------------------------------------------------------------


def _prefix(source: Source) -> str:
    """What is left out of the names of this source's files in a folder of the user's choice."""
    return COMFY_PREFIX if source.name == "comfy" else ""


def _offline_in_cache(
    name: str, source: Source, wanted: Sequence[RemoteFile], cache: Path, revision: str | None
) -> Pulled:
    patterns = [file.path for file in wanted]
    lacking = patterns
    for snapshot in snapshots(cache, source.repo):
        if revision not in (None, "main", snapshot.name):
            continue
        files, lacking = _there(snapshot, patterns)
        if not lacking:
            return _offline(name, source, snapshot, files)
    raise _lacks("the cache", lacking, patterns, source.repo)


def _offline_in_folder(name: str, source: Source, wanted: Sequence[RemoteFile], folder: Path) -> Pulled:
    patterns = [file.path.removeprefix(_prefix(source)) for file in wanted]
    files, lacking = _there(folder, patterns)
    if lacking:
        raise _lacks("the folder", lacking, patterns, source.repo)
    return _offline(name, source, folder, files)


def _there(folder: Path, patterns: Sequence[str]) -> tuple[list[PulledFile], list[str]]:
    """The files in ``folder`` of these names, not verified, and the patterns that no file has."""
    here = {pattern: sorted(path for path in folder.glob(pattern) if path.is_file()) for pattern in patterns}
    files = [
        PulledFile(
            name=path.relative_to(folder).as_posix(), path=path, bytes=path.stat().st_size, sha256="", fetched=False
        )
        for path in chain.from_iterable(here.values())
    ]
    return files, [pattern for pattern, paths in here.items() if not paths]


def _offline(name: str, source: Source, folder: Path, files: Sequence[PulledFile]) -> Pulled:
    return Pulled(
        name=name, source=source.name, repo=source.repo, commit=None, folder=folder, files=tuple(files), offline=True
    )


def _lacks(where: str, lacking: Sequence[str], patterns: Sequence[str], repo: str) -> DownloadError:
    return DownloadError(
        f"HF_HUB_OFFLINE is set and {where} lacks {len(lacking)} of {len(patterns)} files of {repo}, first "
        f"{lacking[0]!r}; unset it and pull again, or copy them from a machine that has them"
    )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Turn what the network, the hub and the disk can raise into DownloadError with a next step."""
    from huggingface_hub import errors

    network: type[Exception] = errors.HfHubHTTPError.__bases__[
        0
    ]  # httpx's or httpx2's HTTPError, as the version may be
    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(f"{repo} asks for consent on its page; give it there and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"{repo} has no such revision; leave --revision out or check its spelling") from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"the hub does not know {repo}, or wants a login: set HF_TOKEN, or check HF_ENDPOINT"
        ) from error
    except errors.LocalEntryNotFoundError as error:  # what the hub's library makes of a network that is gone
        raise DownloadError(
            "the hub cannot be reached any more; what was fetched is kept: pull again to go on"
        ) from error
    except errors.EntryNotFoundError as error:
        raise DownloadError(f"{repo} lists a file that it does not give; try again later") from error
    except errors.HfHubHTTPError as error:
        raise DownloadError(_answered(error.response.status_code, repo)) from error
    except network as error:
        raise DownloadError(
            f"the hub cannot be reached ({type(error).__name__}); check the network and HF_ENDPOINT. "
            "What was fetched is kept: pull again to go on"
        ) from error
    except OSError as error:
        raise _disk_error(error) from error


def _answered(status: int, repo: str) -> str:
    if status in (401, 403):
        return f"the hub refuses {repo} to this user ({status}); set HF_TOKEN to a token that may read it"
    if status == 404:
        return f"the hub does not know {repo} (404); check HF_ENDPOINT"
    return f"the hub answered {status} for {repo}; what was fetched is kept, so pull again in a while"


def _disk_error(error: OSError) -> DownloadError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskSpaceError("the disk became full; make room and pull again, it goes on where it stopped")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return DownloadError("the download folder may not be written to; set HF_HOME, or give --local-dir")
    reason = error.strerror or printable(" ".join(str(error).split()), 200)
    return DownloadError(f"the download stopped: {reason}. What was fetched is kept: pull again to go on")
