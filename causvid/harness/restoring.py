"""Put the previous outputs of stages back from DVC's cache, by the checksums in dvc.lock.

The command ``dvc checkout`` cannot do this in a stage, because the dvc that runs the stage has locked the outputs.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dvc.lock import LockError
from dvc.repo import Repo
from dvc.rwlock import rwlock
from dvc.stage.exceptions import StageFileDoesNotExistError, StageNotFound
from dvc_data.hashfile.checkout import CheckoutError, checkout

from causvid.harness.outputs import NOT_IN_PLACE, Guarded, die_with
from causvid.runtime import files

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.stage import Stage

TEMPORARY = Path(".dvc", "tmp", "restoring")


def restore(guarded: Guarded) -> str:
    """Put the previous outputs of a stage back if at least one of its outputs is missing.

    The process of the stage must wait for this call, because its dvc has locked the outputs.

    Returns:
        A sentence about the outputs; empty if there was nothing to put back.
    """
    with _opened(guarded.root) as repo:
        with repo.lock:  # another dvc may be writing dvc.lock
            stage = _load(repo, guarded)
        said = _restore(stage, guarded)
    guarded.mark.unlink(missing_ok=True)
    return said


def restore_killed(root: Path, killed: Sequence[Guarded]) -> Iterator[str]:
    """Put the previous outputs of the stages ``killed`` back, except of stages that another dvc is running.

    Yields:
        A sentence for each stage whose outputs were put back, or cannot be put back now.
    """
    with _opened(root) as repo:
        for guarded in killed:
            try:
                with ExitStack() as held:
                    # DVC's lock of the project is held only for a moment: another dvc waits three seconds for it.
                    with repo.lock:
                        stage = _load(repo, guarded)
                        held.enter_context(_locked(stage))
                    if said := _restore(stage, guarded):
                        yield f"{guarded.name} was killed: {said}"
                    guarded.mark.unlink(missing_ok=True)
            except LockError:  # another dvc is running the stage
                continue
            except (StageNotFound, StageFileDoesNotExistError):  # the user has removed the stage from dvc.yaml
                guarded.mark.unlink(missing_ok=True)
            except Exception as error:  # for example a full disk, which the command that follows reports
                yield f"{guarded.name} was killed: {NOT_IN_PLACE} ({error.__cause__ or error})"


@contextmanager
def _opened(root: Path) -> Iterator[Repo]:
    logging.getLogger("dvc").setLevel(logging.CRITICAL)  # DVC warns about the locks of killed processes
    with Repo(str(root)) as repo:
        yield repo


def _load(repo: Repo, guarded: Guarded) -> Stage:
    return repo.stage.load_one(str(guarded.root / guarded.file), guarded.name)


def _locked(stage: Stage) -> Any:
    """Return a context in which this process has DVC's lock on the outputs. Entering it raises LockError."""
    repo, outs = stage.repo, [out.fs_path for out in stage.outs]
    hardlink = repo.config["core"].get("hardlink_lock", False)
    return rwlock(repo.tmp_dir, repo.fs, " ".join(sys.argv), [], outs, hardlink)


def _restore(stage: Stage, guarded: Guarded) -> str:
    """Replace all outputs of the stage by the previous outputs, if at least one output is missing.

    The outputs that the stage has published already are removed first. A process that is killed at any time therefore
    leaves either a missing output or the complete previous outputs, never a mixture of both.
    """
    outs = [out for out in stage.outs if not out.persist]  # DVC does not delete the others
    if all(os.path.lexists(out.fs_path) for out in outs):
        return ""
    temporary = guarded.root / TEMPORARY / guarded.mark.name
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        known = [out for out in outs if out.hash_info]
        found = [out for out in known if _check_out(out, temporary / quote(out.def_path, safe=""))]
        for out in outs if found else ():
            out.remove()
        for out in found:
            files.publish(temporary / quote(out.def_path, safe=""), Path(out.fs_path))
            _remember(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return _sentence(found, [out for out in known if out not in found])


def _check_out(out: Output, target: Path) -> bool:
    """Write an output to ``target``. Return False if DVC's cache does not contain it."""
    content = out.get_obj()
    if content is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    cache = out.cache
    kinds = cache.cache_types
    cache.cache_types = kinds if out.use_cache else ["copy"]  # as DVC's run cache does with files that belong to git
    try:
        checkout(str(target), out.fs, content, cache, force=True)
    except CheckoutError:
        return False
    finally:
        cache.cache_types = kinds
    return True


def _remember(out: Output) -> None:
    """Store the checksums in DVC's state, so that DVC does not read the files again."""
    content, state = out.get_obj(), out.repo.state
    entries = content.iteritems() if content.hash_info.isdir else [((), (None, content.hash_info))]
    state.save_many(((out.fs.join(out.fs_path, *key), digest, None) for key, (_, digest) in entries), out.fs)
    state.save_link(out.fs_path, out.fs)


def _sentence(found: Sequence[Output], lost: Sequence[Output]) -> str:
    if not found:
        return ""
    put = f"the previous {_names(found)} {'is' if len(found) == 1 else 'are'} in place again"
    missing = f"; DVC's cache does not contain {_names(lost)}" if lost else ""
    return f"{put}{missing}"


def _names(outs: Sequence[Output]) -> str:
    return " and ".join(os.path.relpath(out.fs_path, out.repo.root_dir) for out in outs)


def main(root: str, file: str, name: str, stage: str) -> None:
    """Put the outputs of the stage ``name`` back for the process ``stage``, and print a line on stderr."""
    die_with(int(stage))
    try:
        said = restore(Guarded(root=Path(root), file=Path(file), name=name))
    except Exception as error:  # the process of the stage ends with another error already
        said = f"{NOT_IN_PLACE} ({error.__cause__ or error})"
    if said:
        print(f"{name}: {said}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
