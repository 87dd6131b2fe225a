"""Captions are matched to videos by full paths or by unique ends of paths, in every Unicode form."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from causvid.data.sources.caption_match import LONGEST_TAIL, match, match_ends

COMPOSED, DECOMPOSED = "caf\u00e9.mp4", "cafe\u0301.mp4"


def whole(*names: str) -> dict[str, list[str]]:
    return {name: [name] for name in names}


def ends(videos: list[str], captions: list[str], *, bare: bool = True) -> dict[str, str]:
    return match_ends({video: [video] for video in videos}, captions, bare=bare)


@pytest.mark.parametrize(
    "name",
    ["caf\u00e9.mp4", "\u304c.mov", "\uac00\uac01/\u00fc.webm", "\u1e69.mp4", "\u212b ngstr\u00f6m.mkv", "plain.mp4"],
)
def test_a_name_matches_itself_in_every_unicode_form(name: str) -> None:
    """The forms are composed, decomposed, and a third form (the Ångström sign, or combining marks in another order)."""
    forms = {name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)}
    for video in forms:
        for caption in forms:
            assert match(whole(video), whole(caption)) == {video: caption}
            assert ends([f"a/c/{video}"], [f"b/c/{caption}"]) == {f"a/c/{video}": f"b/c/{caption}"}
            assert ends([f"a/{video}"], [caption]) == {f"a/{video}": caption}


def test_names_that_differ_only_in_their_form_match_exactly() -> None:
    both = whole(COMPOSED, DECOMPOSED)
    assert match(both, both) == {COMPOSED: COMPOSED, DECOMPOSED: DECOMPOSED}
    for name in (COMPOSED, DECOMPOSED):
        assert match(both, whole(name)) == {name: name}
        assert match(whole(name), both) == {name: name}
    # The letter s with a dot below and a dot above has three forms; the caption has another form than both videos.
    third = whole("\u1e61\u0323.mp4")
    assert match(whole("\u1e69.mp4", "s\u0323\u0307.mp4"), third) == {}
    assert match(third, whole("\u1e69.mp4", "s\u0323\u0307.mp4")) == {}


def test_a_preferred_name_in_another_form_wins_over_a_later_name_in_the_same_form() -> None:
    captions = [f"A/{COMPOSED}", f"B/{DECOMPOSED}", DECOMPOSED]
    assert ends([f"x/A/{DECOMPOSED}"], captions) == {f"x/A/{DECOMPOSED}": f"A/{COMPOSED}"}


@pytest.mark.parametrize(
    ("videos", "captions", "expected"),
    [
        (["A/v.mp4", "B/v.mp4"], ["A/v.mp4"], {"A/v.mp4": "A/v.mp4"}),
        (["A/v.mp4", "B/v.mp4"], ["v.mp4"], {}),
        (["A/v.mp4"], ["v.mp4"], {"A/v.mp4": "v.mp4"}),
        (["v.mp4"], ["A/v.mp4"], {"v.mp4": "A/v.mp4"}),
        (["v.mp4"], ["A/v.mp4", "B/v.mp4"], {}),
        (["A/v.mp4"], ["B/v.mp4"], {}),
        (["A/v.mp4"], ["B/v.mp4", "v.mp4"], {}),
        (["v.mp4", "A/v.mp4"], ["v.mp4"], {"v.mp4": "v.mp4"}),
        (["x/A/v.mp4", "x/B/v.mp4"], ["B/v.mp4", "A/v.mp4"], {"x/A/v.mp4": "A/v.mp4", "x/B/v.mp4": "B/v.mp4"}),
        (["x/A/v.mp4"], ["/mnt/A/v.mp4"], {"x/A/v.mp4": "/mnt/A/v.mp4"}),
        (["x/A/v.mp4", "y/A/v.mp4"], ["A/v.mp4"], {}),
        (["x/A/v.mp4", "y/A/v.mp4"], ["y/A/v.mp4"], {"y/A/v.mp4": "y/A/v.mp4"}),
    ],
)
def test_the_end_of_a_path_matches_only_if_it_is_unique(
    videos: list[str], captions: list[str], expected: dict[str, str]
) -> None:
    assert ends(videos, captions) == expected
    with_folder = {video: path for video, path in expected.items() if "/" in video and "/" in path}
    assert ends(videos, captions, bare=False) == with_folder


PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b", "\u00e9", "e\u0301"]), min_size=1, max_size=4).map("/".join),
    max_size=6,
    unique=True,
)


@given(videos=PATHS, captions=PATHS)
def test_no_two_videos_share_a_caption_and_order_does_not_matter(videos: list[str], captions: list[str]) -> None:
    found = ends(videos, captions)
    assert len(set(found.values())) == len(found)
    assert found == ends(videos[::-1], captions[::-1])
    for video in set(videos) & set(captions):
        assert found[video] == video


def test_a_path_of_many_folders_is_compared_by_its_last_folders() -> None:
    """The test ensures that not all ends of a long path are stored, because they would not fit in memory."""
    deep = "a/" * 300_000 + "v.mp4"
    assert ends([deep], ["a/v.mp4"]) == {deep: "a/v.mp4"}
    assert ends([deep], ["a/" * LONGEST_TAIL + "v.mp4"]) == {deep: "a/" * LONGEST_TAIL + "v.mp4"}


def test_many_equal_names_are_looked_up_in_an_index() -> None:
    """A comparison of all 10**10 pairs would exceed the time limit of the test."""
    names = {f"{index}/v.mp4": ["v.mp4"] for index in range(100_000)}
    assert match(names, names) == {}
