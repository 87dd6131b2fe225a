"""The LMDB of latents has exactly the layout of the original CausVid code, and every damage is detected."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import lmdb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from causvid.data.stores.latent_store import FILE, LatentStore, Record, read_prompts, write_store
from causvid.runtime.files import publish

# Python 3.12 warns about forks of processes with threads. The child processes of this file only read and exit.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

TIMES = [1000.0, 750.0, 0.0]


def records(count: int = 12, shape: tuple[int, ...] = (4, 3, 2, 2), seed: int = 0) -> list[Record]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator).half().float() for _ in range(count)]
    return [Record(latents, f"prompt number {index}") for index, latents in enumerate(drawn)]


PACKED = records(shape=(3, 4, 3, 2, 2))


def assert_same(store: LatentStore, expected: list[Record]) -> None:
    assert len(store) == len(expected)
    for index, record in enumerate(expected):
        assert torch.equal(store[index].latents, record.latents)
        assert store[index].prompt == record.prompt


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lmdb") / "pairs"
    write_store(PACKED, folder, timesteps=TIMES, per_transaction=5)
    return folder


@settings(max_examples=25)
@given(
    shape=st.tuples(*[st.integers(1, 4)] * 4) | st.tuples(*[st.integers(1, 3)] * 5),
    prompts=st.lists(st.text(max_size=20), min_size=1, max_size=6),
    per_transaction=st.integers(1, 4),
)
def test_records_are_read_as_they_were_written(
    shape: tuple[int, ...], prompts: list[str], per_transaction: int
) -> None:
    """Records with any shape and any prompts can be stored, including equal and empty prompts."""
    written = [record._replace(prompt=p) for record, p in zip(records(len(prompts), shape), prompts, strict=True)]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary) / "store"
        timesteps = [float(k) for k in range(shape[0])] if len(shape) == 5 else None
        metadata = write_store(written, folder, timesteps=timesteps, per_transaction=per_transaction)
        store = LatentStore(folder)
        assert_same(store, written)
        assert store.metadata == metadata
        assert metadata["timesteps"] == timesteps
        assert [p.name for p in Path(temporary).iterdir()] == ["store"]
        assert [p.name for p in folder.iterdir()] == [FILE]


def test_keys_and_bytes_are_those_of_the_original_causvid_code(tmp_path: Path) -> None:
    """Latents are raw float16 [F, C, H, W], prompts are UTF-8, and shapes are text that starts with the record count.

    Only the checksums are an addition of this project.
    """
    latents = torch.arange(4 * 3 * 2 * 2, dtype=torch.float32).view(4, 3, 2, 2)  # the layout in memory is [C, F, H, W]
    write_store([Record(latents, "a"), Record(latents + 1, "é")], tmp_path / "s", timesteps=None, per_transaction=9)
    with lmdb.open(str(tmp_path / "s"), readonly=True, lock=False) as env, env.begin() as transaction:
        found = {bytes(key).decode(): bytes(value) for key, value in transaction.cursor()}
    released = {f"{name}_{k}_data" for name in ("latents", "prompts") for k in (0, 1)} | {
        "latents_shape",
        "prompts_shape",
    }
    assert set(found) == released | {"latents_0_sha256", "latents_1_sha256", "metadata", "metadata_sha256"}
    assert found["latents_shape"] == b"2 3 4 2 2"
    assert found["prompts_shape"] == b"2"
    assert found["prompts_1_data"].decode() == "é"
    row = np.frombuffer(found["latents_0_data"], np.float16).reshape(3, 4, 2, 2)
    assert np.array_equal(row, latents.transpose(0, 1).numpy().astype(np.float16))


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_store(records(40), tmp_path / name, timesteps=None, per_transaction=7)
    assert (tmp_path / "a" / FILE).read_bytes() == (tmp_path / "b" / FILE).read_bytes()


def test_different_shapes_and_an_empty_store_are_refused(tmp_path: Path) -> None:
    mixed = [*records(2), *records(1, (4, 2, 2, 2))]
    with pytest.raises(
        ValueError, match=r"record 2 has shape \(2, 4, 2, 2\), but the records before have \(3, 4, 2, 2\)"
    ):
        write_store(mixed, tmp_path / "mixed", timesteps=None, per_transaction=2)
    with pytest.raises(ValueError, match="there are no records"):
        write_store([], tmp_path / "empty", timesteps=None, per_transaction=2)
    assert not (tmp_path / "mixed").exists()
    assert not (tmp_path / "empty").exists()


def test_timesteps_that_do_not_match_are_both_in_the_error(packed: Path, tmp_path: Path) -> None:
    store = LatentStore(packed)
    store.require_timesteps([1000, 750.4, 0], 0.5)
    for asked in ([1000, 751, 0], [1000, 0], [1000, 750, 500, 0]):
        with pytest.raises(ValueError, match=r"has states at timesteps \[1000.0, 750.0, 0.0\]") as error:
            store.require_timesteps(asked, 0.5)
        assert str(asked) in str(error.value)
    write_store(records(), tmp_path / "clips", timesteps=None, per_transaction=5)
    with pytest.raises(ValueError, match="has states at timesteps None, and the schedule needs"):
        LatentStore(tmp_path / "clips").require_timesteps([1000, 0], 0.5)


def test_a_store_can_be_used_in_other_processes(packed: Path) -> None:
    store = LatentStore(packed)
    expected = store[3]  # this process opens the store before the store is sent to other processes
    assert torch.equal(pickle.loads(pickle.dumps(store))[3].latents, expected.latents)
    assert verdicts_of([lambda: assert_same(store, PACKED)]) == ["fine"]
    assert torch.equal(store[3].latents, expected.latents)


def test_one_process_can_have_two_readers_of_one_store(packed: Path) -> None:
    first = LatentStore(packed)
    kept = first[0]
    assert torch.equal(LatentStore(packed)[0].latents, kept.latents)


def test_a_store_that_is_replaced_is_opened_again(tmp_path: Path) -> None:
    write_store(records(3, seed=1), tmp_path / "s", timesteps=None, per_transaction=5)
    assert_same(LatentStore(tmp_path / "s"), records(3, seed=1))
    write_store(records(5, seed=2), tmp_path / "new", timesteps=None, per_transaction=5)
    publish(tmp_path / "new", tmp_path / "s")
    assert_same(LatentStore(tmp_path / "s"), records(5, seed=2))


def verdicts_of(reads: Sequence[Callable[[], None]]) -> list[str]:
    """Call each function of ``reads`` in another process, and return one verdict per function.

    A verdict is 'fine', the text of the error, or the status with which the process died.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(writer, "w") as pipe:
            for read in reads:
                try:
                    read()
                    said = "fine"
                except Exception as error:
                    said = f"{type(error).__name__}: {error}"
                pipe.write(said.replace("\n", " ") + "\n")
                pipe.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return said if status == 0 else [*said, f"died with {status}"]


def mutants_of(folder: Path, variants: Iterable[bytes]) -> list[str]:
    """Write each variant of a store to a numbered folder in ``folder``, read the store, and return the verdicts."""

    def read(number: int, data: bytes) -> None:
        place = folder / str(number)
        place.mkdir()
        (place / FILE).write_bytes(data)
        assert_same(LatentStore(place), PACKED)

    return verdicts_of([lambda n=n, data=data: read(n, data) for n, data in enumerate(variants)])  # type: ignore[misc]


def test_a_truncated_file_is_refused_and_kills_no_process(packed: Path, tmp_path: Path) -> None:
    """A read beyond the end of a mapped file raises the signal SIGBUS, which kills the process without an exception."""
    whole = (packed / FILE).read_bytes()
    sizes = [0, 1, 4095, 4096, 5000, 8192, 8193, len(whole) // 2, len(whole) - 4096, len(whole) - 1]
    verdicts = mutants_of(tmp_path, [whole, *(whole[:size] for size in sizes)])
    assert verdicts[0] == "fine"
    for number, (size, said) in enumerate(zip(sizes, verdicts[1:], strict=True), start=1):
        assert said.startswith(f"ValueError: {tmp_path / str(number)}"), f"{size} bytes: {said}"


def flipped(whole: bytes, position: int, bit: int) -> bytes:
    changed = bytearray(whole)
    changed[position] ^= 1 << bit
    return bytes(changed)


def test_a_flipped_bit_in_any_used_byte_is_detected(packed: Path, tmp_path: Path) -> None:
    """Flip a bit in known records and in every 31st byte.

    The records must be unchanged, or a ValueError names the store.
    """
    whole = (packed / FILE).read_bytes()
    row = PACKED[5].latents.transpose(1, 2).half().numpy().tobytes()
    positions = [whole.find(b"prompt number 7") + 14, whole.find(b'{"count"') + 10, whole.find(row) + 3]
    positions += range(8192, len(whole), 31)
    verdicts = mutants_of(tmp_path, [flipped(whole, at, number % 8) for number, at in enumerate(positions)])
    assert "record 7 " in verdicts[0]
    assert "metadata" in verdicts[1]
    assert "record 5 " in verdicts[2]
    for number, (at, said) in enumerate(zip(positions, verdicts, strict=True)):
        assert said == "fine" or said.startswith(f"ValueError: {tmp_path / str(number)}"), f"byte {at}: {said}"


def test_a_folder_or_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"holds no {FILE}; run pack_lmdb"):
        LatentStore(tmp_path)
    (tmp_path / FILE).write_text("not an LMDB" * 1000)
    with pytest.raises(ValueError, match="is not a readable LMDB"):
        LatentStore(tmp_path)
    with lmdb.open(str(tmp_path / "foreign"), lock=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"latents_shape", b"1 2 3")
    with pytest.raises(ValueError, match=r"foreign.*metadata"):
        LatentStore(tmp_path / "foreign")


def test_prompts_of_rows_beyond_the_count_are_not_read(tmp_path: Path) -> None:
    """An original CausVid LMDB that was built twice into one folder has rows of the earlier build beyond its count."""
    with lmdb.open(str(tmp_path), map_size=2**20, lock=False) as env, env.begin(write=True) as transaction:
        for index in range(12):
            transaction.put(f"prompts_{index}_data".encode(), f"p{index}".encode())
        transaction.put(b"latents_shape", b"11 1 1 1 1")
    assert read_prompts(tmp_path) == [f"p{index}" for index in range(11)]


# --- Address space that LMDB needs


def write_with_one_map(
    written: Sequence[Record], folder: Path, *, timesteps: Sequence[float] | None = None, per_transaction: int
) -> bytes:
    """Return the compact copy of an LMDB whose map has a size of one terabyte from the start."""
    scratch = folder.with_name(f"{folder.name} scratch")
    scratch.mkdir()
    folder.mkdir()
    shape = list(written[0].latents.transpose(-4, -3).shape)
    with lmdb.open(str(scratch), map_size=2**40, lock=False) as env:
        for start in range(0, len(written), per_transaction):
            with env.begin(write=True) as transaction:
                for index, (latents, prompt) in enumerate(written[start : start + per_transaction], start=start):
                    data = latents.transpose(-4, -3).contiguous().half().numpy().tobytes()
                    digest = hashlib.sha256(data + prompt.encode()).hexdigest().encode()
                    transaction.put(f"latents_{index}_data".encode(), data)
                    transaction.put(f"latents_{index}_sha256".encode(), digest)
                    transaction.put(f"prompts_{index}_data".encode(), prompt.encode())
        with env.begin(write=True) as transaction:
            metadata = {"count": len(written), "shape": shape, "dtype": "float16", "timesteps": timesteps}
            packed = json.dumps(metadata, sort_keys=True).encode()
            transaction.put(b"latents_shape", " ".join(map(str, (len(written), *shape))).encode())
            transaction.put(b"prompts_shape", str(len(written)).encode())
            transaction.put(b"metadata", packed)
            transaction.put(b"metadata_sha256", hashlib.sha256(packed).hexdigest().encode())
        env.copy(str(folder), compact=True)
    return (folder / FILE).read_bytes()


@pytest.mark.parametrize(
    ("count", "shape", "per_transaction"),
    [
        (5, (4, 3, 2, 2), 2),  # a row has 96 bytes, so that one page holds several rows
        (300, (16, 5, 4, 4), 7),  # a row has 2560 bytes, so that each page holds one row and is half empty
        # a row has 1000 bytes: pages have gaps, and there are more pages than LMDB's write buffer holds
        (2500, (4, 5, 5, 5), 1),
        (60, (16, 9, 32, 32), 9),  # a row has 295 kB
        (9, (3, 16, 9, 64, 64), 1),  # a row has 3.5 MB, so that the map grows with every record
    ],
)
def test_a_growing_map_and_a_large_map_give_the_same_bytes(
    tmp_path: Path, count: int, shape: tuple[int, ...], per_transaction: int
) -> None:
    written, times = records(count, shape), TIMES if len(shape) == 5 else None
    write_store(written, tmp_path / "ours", timesteps=times, per_transaction=per_transaction)
    expected = write_with_one_map(written, tmp_path / "plain", timesteps=times, per_transaction=per_transaction)
    assert (tmp_path / "ours" / FILE).read_bytes() == expected
    assert_same(LatentStore(tmp_path / "ours"), written)


@settings(max_examples=30)
@given(
    count=st.integers(1, 60),
    shape=st.tuples(*[st.integers(1, 12)] * 4),
    prompts=st.lists(st.text(max_size=600), min_size=1, max_size=5),
    per_transaction=st.integers(1, 70),
)
def test_any_records_fit_into_the_map_and_keep_their_bytes(
    count: int, shape: tuple[int, ...], prompts: list[str], per_transaction: int
) -> None:
    written = [record._replace(prompt=prompts[k % len(prompts)]) for k, record in enumerate(records(count, shape))]
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_store(written, folder / "ours", timesteps=None, per_transaction=per_transaction)
        expected = write_with_one_map(written, folder / "plain", per_transaction=per_transaction)
        assert (folder / "ours" / FILE).read_bytes() == expected


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from causvid.data.stores.latent_store import LatentStore, Record, read_prompts, write_store

pages = int(Path("/proc/self/statm").read_text().split()[0])
room = int(sys.argv[1])
limit = room if room > 2**32 else pages * resource.getpagesize() + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
folder = Path(sys.argv[2])
made = (Record(torch.full((16, 9, 64, 64), k / 7), f"prompt {k}") for k in range(40))
try:
    write_store(made, folder, timesteps=None, per_transaction=4)
    store = LatentStore(folder)
    assert [store[k].prompt for k in range(40)] == read_prompts(folder) == [f"prompt {k}" for k in range(40)]
    print("fine")
except ValueError as error:
    print(error)
"""


def under_a_limit(room: int, folder: Path) -> str:
    """Write and read a store of 47 MB in a process with limited address space, and return the output of the process.

    ``room`` is the limit in bytes or, if ``room`` is below 4 GiB, the number of free bytes at the start.
    """
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(room), str(folder)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize("room", [2**28, 8 * 10**9, 64 * 10**9, 200 * 10**9])
def test_a_store_is_written_and_read_under_an_address_space_limit(tmp_path: Path, room: int) -> None:
    assert under_a_limit(room, tmp_path / "store") == "fine"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_limit_below_the_store_is_reported_and_a_second_try_succeeds(tmp_path: Path) -> None:
    said = under_a_limit(50 * 2**20, tmp_path / "store")
    assert "store has " in said
    assert "raise the limit on virtual memory (ulimit -v" in said
    assert list(tmp_path.iterdir()) == []
    assert under_a_limit(2**28, tmp_path / "store") == "fine"


READ = """
import resource, sys
from pathlib import Path
from causvid.data.stores.latent_store import open_store

limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + 16 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    open_store(Path(sys.argv[1]))
except ValueError as error:
    print(error)
"""


def test_a_reader_without_address_space_does_not_call_the_store_damaged(tmp_path: Path) -> None:
    write_store(records(40, (16, 9, 64, 64)), tmp_path / "s", timesteps=None, per_transaction=8)
    done = subprocess.run([sys.executable, "-c", READ, str(tmp_path / "s")], capture_output=True, text=True, check=True)
    assert (
        f"s/data.mdb has {(tmp_path / 's' / FILE).stat().st_size} bytes, and LMDB gets no address space" in done.stdout
    )
    assert "raise the limit on virtual memory" in done.stdout


def test_leftovers_of_a_killed_writer_do_not_stop_the_next_writer(tmp_path: Path) -> None:
    (tmp_path / "s.writing" / "compact").mkdir(parents=True)
    (tmp_path / "s.writing" / FILE).write_bytes(b"half")
    write_store(records(3), tmp_path / "s", timesteps=None, per_transaction=2)
    assert_same(LatentStore(tmp_path / "s"), records(3))
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_failure_leaves_nothing_and_a_finished_store_is_not_replaced(tmp_path: Path) -> None:
    def broken() -> Iterator[Record]:
        yield from records(3)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        write_store(broken(), tmp_path / "s", timesteps=None, per_transaction=2)
    assert list(tmp_path.iterdir()) == []
    write_store(records(3), tmp_path / "s", timesteps=None, per_transaction=2)
    with pytest.raises(FileExistsError, match="s exists; choose another folder or remove it"):
        write_store(records(5), tmp_path / "s", timesteps=None, per_transaction=2)
    assert_same(LatentStore(tmp_path / "s"), records(3))


# --- Text in stored prompts


@pytest.mark.parametrize("prompt", ["half \ud83d", "\udc00 the other half", "file \udce9 name"])
def test_a_prompt_that_utf8_cannot_hold_is_named_by_its_record(tmp_path: Path, prompt: str) -> None:
    written = records(3)
    written[1] = written[1]._replace(prompt=prompt)
    with pytest.raises(ValueError, match=r"the prompt of record 1 is .*UTF-8 cannot hold it; give it in UTF-8"):
        write_store(written, tmp_path / "s", timesteps=None, per_transaction=2)
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_that_is_not_utf8_is_damage_in_a_store_of_this_project(tmp_path: Path) -> None:
    write_store(records(3), tmp_path / "s", timesteps=None, per_transaction=2)
    with lmdb.open(str(tmp_path / "s"), lock=False) as env, env.begin(write=True) as transaction:
        transaction.put(b"prompts_1_data", b"caf\xe9")
    with pytest.raises(
        ValueError, match=r"s: record 1 is damaged \(its prompt is not a UTF-8 text .*; run pack_lmdb again"
    ):
        read_prompts(tmp_path / "s")
