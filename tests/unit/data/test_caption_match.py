"""Which caption belongs to which video: the pairing rule by itself."""

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
def test_f20_a_name_finds_itself_in_every_form(name: str) -> None:
    """Composed, decomposed, and a third form with a letter that neither has (an Ångström sign, marks in another order)."""
    forms = {name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)}
    for mine in forms:
        for theirs in forms:
            assert match(whole(mine), whole(theirs)) == {mine: theirs}
            assert ends([f"a/c/{mine}"], [f"b/c/{theirs}"]) == {f"a/c/{mine}": f"b/c/{theirs}"}
            assert ends([f"a/{mine}"], [theirs]) == {f"a/{mine}": theirs}


def test_f20_names_that_differ_in_form_only_keep_to_their_own() -> None:
    both = whole(COMPOSED, DECOMPOSED)
    assert match(both, both) == {COMPOSED: COMPOSED, DECOMPOSED: DECOMPOSED}
    for name in (COMPOSED, DECOMPOSED):
        assert match(both, whole(name)) == {name: name}
        assert match(whole(name), both) == {name: name}
    # s with a dot below and a dot above has three forms; neither of the two videos is spelled as the caption is.
    third = whole("\u1e61\u0323.mp4")
    assert match(whole("\u1e69.mp4", "s\u0323\u0307.mp4"), third) == {}
    assert match(third, whole("\u1e69.mp4", "s\u0323\u0307.mp4")) == {}


def test_f20_a_better_name_in_another_form_goes_before_a_worse_one_in_the_same() -> None:
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
def test_f15_an_end_of_a_path_counts_only_where_it_is_unique(
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
def test_f15_no_two_videos_share_a_caption_and_order_does_not_matter(videos: list[str], captions: list[str]) -> None:
    found = ends(videos, captions)
    assert len(set(found.values())) == len(found)
    assert found == ends(videos[::-1], captions[::-1])
    for video in set(videos) & set(captions):
        assert found[video] == video


def test_f15_a_path_of_very_many_folders_is_compared_by_its_last() -> None:
    """All ends of such a path would fill the memory."""
    deep = "a/" * 300_000 + "v.mp4"
    assert ends([deep], ["a/v.mp4"]) == {deep: "a/v.mp4"}
    assert ends([deep], ["a/" * LONGEST_TAIL + "v.mp4"]) == {deep: "a/" * LONGEST_TAIL + "v.mp4"}


def test_f15_very_many_equal_names_are_compared_by_their_index() -> None:
    """Each with each would be ten thousand million comparisons; the test's own time limit ends that."""
    names = {f"{index}/v.mp4": ["v.mp4"] for index in range(100_000)}
    assert match(names, names) == {}
