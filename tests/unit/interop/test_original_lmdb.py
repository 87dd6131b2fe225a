"""The import reads or repairs original CausVid LMDBs with every fault of their builder, or raises an error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from causvid.data.stores.latent_store import LatentStore, read_prompts
from causvid.data.videos.manifest import read_rows
from causvid.interop.original_lmdb import import_store, survey

Rows = NDArray[np.float32]
CLIP, PAIR = (3, 4, 2, 5), (4, 3, 4, 2, 5)
TIMES = (1000.0, 757.0, 522.0, 0.0)


def rows(count: int, shape: tuple[int, ...] = CLIP, seed: int = 0) -> Rows:
    return np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)


def release(folder: Path, files: Sequence[Mapping[str, Rows]]) -> Path:
    """Build an LMDB like the original CausVid script, which drops repeated prompts and stores the last file's shape.

    Args:
        folder: The folder to create.
        files: Mappings of prompts to arrays [1, ...], which the script concatenates along the first axis.
    """
    seen: set[str] = set()
    counter = 0
    shape: tuple[int, ...] = ()
    with lmdb.open(str(folder), map_size=2**26) as env:
        for file in files:
            fresh = {prompt: value for prompt, value in file.items() if prompt not in seen}
            seen |= set(fresh)
            latents = np.concatenate([*fresh.values()]).astype(np.float16) if fresh else np.array([], np.float16)
            with env.begin(write=True) as transaction:
                for prompt, row in zip(fresh, latents, strict=True):
                    transaction.put(f"latents_{counter}_data".encode(), row.tobytes())
                    transaction.put(f"prompts_{counter}_data".encode(), prompt.encode())
                    counter += 1
            shape = latents.shape
        with env.begin(write=True) as transaction:
            transaction.put(b"latents_shape", " ".join(map(str, (counter, *shape[1:]))).encode())
            transaction.put(b"prompts_shape", str(counter).encode())
    return folder


def files(count: int, shape: tuple[int, ...] = CLIP) -> list[dict[str, Rows]]:
    return [{f"prompt {i} é": row[None]} for i, row in enumerate(rows(count, shape))]


def edit(folder: Path, changes: Mapping[str, bytes | None]) -> None:
    """Set each key to its value, or delete a key whose value is None."""
    with lmdb.open(str(folder), map_size=2**26) as env, env.begin(write=True) as transaction:
        for key, value in changes.items():
            assert transaction.delete(key.encode()) if value is None else transaction.put(key.encode(), value)


def codes(folder: Path, **changes: Any) -> list[tuple[str, bool]]:
    return [(finding.code, finding.repairable) for finding in survey(folder, **changes).findings]


def imported(source: Path, target: Path, **changes: Any) -> list[tuple[str, Rows]]:
    """Import an LMDB, and return the prompt and the row [F, C, H, W] of each record."""
    import_store(source, target, **changes)
    store = LatentStore(target)
    records = [store[index] for index in range(len(store))]
    return [(record.prompt, np.ascontiguousarray(record.latents.transpose(-4, -3).numpy())) for record in records]


def expected(inputs: Sequence[Mapping[str, Rows]]) -> list[tuple[str, Rows]]:
    return [(prompt, row[0].astype(np.float16).astype(np.float32)) for file in inputs for prompt, row in file.items()]


def same(found: Sequence[tuple[str, Rows]], wanted: Sequence[tuple[str, Rows]]) -> bool:
    return [p for p, _ in found] == [p for p, _ in wanted] and all(
        np.array_equal(a, b) for (_, a), (_, b) in zip(found, wanted, strict=True)
    )


@pytest.mark.parametrize(("shape", "times"), [(CLIP, None), (PAIR, TIMES)])
def test_a_valid_lmdb_is_imported_bit_for_bit(tmp_path: Path, shape: tuple[int, ...], times: Any) -> None:
    source = release(tmp_path / "theirs", files(12, shape))
    assert survey(source).findings == ()
    assert same(imported(source, tmp_path / "ours", timesteps=times), expected(files(12, shape)))
    assert LatentStore(tmp_path / "ours").metadata["timesteps"] == (list(times) if times else None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "theirs"]


def test_the_original_causvid_reader_can_read_an_lmdb_of_this_project(tmp_path: Path) -> None:
    """The original CausVid reader gets row count and shape from latents_shape, and reshapes float16 bytes."""
    import_store(release(tmp_path / "theirs", files(3)), tmp_path / "ours")
    with lmdb.open(str(tmp_path / "ours"), readonly=True, lock=False) as env, env.begin() as transaction:
        count, *shape = map(int, transaction.get(b"latents_shape").decode().split())
        row = np.frombuffer(transaction.get(b"latents_2_data"), np.float16).reshape(shape)
        assert (count, transaction.get(b"prompts_2_data").decode()) == (3, "prompt 2 é")
    assert np.array_equal(row, rows(3)[2].astype(np.float16))


def test_an_lmdb_without_a_shape_is_imported_with_row_shape(tmp_path: Path) -> None:
    inputs = files(3)
    source = release(tmp_path / "theirs", [*inputs, {"prompt 1 é": rows(1, seed=9)}])
    with pytest.raises(
        ValueError, match=r"does not contain the shape .*'3', a count without a shape.* 240 bytes .*--row-shape"
    ):
        survey(source)
    assert codes(source, row_shape=CLIP) == [("count_only", True)]
    assert same(imported(source, tmp_path / "ours", row_shape=CLIP), expected(inputs))


def test_rows_with_sizes_of_original_causvid_lmdbs_need_no_shape(tmp_path: Path) -> None:
    shape = (21, 16, 60, 104)
    with lmdb.open(str(tmp_path / "theirs"), map_size=2**26) as env, env.begin(write=True) as transaction:
        transaction.put(b"latents_0_data", np.zeros(shape, np.float16).tobytes())
        transaction.put(b"prompts_0_data", b"x")
        transaction.put(b"latents_shape", b"1")
    found = survey(tmp_path / "theirs")
    assert (found.row_shape, [f.code for f in found.findings]) == (shape, ["count_only"])


def test_rows_of_an_earlier_build_are_skipped(tmp_path: Path) -> None:
    source = release(tmp_path / "theirs", files(5))
    release(source, files(2))
    assert codes(source) == [("stale_rows", True)]
    assert same(imported(source, tmp_path / "ours"), expected(files(2)))


def test_complete_rows_of_an_interrupted_build_are_imported(tmp_path: Path) -> None:
    source = release(tmp_path / "theirs", files(4))
    edit(source, {"latents_shape": None})
    assert codes(source, row_shape=CLIP) == [("no_shape", True)]
    edit(source, {"latents_shape": b"6 3 4 2 5", "latents_1_data": None, "prompts_1_data": None})
    assert codes(source) == [("missing_rows", True)]
    wanted = [row for row in expected(files(4)) if row[0] != "prompt 1 é"]
    assert same(imported(source, tmp_path / "ours"), wanted)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts_2_data": None}, "row 2 has latents but no prompt"),
        ({"latents_2_data": None}, "row 2 has a prompt but no latents"),
        ({"latents_1_data": bytes(238)}, r"row 1 has 238 bytes; the shape \(3, 4, 2, 5\) in float16 has 240"),
        ({f"prompts_{i}_data": b"\xff\xfe" for i in range(4)}, "there is no valid row"),
        ({"latents_3_data": np.full(CLIP, np.inf, np.float16).tobytes()}, "row 3 has values that are not finite"),
        ({"latents_shape": b"4 3 4 2 6"}, "row 0 has 240 bytes"),
        ({"latents_shape": b"4 240"}, r"the shape of a row is \(240,\); expected F,C,H,W or T,F,C,H,W"),
        ({"latents_shape": b"4 0 4 2 5"}, "expected F,C,H,W"),
        ({"latents_shape": b"0 3 4 2 5"}, "there is no valid row"),
        ({"latents_shape": b"four"}, "latents_shape is 'four'.*pass --row-shape"),
    ],
)
def test_a_fault_that_cannot_be_repaired_raises_a_descriptive_error(
    tmp_path: Path, changes: dict[str, bytes | None], message: str
) -> None:
    source = release(tmp_path / "theirs", files(4))
    edit(source, changes)
    with pytest.raises(ValueError, match=message) as error:
        import_store(source, tmp_path / "ours")
    assert str(source) in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("index", "prompt", "reason"),
    [
        (0, b"\xff\xfe", "byte 0xFF in line 1"),
        (1, "ein Café am Meer".encode("latin-1"), "byte 0xE9 in line 1"),
        (2, "海辺の\nカフェ".encode("euc-jp"), "byte 0xB3 in line 1"),
        (3, b"half \xed\xa0\xbd of a pair", "byte 0xED in line 1"),
    ],
)
def test_a_row_whose_prompt_is_not_utf8_is_rejected_with_a_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], index: int, prompt: bytes, reason: str
) -> None:
    source = release(tmp_path / "theirs", files(4))
    edit(source, {f"prompts_{index}_data": prompt})
    assert codes(source) == [("prompt", True)]
    wanted = [row for k, row in enumerate(expected(files(4))) if k != index]
    assert same(imported(source, tmp_path / "ours"), wanted)
    (row,) = read_rows(tmp_path / "ours" / "rejected.jsonl")
    assert (row["id"], row["code"]) == (str(index), "not_utf8")
    assert reason in row["reason"]
    assert f"theirs: row {index} is left out: its prompt is not a UTF-8 text" in capsys.readouterr().err
    # read_prompts returns prompts of importable rows only, so the stage encodes no other prompt.
    assert read_prompts(source) == [text for text, _ in wanted] == read_prompts(tmp_path / "ours")
    assert f"row {index} is left out" in capsys.readouterr().err


def test_without_rejected_rows_no_list_is_written(tmp_path: Path) -> None:
    import_store(release(tmp_path / "theirs", files(2)), tmp_path / "ours")
    assert [path.name for path in (tmp_path / "ours").iterdir()] == ["data.mdb"]


def test_ode_pairs_need_timesteps_and_clips_must_not_have_any(tmp_path: Path) -> None:
    clips, pairs = release(tmp_path / "clips", files(2)), release(tmp_path / "pairs", files(2, PAIR))
    with pytest.raises(ValueError, match="are clips and have no timesteps"):
        import_store(clips, tmp_path / "ours", timesteps=TIMES)
    for times in (None, TIMES[:3]):
        with pytest.raises(ValueError, match="have 4 states and need 4 timesteps"):
            import_store(pairs, tmp_path / "ours", timesteps=times)
    rising, equal, beyond = (0.0, 522.0, 757.0, 1000.0), (1000.0, 757.0, 757.0, 0.0), (1001.0, 757.0, 522.0, 0.0)
    for wrong in (rising, equal, beyond, (float("nan"), 3.0, 2.0, 1.0)):
        with pytest.raises(ValueError, match="it must decrease strictly"):
            import_store(pairs, tmp_path / "ours", timesteps=wrong)
    with pytest.raises(ValueError, match=r"row_shape is \(3, 4, 5, 2\), but the shape in .* is \(3, 4, 2, 5\)"):
        import_store(clips, tmp_path / "ours", row_shape=(3, 4, 5, 2))
    (tmp_path / "ours").mkdir()
    with pytest.raises(FileExistsError, match="ours exists"):
        import_store(clips, tmp_path / "ours")


def test_a_folder_without_an_original_causvid_lmdb_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no data.mdb"):
        survey(tmp_path / "nothing")
    with lmdb.open(str(tmp_path / "other")) as env, env.begin(write=True) as transaction:
        transaction.put(b"image-000", b"x")
    with pytest.raises(ValueError, match="no key latents_0_data"):
        survey(tmp_path / "other")


def test_a_damaged_page_is_an_error(tmp_path: Path) -> None:
    source = release(tmp_path / "theirs", files(40))
    size = (source / "data.mdb").stat().st_size
    with (source / "data.mdb").open("r+b") as file:  # overwrite the headers of all pages except the two metadata pages
        for page in range(2 * 4096, size, 4096):
            file.seek(page)
            file.write(b"\xff" * 16)
    with pytest.raises(ValueError, match="theirs is damaged"):
        survey(source)


def test_the_commands_check_and_import(tmp_path: Path) -> None:
    source = release(tmp_path / "theirs", [*files(3, PAIR), files(1, PAIR)[0]])

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "causvid.interop.original_lmdb", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    shape = ("--row-shape", "4,3,4,2,5")
    looked = run("check", str(source), *shape)
    assert (looked.returncode, looked.stderr) == (0, "")
    assert "3 rows of T,F,C,H,W = (4, 3, 4, 2, 5)" in looked.stdout
    assert "repaired by import: latents_shape is '3', a count without a shape" in looked.stdout
    done = run("import", str(source), str(tmp_path / "ours"), *shape, "--timesteps", "1000,757,522,0")
    assert done.returncode == 0, done.stderr
    LatentStore(tmp_path / "ours").require_timesteps([1000, 756.757, 521.739, 0], 0.5)
    for arguments, words in [
        ((), "does not contain the shape"),
        (("--row-shape", "4,x"), "'4,x' is not a list of numbers"),
    ]:
        refused = run("check", str(source), *arguments)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert words in refused.stderr


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_lmdb_raises_an_error_or_gives_the_right_rows(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The damage is a truncation at any byte, or one key that is removed, renamed or changed in value."""
    folder = tmp_path_factory.mktemp("fuzz")
    inputs = files(3)
    source = release(folder / "theirs", inputs)
    wanted = expected(inputs)
    (source / "lock.mdb").unlink()
    names = [f"{kind}_{i}_data" for kind in ("latents", "prompts") for i in range(3)] + ["latents_shape"]
    kind = data.draw(st.sampled_from(["cut", "drop", "rename", "value"]))
    # Without checksums, a wrong value of the right size under a valid key cannot be detected.
    hidden = kind == "value"
    if kind == "cut":
        size = (source / "data.mdb").stat().st_size
        with (source / "data.mdb").open("r+b") as file:
            file.truncate(data.draw(st.integers(0, size)))
    else:
        key = data.draw(st.sampled_from(names))
        with lmdb.open(str(source), map_size=2**26) as env, env.begin(write=True) as transaction:
            old = transaction.pop(key.encode())
            if kind == "rename":
                others = st.sampled_from([*names, "latents_7_data"])
                name = data.draw(st.one_of(others, st.text(min_size=1, max_size=9)))
                hidden = name in names
                transaction.put(name.encode(), old)
            if kind == "value":
                transaction.put(key.encode(), data.draw(st.binary(max_size=300)))
    try:
        found = imported(source, folder / "ours")
    except ValueError as error:
        refusal = str(error)
        assert str(source) in refusal
    else:
        assert all(row.shape == CLIP for _, row in found)
        assert hidden or all(any(same([row], [right]) for right in wanted) for row in found)
    finally:
        shutil.rmtree(folder)
