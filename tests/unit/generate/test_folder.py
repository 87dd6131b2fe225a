"""The names of the files in an output folder, and the checks of the folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causvid.generate.folder import Video, require_folder

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


def name_of(prompt: str, seed: int = 0) -> str:
    return Video(prompt=prompt, seed=seed).name


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a green circle moves down", "a-green-circle-moves-down-seed0.mp4"),
        ("caf\u00e9 42", "café-42-seed0.mp4"),
        ("一只猫", "一只猫-seed0.mp4"),
        ("हिन्दी में बिल्ली", "हिन्दी-में-बिल्ली-seed0.mp4"),
    ],
)
def test_a_prompt_of_words_is_the_name_of_its_file(prompt: str, name: str) -> None:
    assert name_of(prompt) == name


@pytest.mark.parametrize(
    ("prompt", "start"),
    [
        ("A cat, on a beach.", "a-cat-on-a-beach_"),
        ("../../etc/passwd", "etc-passwd_"),
        ("a_b", "a-b_"),
        ("!?", "prompt_"),
        ("cafe\u0301", "café_"),
        ("word " * 40 + "end", "word-" * 15 + "word_"),
        ("猫" * 100, "猫" * 26 + "_"),
    ],
)
def test_a_name_that_does_not_contain_the_whole_prompt_ends_with_a_checksum(prompt: str, start: str) -> None:
    assert re.fullmatch(re.escape(start) + r"[0-9a-f]{8}-seed7\.mp4", name_of(prompt, 7))


def test_similar_prompts_have_different_names() -> None:
    long = "word " * 40
    prompts = ["a b", "A b", "a  b", "a-b", "a_b", "a b.", "ab", "a\tb", f"{long}x", f"{long}y", "!", "?", "prompt"]
    assert len({name_of(prompt) for prompt in prompts}) == len(prompts)


@given(TEXTS, TEXTS, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_each_prompt_and_seed_has_its_own_short_name(one: str, other: str, seed: int, other_seed: int) -> None:
    names = [name_of(one, seed), name_of(other, other_seed)]
    assert (names[0] == names[1]) == ((one, seed) == (other, other_seed))
    for name in names:
        assert "/" not in name
        assert "\0" not in name
        assert not name.startswith((".", "-"))
        assert len(name.encode()) < 150  # most file systems allow 255 bytes


def test_a_folder_that_cannot_be_written_into_is_refused_and_nothing_is_created(tmp_path: Path) -> None:
    require_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="which cannot be written into .*is not a folder"):
            require_folder(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="the user root may write into every folder")
def test_a_folder_without_the_permission_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="is not writable"):
        require_folder(tmp_path / "out")
