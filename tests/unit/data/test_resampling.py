"""Resampling selects the correct frames of every kind of source, and gives a reason for every rejected source."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from causvid.compute import parallel
from causvid.data.resampling.clips import constant_rate, fit, make_clip, resample_folder
from causvid.data.resampling.config import ResampleConfig
from causvid.data.resampling.rejection import Rejection
from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.runtime.shapes import VideoShape
from tests.conftest import ONE_WORKER
from tests.unit.data.source_files import GRAY_STEP, gray_frames, real_clips, rotate, write_source

VIDEO = VideoShape(height=32, width=32, frames=9, fps=8)
HERE = ONE_WORKER
CROP = ResampleConfig(aspect="crop", crf=8, hdr="tone_map", interlaced="deinterlace")
SQUEEZE = ResampleConfig(aspect="squeeze", crf=8, hdr="tone_map", interlaced="deinterlace")


def _clip(source: Path, *, video: VideoShape = VIDEO, config: ResampleConfig = CROP) -> np.ndarray:
    target = source.with_name("clip.mp4")
    make_clip(source, target, video=video, config=config)
    return read_frames(target)


def _indices(clip: np.ndarray) -> list[int]:
    """Return, for each frame of the clip, the index of the source frame that the clip frame shows."""
    return [round((float(frame.mean()) - 16) / GRAY_STEP) for frame in clip]


# --- Selection of frames by time


@given(
    gaps=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    fps=st.integers(1, 30),
    frames=st.integers(1, 40),
)
def test_each_time_shows_the_frame_on_screen(gaps: list[int], fps: int, frames: int) -> None:
    edges = [Fraction(sum(gaps[:index]), 60) for index in range(len(gaps) + 1)]
    pictures = [(begins, ends, index) for index, (begins, ends) in enumerate(itertools.pairwise(edges))]
    shown = list(constant_rate(pictures, fps=fps, frames=frames, slack=Fraction(0)))
    moments = [Fraction(k, fps) for k in range(frames) if Fraction(k, fps) < edges[-1]]
    assert shown == [max(i for i, begins in enumerate(edges[:-1]) if begins <= moment) for moment in moments]


@given(rate=st.sampled_from((8, 16, 24, 30, 60)), tick=st.sampled_from((600, 1000, 90_000)))
def test_rounded_timestamps_do_not_change_the_result(rate: int, tick: int) -> None:
    exact = [(Fraction(i, rate), Fraction(i + 1, rate), i) for i in range(40)]
    rounded = [(Fraction(round(b * tick), tick), Fraction(round(e * tick), tick), i) for b, e, i in exact]
    by_exact, by_rounded = (
        list(constant_rate(pictures, fps=8, frames=9, slack=slack))
        for pictures, slack in ((exact, Fraction(0)), (rounded, Fraction(1, 2 * tick)))
    )
    assert by_exact == by_rounded


def test_only_the_needed_frames_are_read() -> None:
    endless = ((Fraction(i, 8), Fraction(i + 1, 8), i) for i in itertools.count())
    assert list(constant_rate(endless, fps=8, frames=5, slack=Fraction(0))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fps", "expected"),
    [(8, [0, 1, 2, 3, 4, 5, 6, 7, 8]), (30, [0, 3, 7, 11, 15, 18, 22, 26, 30]), (4, [0, 0, 1, 1, 2, 2, 3, 3, 4])],
)
def test_a_constant_rate_becomes_the_rate_of_the_clip(tmp_path: Path, fps: int, expected: list[int]) -> None:
    source = write_source(tmp_path / "a.mp4", gray_frames(40, 64, 64), fps=fps)
    assert _indices(_clip(source)) == expected


def test_a_variable_rate_is_followed_by_time_not_by_index(tmp_path: Path) -> None:
    # The source has half a second at 16 frames per second, half a second without frames, and then 8 frames per second.
    # A selection by index would skip the gap.
    times = [Fraction(i, 16) for i in range(8)] + [1 + Fraction(i, 8) for i in range(8)]
    source = write_source(tmp_path / "a.mp4", gray_frames(16, 64, 64), times=times)
    assert _indices(_clip(source, video=VideoShape(height=32, width=32, frames=13, fps=8))) == [
        0, 2, 4, 6, 7, 7, 7, 7, 8, 9, 10, 11, 12,
    ]  # fmt: skip


# --- Cropping, squeezing and rotation


@given(
    width=st.integers(2, 4000),
    height=st.integers(2, 4000),
    pixel_aspect=st.sampled_from((Fraction(1), Fraction(128, 117), Fraction(4, 3))),
    rotation=st.sampled_from((-180, -90, 0, 90, 180)),
    target=st.sampled_from(((32, 32), (480, 832), (64, 48))),
)
def test_a_crop_is_inside_and_centred_and_has_the_aspect_of_the_clip(
    width: int, height: int, pixel_aspect: Fraction, rotation: int, target: tuple[int, int]
) -> None:
    video = VideoShape(height=target[0], width=target[1], frames=9, fps=8)
    found = fit(width, height, pixel_aspect=pixel_aspect, rotation=rotation, video=video, aspect="crop")
    cut_width, cut_height, x, y = found.cut
    assert cut_width == width or cut_height == height
    assert 0 <= x <= x + cut_width <= width
    assert 0 <= y <= y + cut_height <= height
    assert abs(2 * x + cut_width - width) <= 1
    assert abs(2 * y + cut_height - height) <= 1
    assert found.scale == ((target[0], target[1]) if rotation % 180 else (target[1], target[0]))
    assume(min(cut_width, cut_height) > 40)
    assert cut_width * pixel_aspect / cut_height == pytest.approx(found.scale[0] / found.scale[1], rel=0.03)


@pytest.mark.parametrize(
    ("width", "height", "rotation", "fits"),
    [
        (110, 100, 0, True),
        (90, 100, 0, True),
        (111, 100, 0, False),
        (89, 100, 0, False),
        (91, 100, 90, True),
        (90, 100, 90, False),
    ],
)
def test_squeezing_changes_the_displayed_aspect_by_at_most_ten_per_cent(
    width: int, height: int, rotation: int, fits: bool
) -> None:
    def squeeze() -> Any:
        return fit(width, height, pixel_aspect=Fraction(1), rotation=rotation, video=VIDEO, aspect="squeeze").cut

    if fits:
        assert squeeze() == (width, height, 0, 0)
    else:
        with pytest.raises(Rejection, match=r"that of the clips, 1\.000"):
            squeeze()


def _quarters(height: int, width: int, count: int = 20) -> np.ndarray:
    """Return frames with red and green quarters above blue and white quarters."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    top, left = height // 2, width // 2
    frames[:, :top, :left], frames[:, :top, left:] = (200, 0, 0), (0, 200, 0)
    frames[:, top:, :left], frames[:, top:, left:] = (0, 0, 200), (200, 200, 200)
    return frames


def _corners(frame: np.ndarray) -> str:
    names: dict[tuple[int, ...], str] = {(1, 0, 0): "r", (0, 1, 0): "g", (0, 0, 1): "b", (1, 1, 1): "w"}
    picks = (frame[4, 4], frame[4, -5], frame[-5, 4], frame[-5, -5])
    return "".join(names[tuple(int(value > 100) for value in pick)] for pick in picks)


@pytest.mark.parametrize(("degrees", "expected"), [(90, "brwg"), (180, "wbgr"), (270, "gwrb")])
def test_a_rotated_video_becomes_upright(tmp_path: Path, degrees: int, expected: str) -> None:
    source = write_source(tmp_path / "a.mp4", _quarters(64, 96), fps=8)
    rotate(source, degrees)
    clip = _clip(source, video=VideoShape(height=64, width=32, frames=9, fps=8))
    assert clip.shape == (9, 64, 32, 3)
    assert _corners(clip[0]) == expected
    # decord applies the rotation itself, and confirms the direction
    assert _corners(read_frames(source)[0]) == expected


def test_a_rotated_video_of_the_clip_size_is_not_copied(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    write_video(source, _quarters(32, 32, count=9), fps=8, crf=8)
    rotate(source, 180)
    assert _corners(_clip(source)[0]) == "wbgr"


def test_odd_sizes_ten_bits_and_other_containers_are_read(tmp_path: Path) -> None:
    sources = [
        write_source(tmp_path / "odd.mkv", _quarters(51, 67), fps=8, codec="ffv1", pix_fmt="yuv444p"),
        write_source(tmp_path / "ten.mp4", _quarters(64, 64), fps=8, pix_fmt="yuv420p10le"),
        write_source(tmp_path / "old.avi", _quarters(64, 64), fps=8, codec="mpeg4"),
        write_source(tmp_path / "web.webm", _quarters(64, 64), fps=8, codec="libvpx-vp9"),
        write_source(tmp_path / "phone.mov", _quarters(64, 64), fps=8),
    ]
    for source in sources:
        clip = _clip(source)
        assert clip.shape == (9, 32, 32, 3), source.name
        assert {_corners(frame) for frame in clip} == {"rgbw"}, source.name


def test_downscaling_does_not_alias(tmp_path: Path) -> None:
    board = np.indices((256, 256)).sum(0) % 2 * 255
    frames = np.broadcast_to(board[None, :, :, None], (9, 256, 256, 3)).astype(np.uint8)
    clip = _clip(write_source(tmp_path / "a.mp4", frames, fps=8, options={"crf": "1"}), config=SQUEEZE)
    assert int(clip.max()) - int(clip.min()) < 20


# --- Sources that are copied without new encoding


def test_only_a_finished_clip_is_copied(tmp_path: Path) -> None:
    finished = tmp_path / "finished.mp4"
    write_video(finished, gray_frames(9, 32, 32), fps=8, crf=30)
    target = tmp_path / "clip.mp4"
    make_clip(finished, target, video=VIDEO, config=CROP)
    assert target.read_bytes() == finished.read_bytes()
    for name, frames, fps in (("longer", 10, 8), ("faster", 9, 10)):
        other = tmp_path / f"{name}.mp4"
        write_video(other, gray_frames(frames, 32, 32), fps=fps, crf=30)
        video = VIDEO if name == "longer" else VideoShape(height=32, width=32, frames=5, fps=8)
        make_clip(other, target, video=video, config=CROP)
        assert target.read_bytes() != other.read_bytes()


def test_a_finished_clip_with_a_damaged_frame_is_rejected(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (9, 32, 32, 3), dtype=np.uint8)
    source = tmp_path / "a.mp4"
    write_video(source, noise, fps=8, crf=8)
    content = bytearray(source.read_bytes())
    begins = content.index(b"mdat") + 2000
    content[begins : begins + 6000] = bytes(6000)
    source.write_bytes(content)
    with pytest.raises(Rejection) as caught:
        _clip(source)
    assert caught.value.code == "damaged"


# --- Sources that are rejected


def _cut(path: Path, share: float) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def _bad_sources(folder: Path) -> dict[str, tuple[Path, str]]:
    """Return a map of each source name to the path and the expected code."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is no video")
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile {folder}/short.mp4\n")
    write_source(folder / "short.mp4", gray_frames(8, 64, 64), fps=8)
    _cut(write_source(folder / "cut.mp4", noise), 0.5)
    # The next two files have their index at the front. They are truncated, although enough frames for a clip are left.
    _cut(write_source(folder / "cut_late.mp4", noise, options={"movflags": "+faststart"}), 0.9)
    _cut(write_source(folder / "cut_late.mkv", noise), 0.7)
    wave = folder / "sound.mp4"
    _write_sound(wave)
    return {
        "empty.mp4": (folder / "empty.mp4", "unreadable"),
        "text.mp4": (folder / "text.mp4", "unreadable"),
        "list.mp4": (folder / "list.mp4", "unreadable"),
        "cut.mp4": (folder / "cut.mp4", "unreadable"),
        "short.mp4": (folder / "short.mp4", "too_short"),
        "cut_late.mp4": (folder / "cut_late.mp4", "damaged"),
        "cut_late.mkv": (folder / "cut_late.mkv", "damaged"),
        "sound.mp4": (wave, "no_video_stream"),
    }


def _write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        for index in range(40):
            sound.sample_rate, sound.pts = 16_000, index * 1024
            container.mux(stream.encode(sound))
        container.mux(stream.encode())


def test_every_bad_source_has_its_code(tmp_path: Path) -> None:
    for name, (path, code) in _bad_sources(tmp_path).items():
        with pytest.raises(Rejection) as caught:
            _clip(path)
        assert caught.value.code == code, f"{name}: {caught.value}"


def test_a_video_too_wide_to_squeeze_is_rejected_but_can_be_cropped(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.mp4", _quarters(48, 64), fps=8)
    with pytest.raises(Rejection, match="by 33%") as caught:
        _clip(source, config=SQUEEZE)
    assert caught.value.code == "wrong_aspect"
    assert _corners(_clip(source, config=CROP)[0]) == "rgbw"


def test_the_four_real_clips(tmp_path: Path) -> None:
    """At a tenth of the paper's clip size, 16:9 fits, 2.35:1 must be cropped, and four seconds are too short."""
    small = VideoShape(height=48, width=82, frames=81, fps=16)
    verdicts = {}
    for source, config in itertools.product(sorted(real_clips().glob("*.mp4")), (CROP, SQUEEZE)):
        try:
            make_clip(source, tmp_path / "clip.mp4", video=small, config=config)
            verdicts[source.stem, config.aspect] = "kept"
        except Rejection as rejection:
            verdicts[source.stem, config.aspect] = f"{rejection.code}: {rejection}"
    cropped = {name: verdict for (name, aspect), verdict in verdicts.items() if aspect == "crop"}
    short = "too_short: the video lasts for 65 frames at 16 per second; a clip needs 81"
    assert cropped == {"bigbuckbunny": "kept", "bikes": "kept", "carphone_distorted": short, "carphone_pristine": short}
    assert verdicts["bigbuckbunny", "squeeze"] == "kept"
    assert verdicts["bikes", "squeeze"].startswith("wrong_aspect: the aspect ratio 2.353 of the video differs by 38%")
    assert verdicts["carphone_pristine", "squeeze"].startswith(
        "wrong_aspect: the aspect ratio 1.337"
    )  # wide pixels give the aspect ratio 4:3


# --- Folders of sources


def _raw(folder: Path, sources: list[Path]) -> Path:
    """Return a folder with the layout that the stage download writes. The row of each source names the source file."""
    rows = []
    (folder / "videos").mkdir(parents=True)
    for index, source in enumerate(sources):
        path = f"videos/{index:06d}{source.suffix}"
        (folder / path).write_bytes(source.read_bytes())
        rows.append({"id": f"{index:06d}", "path": path, "caption": f"video {index}", "source": source.name})
    manifest.write_rows(folder / manifest.NAME, rows)
    return folder


def test_every_source_is_in_exactly_one_list(tmp_path: Path) -> None:
    bad = _bad_sources(tmp_path)
    good = [write_source(tmp_path / f"good {i}.mp4", gray_frames(20, 48, 64), fps=8) for i in range(3)]
    raw = _raw(tmp_path / "raw", [good[0], *(path for path, _ in bad.values()), good[1], good[2]])
    counts = resample_folder(raw, tmp_path / "out", video=VIDEO, config=CROP, compute=HERE)
    kept = manifest.read_manifest(tmp_path / "out")
    rejected = manifest.read_rows(tmp_path / "out" / "rejected.jsonl")
    assert [row["source"] for row in kept] == [path.name for path in good]
    assert [(row["source"], row["code"]) for row in rejected] == [(path.name, code) for path, code in bad.values()]
    assert all(row["reason"] for row in rejected)
    assert counts == {
        "kept": 3,
        "rejected": 8,
        "rejected_by_code": {"damaged": 2, "no_video_stream": 1, "too_short": 1, "unreadable": 4},
    }
    assert kept[1] == {
        "id": "000009", "path": "videos/000009.mp4", "caption": "video 9", "source": "good 1.mp4",
        "frames": 9, "height": 32, "width": 32, "fps": 8,
        "sha256": hashlib.sha256((tmp_path / "out" / "videos" / "000009.mp4").read_bytes()).hexdigest(),
    }  # fmt: skip
    listed = {row["path"] for row in kept}
    assert {f"videos/{path.name}" for path in (tmp_path / "out" / "videos").iterdir()} == listed


def test_a_title_in_another_encoding_is_accepted(tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    with av.open(str(source), "w") as container:
        container.metadata["title"] = "Ete a la mer"
        stream = container.add_stream("libx264", rate=8)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in gray_frames(20, 48, 64):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    source.write_bytes(source.read_bytes().replace(b"Ete a la mer", "Été à la mer".encode("latin-1")))
    assert len(_clip(source)) == 9


def test_every_mutated_file_is_either_kept_or_rejected(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 48, 64, 3), dtype=np.uint8)
    whole = [write_source(tmp_path / f"whole{suffix}", noise, fps=8) for suffix in (".mp4", ".mkv", ".avi")]
    draw = random.Random(0)
    mutants = []
    for index in range(60):
        origin = whole[index % 3]
        content = bytearray(origin.read_bytes())
        near = content.find(b"moov") if index % 2 else 0  # damage to a header is more dangerous than damage to a frame
        for _ in range(draw.choice((1, 5, 50))):
            content[draw.randrange(max(near, 0), min(len(content), max(near, 0) + 1500))] = draw.randrange(256)
        mutants.append(tmp_path / f"mutant {index:02d}{origin.suffix}")
        mutants[-1].write_bytes(content)
    raw = _raw(tmp_path / "raw", [whole[0], *mutants])
    counts = resample_folder(raw, tmp_path / "out", video=VIDEO, config=CROP, compute=HERE, seconds=20)
    kept = [row["source"] for row in manifest.read_manifest(tmp_path / "out")]
    rejected = [row["source"] for row in manifest.read_rows(tmp_path / "out" / "rejected.jsonl")]
    assert sorted(kept + rejected) == sorted([whole[0].name, *(path.name for path in mutants)])
    assert counts["rejected_by_code"].keys() <= {"unreadable", "damaged", "no_video_stream", "too_short", "memory"}
    assert counts["rejected"] > 10


def test_the_number_of_processes_does_not_change_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [write_source(tmp_path / f"{i}.mp4", gray_frames(12 + i, 48, 64), fps=8) for i in range(4)]
    raw = _raw(tmp_path / "raw", sources)
    for count in (1, 2):
        monkeypatch.setattr(parallel, "cores", lambda count=count: count)
        resample_folder(raw, tmp_path / f"out{count}", video=VIDEO, config=CROP, compute=HERE)
    one, two = (
        {p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*") if p.is_file()}
        for out in ("out1", "out2")
    )
    assert len(one) == 6
    assert one == two


def test_a_video_that_hangs_or_has_no_caption_is_rejected(tmp_path: Path) -> None:
    good = write_source(tmp_path / "good.mp4", gray_frames(20, 48, 64), fps=8)
    raw = _raw(tmp_path / "raw", [good, good, good])
    rows = manifest.read_manifest(raw)
    # A pipe without a writer blocks, like a decoder that never returns.
    (raw / rows[0]["path"]).unlink()
    os.mkfifo(raw / rows[0]["path"])
    rows[1]["caption"] = None
    manifest.write_rows(raw / manifest.NAME, rows)
    resample_folder(raw, tmp_path / "out", video=VIDEO, config=CROP, compute=HERE, seconds=2)
    rejected = manifest.read_rows(tmp_path / "out" / "rejected.jsonl")
    assert [row["code"] for row in rejected] == ["timeout", "no_caption"]
    assert len(manifest.read_manifest(tmp_path / "out")) == 1


def test_the_error_counts_the_codes_if_every_video_is_rejected(tmp_path: Path) -> None:
    sources = [write_source(tmp_path / f"short{i}.mp4", gray_frames(5, 48, 64), fps=8) for i in range(2)]
    (tmp_path / "empty.mp4").touch()
    raw = _raw(tmp_path / "raw", [*sources, tmp_path / "empty.mp4"])
    said = r"none of the 3 videos .* 1 unreadable \(for example empty.mp4: the file is empty\)"
    with pytest.raises(ValueError, match=said) as error:
        resample_folder(raw, tmp_path / "out", video=VIDEO, config=CROP, compute=HERE)
    assert "2 too_short (for example short0.mp4: the video lasts for 5 frames at 8 per second; a clip needs 9)" in str(
        error.value
    )
