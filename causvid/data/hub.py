"""Download files of one commit on the Hugging Face Hub, and compare the files with the checksums that the hub lists.

After a temporary failure (a lost connection, status 429 or 5xx, a page of text instead of the file, a flipped bit), the
request is repeated after a pause. The pauses become longer. The client of the hub compares only the sizes of files, and
restarts a download in every process; this module requests only the missing bytes.

``python -m causvid.data.hub REPO 'FOLDER/*' --out FOLDER`` downloads files of a model repository, such as checkpoints
of the original CausVid code. With ``--dataset``, the command downloads files of a data set, such as LMDBs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import httpx2
import typer
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    get_session,
    hf_raise_for_status,
)
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from causvid.harness.progress import meter

Result = TypeVar("Result")
ATTEMPTS = 8  # largest number of attempts of a request; counted again from 1 after a download has received new bytes
LONGEST_PAUSE = 120.0  # longest pause between two attempts in seconds, even if the hub asks for a longer pause
SILENCE = 60.0  # seconds without data after which a connection counts as lost
PASSING = {408, 425, 429}  # status codes of temporary failures; all 5xx status codes are temporary failures too


class Damaged(Exception):
    """A downloaded file differs from the size or the checksum that the hub lists."""


@dataclass(frozen=True, kw_only=True)
class HubCommit:
    """One commit of a repository on the hub.

    Attributes:
        repo: Name of the repository, owner/name.
        kind: Kind of the repository.
        commit: Hash of the commit.
        folder: Local folder. A file is downloaded to ``<folder>/<commit>/<path in the repository>``.
    """

    repo: str
    kind: Literal["dataset", "model"]
    commit: str
    folder: Path

    def files(self, pattern: str) -> list[RepoFile]:
        """Return the sorted files that match ``pattern``, such as folder/*.tar. Folder names cannot have wildcards."""
        parent, wanted = PurePosixPath(pattern).parent, PurePosixPath(pattern).name
        try:
            tree = insist(
                lambda: list(
                    HfApi().list_repo_tree(
                        self.repo,
                        None if parent == PurePosixPath() else parent.as_posix(),
                        revision=self.commit,
                        repo_type=self.kind,
                    )
                ),
                f"the list of {self.repo}/{parent}",
            )
        except EntryNotFoundError:  # a missing folder has no files
            return []
        files = {PurePosixPath(entry.path): entry for entry in tree if isinstance(entry, RepoFile)}
        # Entries with another parent are ignored, so that a listing cannot lead out of the folder.
        inside = sorted(path for path in files if path.parent == parent and fnmatchcase(path.name, wanted))
        return [files[path] for path in inside]

    def fetch(self, file: RepoFile) -> Path:
        """Download a file and return its local path.

        A complete file is not downloaded again. An interrupted download continues after the last byte on disk.

        Raises:
            ValueError: Every attempt failed or returned a file that differs from the listing, or the hub refused the
                request.
        """
        path = self.folder / self.commit / file.path
        if not path.is_file():
            part = path.with_name(path.name + ".part")
            part.parent.mkdir(parents=True, exist_ok=True)
            # A lost connection that delivered new bytes is not a failure: the next request asks for the rest. A server
            # that ignores the requested range delivers the same bytes again, which is no progress.
            most = 0
            try:
                while size := insist(partial(self._get, file, part, most), file.path):
                    most = size
            except HfHubHTTPError as error:
                raise ValueError(f"{file.path}: {_line(error)}; check the access to {self.repo}") from error
            os.replace(part, path)
        return path

    def _get(self, file: RepoFile, part: Path, most: int) -> int:
        """Download the missing bytes of ``part``.

        Args:
            file: The file in the listing.
            part: The bytes that were downloaded so far.
            most: Number of bytes after earlier requests.

        Returns:
            The number of bytes if the connection was lost after more than ``most`` bytes; 0 if the file is complete.

        Raises:
            Damaged: The content differs from the listing; ``part`` was deleted.
        """
        held = part.stat().st_size if part.is_file() else 0
        if held < file.size or not part.is_file():
            url = hf_hub_url(self.repo, file.path, repo_type=self.kind, revision=self.commit, endpoint=HfApi().endpoint)
            headers = build_hf_headers() | {"Accept-Encoding": "identity"}
            if held:
                headers["Range"] = f"bytes={held}-"
            with get_session().stream("GET", url, headers=headers, timeout=SILENCE) as response:
                hf_raise_for_status(response)
                if response.status_code != httpx2.codes.PARTIAL_CONTENT:
                    held = 0
                try:
                    _append(response, part, held, file)
                except httpx2.TransportError:
                    if (size := part.stat().st_size) > most:
                        return size
                    raise
        if reason := _difference(part, file):
            part.unlink()
            raise Damaged(f"the downloaded file is damaged ({reason})")
        return 0


def open_commit(repo: str, revision: str, *, kind: Literal["dataset", "model"], folder: Path) -> HubCommit:
    """Resolve a revision to the commit to which the revision refers now.

    Args:
        repo: Name of the repository, owner/name.
        revision: A commit, branch or tag.
        kind: Kind of the repository.
        folder: Local folder for downloads.

    Raises:
        ValueError: The repository or the revision does not exist, or the user has no access.
    """
    try:
        info = insist(lambda: HfApi().repo_info(repo, revision=revision, repo_type=kind), f"{kind} {repo}")
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{kind} {repo} (revision {revision}) does not exist on the hub, or you have no access to it: {reason}"
        ) from error
    return HubCommit(repo=repo, kind=kind, commit=str(info.sha), folder=folder)


def insist(request: Callable[[], Result], what: str) -> Result:
    """Call ``request``, and repeat the call after a pause if the failure is temporary.

    Args:
        request: A function that sends one request.
        what: Name of the request, for messages on stderr.

    Returns:
        The result of ``request``.

    Raises:
        ValueError: ``ATTEMPTS`` calls failed temporarily.
        Exception: The failure is not temporary. The call is not repeated.
    """

    def say(state: RetryCallState) -> None:
        assert state.outcome is not None
        pause = state.next_action.sleep if state.next_action else 0
        reason = _line(state.outcome.exception())
        sys.stderr.write(f"{what}: {reason}; attempt {state.attempt_number + 1} of {ATTEMPTS} in {pause:.0f} s\n")

    again, enough = retry_if_exception(_passes), stop_after_attempt(ATTEMPTS)
    try:
        return Retrying(retry=again, wait=_pause, stop=enough, before_sleep=say, reraise=True)(request)
    except Exception as error:
        if not _passes(error):
            raise
        raise ValueError(
            f"{what}: gave up after {ATTEMPTS} attempts ({_line(error)}); run the same command again later"
        ) from error


def _passes(error: BaseException) -> bool:
    """Return whether a failure is temporary."""
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in PASSING or status >= 500
    # A ValueError means that the response is not JSON: it is an error page of a proxy or of the hub.
    return isinstance(error, (httpx2.TransportError, httpx2.DecodingError, Damaged, ValueError)) and not isinstance(
        error, HFValidationError
    )


_backoff = wait_random_exponential(multiplier=1, max=LONGEST_PAUSE)


def _pause(state: RetryCallState) -> float:
    """Return the pause in seconds: Retry-After of the response, or a random number that grows with the attempts."""
    error: Any = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), LONGEST_PAUSE) if asked.isdigit() else _backoff(state)


def _line(error: BaseException | None) -> str:
    """Return the first line of an error's message, or the type of the error if the message is empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _append(response: httpx2.Response, part: Path, held: int, file: RepoFile) -> None:
    """Write the body of ``response`` into ``part``, after the first ``held`` bytes."""
    with (
        part.open("r+b" if held else "wb") as stream,
        meter(total=file.size, what=file.path, initial=held, unit="B") as done,
    ):
        stream.seek(held)
        for chunk in response.iter_bytes():
            stream.write(chunk)
            done.update(len(chunk))
            if stream.tell() > file.size:
                break
        stream.flush()
        os.fsync(stream.fileno())


def _difference(path: Path, file: RepoFile) -> str:
    """Return the difference between ``path`` and the listing of ``file``; "" if there is no difference.

    The hub lists the sha256 of LFS files, and git's blob sha1 of all other files.
    """
    if path.stat().st_size != file.size:
        return f"{path.stat().st_size} bytes, not {file.size}"
    wanted = file.lfs.sha256 if file.lfs is not None else file.blob_id
    digest = hashlib.sha256() if file.lfs is not None else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return "" if digest.hexdigest() == wanted else f"checksum {digest.hexdigest()}, not {wanted}"


def main(
    repo: Annotated[str, typer.Argument(help="repository on the hub, owner/name")],
    pattern: Annotated[str, typer.Argument(help="files to download, such as folder/*")],
    out: Annotated[Path, typer.Option(help="folder to create; created when all files are complete")],
    revision: Annotated[str, typer.Option(help="commit, branch or tag")] = "main",
    dataset: Annotated[bool, typer.Option("--dataset", help="the repository is a data set, not a model")] = False,
) -> None:
    """Download files of a repository and verify their checksums. Run the command again after an interruption."""
    if out.exists():
        sys.exit(f"--out is {out}, which exists; remove it, or name another folder")
    place = out.with_name(f"{out.name}.fetching")
    try:
        source = open_commit(repo, revision, kind="dataset" if dataset else "model", folder=place)
        files = source.files(pattern)
        if not files:
            raise ValueError(f"{repo} has no file that matches {pattern}; check the pattern")
        fetched = [source.fetch(file) for file in files]
    except ValueError as error:
        sys.exit(str(error))
    for path in [path for path in fetched[0].parent.iterdir() if path not in fetched]:
        # An interrupted command with another pattern may have downloaded other files.
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.replace(fetched[0].parent, out)
    shutil.rmtree(place)
    print(f"downloaded {len(files)} files of {repo} at commit {source.commit} to {out}")


if __name__ == "__main__":
    typer.run(main)
