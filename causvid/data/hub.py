"""Files of one commit on the Hugging Face Hub; a file is there when its content has the sum that the hub lists.

What passes by itself (a cut connection, 429, 5xx, a page of text in the place of bytes, a flipped bit) is tried again
after growing pauses. The hub's own client compares sizes only and begins a file anew in every process; here the rest is
asked for.

``python -m causvid.data.hub REPO 'FOLDER/*' --out FOLDER`` fetches files of a model repository (``--dataset``: of a
data set), such as the released LMDBs and checkpoints.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
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
ATTEMPTS = 8  # of one request; a file that grows on the way starts to count anew
LONGEST_PAUSE = 120.0  # seconds between two of them, whatever the hub asks for
SILENCE = 60.0  # seconds without a byte after which a connection counts as cut
PASSING = {408, 425, 429}  # HTTP states besides 5xx that ask to come again


class Damaged(Exception):
    """What arrived is not what the hub lists."""


@dataclass(frozen=True, kw_only=True)
class HubCommit:
    """One commit of a repository on the hub, and the local folder its files are fetched into."""

    repo: str
    kind: Literal["dataset", "model"]
    commit: str
    folder: Path

    def files(self, pattern: str) -> list[RepoFile]:
        """The files whose path matches ``pattern``, as folder/*.tar, sorted; * matches within one folder only."""
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
        except EntryNotFoundError:  # no such folder: no such files
            return []
        files = {PurePosixPath(entry.path): entry for entry in tree if isinstance(entry, RepoFile)}
        # Nor does a listing lead out of the folder, whatever it says.
        inside = sorted(path for path in files if path.parent == parent and fnmatchcase(path.name, wanted))
        return [files[path] for path in inside]

    def fetch(self, file: RepoFile) -> Path:
        """Download a file unless it is here, going on where an earlier process stopped.

        Raises ValueError when what arrives is never what the hub lists.
        """
        path = self.folder / self.commit / file.path
        if not path.is_file():
            part = path.with_name(path.name + ".part")
            part.parent.mkdir(parents=True, exist_ok=True)
            # A connection that brought something new before it was cut has not failed: that ends by itself.
            while not insist(lambda: self._get(file, part), file.path):
                continue
            os.replace(part, path)
        return path

    def _get(self, file: RepoFile, part: Path) -> bool:
        """Bring ``part`` nearer to the whole file; whether it is that now. Raises Damaged, with nothing left of it."""
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
                    if part.stat().st_size > held:
                        return False
                    raise
        if reason := _difference(part, file):
            part.unlink()
            raise Damaged(f"it arrived damaged ({reason})")
        return True


def open_commit(repo: str, revision: str, *, kind: Literal["dataset", "model"], folder: Path) -> HubCommit:
    """The commit that ``revision`` (a commit, branch or tag) is now. Raises ValueError when there is none."""
    try:
        info = insist(lambda: HfApi().repo_info(repo, revision=revision, repo_type=kind), f"{kind} {repo}")
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{kind} {repo} (revision {revision}) is not on the hub, or not for you: {reason}") from error
    return HubCommit(repo=repo, kind=kind, commit=str(info.sha), folder=folder)


def insist(request: Callable[[], Result], what: str) -> Result:
    """``request()``, again after a pause while its failure is one that passes; ``what`` names it on stderr.

    Raises ValueError when that does not end, and what does not pass as it is.
    """

    def say(state: RetryCallState) -> None:
        assert state.outcome is not None
        pause = state.next_action.sleep if state.next_action else 0
        reason = _line(state.outcome.exception())
        sys.stderr.write(f"{what}: {reason}; try {state.attempt_number + 1} of {ATTEMPTS} in {pause:.0f} s\n")

    again, enough = retry_if_exception(_passes), stop_after_attempt(ATTEMPTS)
    try:
        return Retrying(retry=again, wait=_pause, stop=enough, before_sleep=say, reraise=True)(request)
    except Exception as error:
        if not _passes(error):
            raise
        raise ValueError(
            f"{what}: gave up after {ATTEMPTS} tries ({_line(error)}); run the same command again later"
        ) from error


def _passes(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return status in PASSING or status >= 500
    # A page of text where JSON should be: a proxy's, or the hub's own in a bad hour.
    return isinstance(error, (httpx2.TransportError, httpx2.DecodingError, Damaged, ValueError)) and not isinstance(
        error, HFValidationError
    )


_backoff = wait_random_exponential(multiplier=1, max=LONGEST_PAUSE)


def _pause(state: RetryCallState) -> float:
    error: Any = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return min(float(asked), LONGEST_PAUSE) if asked.isdigit() else _backoff(state)


def _line(error: BaseException | None) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _append(response: httpx2.Response, part: Path, held: int, file: RepoFile) -> None:
    """Write what comes behind the first ``held`` bytes of ``part``."""
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
    """What is wrong with the content of ``path``; nothing when it is right. LFS lists sha256, git its own sha1."""
    if path.stat().st_size != file.size:
        return f"{path.stat().st_size} bytes, not {file.size}"
    wanted = file.lfs.sha256 if file.lfs is not None else file.blob_id
    digest = hashlib.sha256() if file.lfs is not None else hashlib.sha1(b"blob %d\0" % file.size)
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return "" if digest.hexdigest() == wanted else f"sum {digest.hexdigest()}, not {wanted}"


def main(
    repo: Annotated[str, typer.Argument(help="repository on the hub, owner/name")],
    pattern: Annotated[str, typer.Argument(help="which files, as folder/*")],
    out: Annotated[Path, typer.Option(help="folder to make; there when it is whole")],
    revision: Annotated[str, typer.Option(help="commit, branch or tag")] = "main",
    dataset: Annotated[bool, typer.Option("--dataset", help="the repository is a data set, not a model")] = False,
) -> None:
    """Fetch files of a repository into a folder, each with the sum the hub lists; stopped, the same command goes on."""
    if out.exists():
        sys.exit(f"--out is {out}; it exists: take it away, or name another folder")
    place = out.with_name(f"{out.name}.fetching")
    try:
        source = open_commit(repo, revision, kind="dataset" if dataset else "model", folder=place)
        files = source.files(pattern)
        if not files:
            raise ValueError(f"{repo} has no file {pattern}")
        fetched = [source.fetch(file) for file in files]
    except ValueError as error:
        sys.exit(str(error))
    for path in [path for path in fetched[0].parent.iterdir() if path not in fetched]:
        # Left by an earlier command with another pattern.
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.replace(fetched[0].parent, out)
    shutil.rmtree(place)
    print(f"{len(files)} files of {repo} at commit {source.commit} in {out}")


if __name__ == "__main__":
    typer.run(main)
