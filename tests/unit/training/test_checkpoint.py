"""Test that training resumes from the newest undamaged checkpoint on disk."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from causvid.training.checkpoint import KEEP, MANIFEST, STATE, Writer, _entry, resume

MADE_FROM = {"params": "1", "code": "2", "data/checkpoints/teacher": "3", "data/prompts": "4"}


def module(value: float) -> torch.nn.Linear:
    linear = torch.nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.fill_(value)
    return linear


def writer(folder: Path, *, in_background: bool = False) -> Writer:
    return Writer(folder, MADE_FROM, keep_every=None, in_background=in_background)


def saved(folder: Path, *steps: int) -> None:
    for step in steps:
        writer(folder).save(step, {"net": module(step)}, [{"step": k, "loss": 0.1 * k} for k in range(step)])


def resumed(folder: Path) -> tuple[int, float, int]:
    """Resume, and return the restored step, the restored first weight and the length of the restored history."""
    net = module(-1.0)
    step, history = resume(folder, {"net": net}, MADE_FROM)
    return step, net.weight[0, 0].item(), len(history)


def test_a_background_save_writes_the_state_at_the_time_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file contains the weights at the time of the call, although the weights change while the file is written."""
    go, real = threading.Event(), torch.save
    monkeypatch.setattr(torch, "save", lambda state, path: go.wait(30) and real(state, path))
    net, ours = module(1.0), writer(tmp_path, in_background=True)
    ours.save(1, {"net": net}, [{"step": 0}])
    assert not (tmp_path / "step-0000001").exists()
    with torch.no_grad():
        net.weight.fill_(9.0)
    go.set()
    ours.wait()
    assert resumed(tmp_path) == (1, 1.0, 1)


def test_an_error_in_a_background_save_is_raised_by_the_next_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    ours = writer(tmp_path, in_background=True)
    ours.save(1, {"net": module(1.0)}, [])
    ours.wait()
    monkeypatch.setattr(torch, "save", full)
    ours.save(2, {"net": module(2.0)}, [])
    with pytest.raises(OSError, match="No space left"):
        ours.save(3, {"net": module(3.0)}, [])
    assert resumed(tmp_path)[0] == 1


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({**MADE_FROM, "data/checkpoints/teacher": "9"}, "other data/checkpoints/teacher than"),
        ({**MADE_FROM, "data/prompts": "9", "params": "9"}, "other data/prompts, params than"),
        ({**MADE_FROM, "data/lmdb": "9"}, "other data/lmdb than"),
        ({}, "other code, data/checkpoints/teacher, data/prompts, params than"),
    ],
)
def test_a_checkpoint_of_another_training_is_rejected(now: dict[str, str], named: str, tmp_path: Path) -> None:
    saved(tmp_path, 2)
    net = module(-1.0)
    with pytest.raises(ValueError, match=named):
        resume(tmp_path, {"net": net}, now)
    assert net.weight[0, 0] == -1.0
    assert resumed(tmp_path)[0] == 2


def test_without_checkpoints_training_starts_at_step_zero(tmp_path: Path) -> None:
    assert resumed(tmp_path / "none") == (0, -1.0, 0)


def test_the_newest_checkpoint_is_restored_and_old_checkpoints_are_deleted(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4, 10)
    assert resumed(tmp_path) == (10, 10.0, 10)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000004", "step-0000010"]
    assert KEEP == 2


def test_numbers_of_the_history_are_restored_bit_for_bit(tmp_path: Path) -> None:
    history = [{"step": 0, "loss": 0.1 + 0.2, "grad_norm": 1e-323}]
    writer(tmp_path).save(1, {"net": module(1)}, history)
    assert resume(tmp_path, {"net": module(0)}, MADE_FROM)[1] == history


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut state": (lambda p: cut(p / STATE), f"{STATE} has [0-9]+ bytes instead of [0-9]+"),
    "flipped bit": (lambda p: flip(p / STATE), f"{STATE} has another checksum"),
    "empty state": (lambda p: (p / STATE).write_bytes(b""), f"{STATE} has 0 bytes instead of [0-9]+"),
    "no state": (lambda p: (p / STATE).unlink(), f"no {STATE}"),
    "no manifest": (lambda p: (p / MANIFEST).unlink(), f"no {MANIFEST}"),
    "cut manifest": (lambda p: cut(p / MANIFEST), f"{MANIFEST} is not a valid manifest"),
    "flipped manifest": (lambda p: flip(p / MANIFEST), ".*"),
    "empty manifest": (lambda p: (p / MANIFEST).write_text(""), f"{MANIFEST} is not a valid manifest"),
    "a manifest that is not text": (
        lambda p: (p / MANIFEST).write_bytes(b"\xff\xfe\x00"),
        f"{MANIFEST} is not a valid manifest",
    ),
    "another manifest": (lambda p: (p / MANIFEST).write_text("[]"), f"{MANIFEST} is not a valid manifest"),
    "a manifest without files": (
        lambda p: (p / MANIFEST).write_text('{"files": {}}'),
        f"{MANIFEST} does not list {STATE}",
    ),
    "empty folder": (lambda p: [f.unlink() for f in p.iterdir()], f"no {MANIFEST}"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_if_the_newest_checkpoint_is_damaged_the_previous_checkpoint_is_restored(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, 2, 4)
    harm, reason = DAMAGES[damage]
    harm(tmp_path / "step-0000004")
    assert resumed(tmp_path) == (2, 2.0, 2)
    said = capsys.readouterr().err
    assert re.search(rf"step-0000004 is damaged \({reason}\); trying the checkpoint before it", said), said


def test_a_hundred_damaged_checkpoints_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes of the state file are cut off, inverted or overwritten at random positions."""
    saved(tmp_path, 2, 4)
    state, dice = tmp_path / "step-0000004" / STATE, random.Random(0)
    good = state.read_bytes()
    for number in range(100):
        bad, at = bytearray(good), dice.randrange(len(good))
        if number % 3 == 0:
            del bad[at:]
        elif number % 3 == 1:
            bad[at] ^= 1 << dice.randrange(8)
        else:
            bad[at:] = dice.randbytes(len(good) - at)
        state.write_bytes(bad)
        assert resumed(tmp_path) == (2, 2.0, 2)
        assert "step-0000004 is damaged" in capsys.readouterr().err
    state.write_bytes(good)
    assert resumed(tmp_path) == (4, 4.0, 4)


def test_a_damaged_checkpoint_is_replaced_when_its_step_is_reached_again(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    flip(tmp_path / "step-0000004" / STATE)
    saved(tmp_path, 4)
    assert resumed(tmp_path) == (4, 4.0, 4)


def test_if_all_checkpoints_are_damaged_training_starts_at_step_zero(tmp_path: Path) -> None:
    saved(tmp_path, 2, 4)
    for folder in tmp_path.iterdir():
        cut(folder / STATE)
    assert resumed(tmp_path) == (0, -1.0, 0)


def test_leftovers_of_a_killed_save_are_ignored_and_deleted(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    for leftover in (".building", ".step-0000004.publishing"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / STATE).write_bytes(b"half")
    assert resumed(tmp_path) == (2, 2.0, 2)
    saved(tmp_path, 4)
    assert resumed(tmp_path) == (4, 4.0, 4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000002", "step-0000004"]


class Payload:
    """Run code when pickle loads this object."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    """A matching checksum gives no protection: whoever can write into the folder can also write the checksum."""
    saved(tmp_path / "c", 2)
    marker, folder = tmp_path / "ran", tmp_path / "c" / "step-0000002"
    torch.save({"parts": {"net": Payload(marker)}}, folder / STATE)
    (folder / MANIFEST).write_text(json.dumps({"files": {STATE: _entry(folder / STATE)}}))
    with pytest.raises(Exception, match="[Ww]eights"):
        resumed(tmp_path / "c")
    assert not marker.exists()


def test_a_module_of_another_shape_is_rejected(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    with pytest.raises(RuntimeError, match="size mismatch"):
        resume(tmp_path, {"net": torch.nn.Linear(3, 2)}, MADE_FROM)
