"""Convert every source video into one clip with the size, frame rate and length in params.yaml, or reject the video.

Frames are selected by their timestamps, never by their index, because phones and screen recorders write variable frame
rates. Source videos are untrusted: the content of the file determines the demuxer, no other file is opened, and every
video is decoded in a process that may die.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from causvid.compute.parallel import Compute, map_groups
from causvid.data.resampling.colour import Colour, Tags, colour_of
from causvid.data.resampling.config import ResampleConfig
from causvid.data.resampling.decoding import open_strictly, packets_of, timed_pictures
from causvid.data.resampling.deinterlacing import Deinterlacer, Shown, changed, is_interlaced, layout_of
from causvid.data.resampling.rejection import Rejection
from causvid.data.resampling.rendering import renderer
from causvid.data.videos import manifest
from causvid.data.videos.video_reader import read_frames
from causvid.data.videos.video_writer import write_video
from causvid.data.workers import Lost, run_killable
from causvid.harness.progress import progress
from causvid.runtime.shapes import VideoShape

REJECTED = "rejected.jsonl"
SECONDS_PER_VIDEO = 300.0  # time limit for one video
VIDEO_MEMORY = 4 * 2**30  # memory limit of a process in bytes; an 8K video with 16 reference frames needs 2**30 bytes
SQUEEZE_LIMIT = Fraction(1, 10)  # largest relative change of the aspect ratio by squeezing, as in the original code
VIDEOS_PER_GROUP = 32  # number of videos in a Ray task; the start of a decoder process takes about a second per task

Picture = TypeVar("Picture")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Resampler:
    """Resamples groups of manifest rows. Each video is decoded in a process that may die.

    Attributes:
        raw: Folder of the source videos.
        out: Folder of the clips.
        video: Size, frame rate and number of frames of the clips.
        config: Params section ``resample``.
        processes: Number of videos that a worker decodes at the same time.
        seconds: Time limit for one video.
    """

    raw: Path
    out: Path
    video: VideoShape
    config: ResampleConfig
    processes: int
    seconds: float

    def load(self, row: Row) -> Row:
        """Return ``row``, because the decoder process reads the file."""
        return row

    def worker(self) -> Resampler:
        """Return this object, because there are no models to load."""
        return self

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """Return the manifest row of the clip, or the row of rejected.jsonl, for each of ``rows``."""
        return list(self.each(rows))

    def each(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Yield the manifest rows of clips and the rows of rejected.jsonl in the order of completion."""
        processes = min(self.processes, len(rows))
        done = run_killable(self.one, rows, workers=processes, seconds=self.seconds, memory=VIDEO_MEMORY)
        for row, result in done:
            yield _rejected(row, result.code, result.reason) if isinstance(result, Lost) else result

    def one(self, row: Row) -> Row:
        """Resample one video in this process. Return the manifest row of the clip, or the row of rejected.jsonl."""
        target = self.out / "videos" / f"{row['id']}.mp4"
        try:
            if not row["caption"]:
                raise Rejection("no_caption", "the video has no caption")
            converted = make_clip(self.raw / row["path"], target, video=self.video, config=self.config)
        except Rejection as rejection:
            target.unlink(missing_ok=True)
            return _rejected(row, rejection.code, str(rejection))
        clip = {
            "id": row["id"],
            "path": target.relative_to(self.out).as_posix(),
            "caption": row["caption"],
            "source": row["source"],
            "frames": self.video.frames,
            "height": self.video.height,
            "width": self.video.width,
            "fps": self.video.fps,
            "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        }
        return clip | {"converted": converted} if converted else clip


def resample_folder(
    raw: Path,
    out: Path,
    *,
    video: VideoShape,
    config: ResampleConfig,
    compute: Compute,
    seconds: float = SECONDS_PER_VIDEO,
) -> dict[str, Any]:
    """Convert every video of the manifest in ``raw`` into a clip in ``out``, or add it to ``out``/rejected.jsonl.

    A video that takes more than ``seconds`` is rejected.

    Returns:
        Numbers of kept and rejected videos.

    Raises:
        ValueError: All videos are rejected.
    """
    rows = manifest.read_manifest(raw)
    (out / "videos").mkdir(parents=True)
    here = compute.workers == 1
    resampler = Resampler(
        raw=raw, out=out, video=video, config=config, processes=compute.threads if here else 1, seconds=seconds
    )
    results = resampler.each(rows) if here else _on_ray(resampler, rows, compute)
    done = sorted(progress(results, total=len(rows), what="resampling"), key=lambda row: str(row["id"]))
    kept, rejected = [row for row in done if "code" not in row], [row for row in done if "code" in row]
    if not kept:
        raise ValueError(f"none of the {len(rows)} videos can be used: {_summary(rejected)}")
    manifest.write_rows(out / manifest.NAME, kept)
    manifest.write_rows(out / REJECTED, rejected)
    codes = Counter(row["code"] for row in rejected)
    return {"kept": len(kept), "rejected": len(rejected), "rejected_by_code": dict(sorted(codes.items()))}


def _on_ray(resampler: Resampler, rows: Sequence[Row], compute: Compute) -> Iterator[Row]:
    groups = [rows[start : start + VIDEOS_PER_GROUP] for start in range(0, len(rows), VIDEOS_PER_GROUP)]
    for handled in map_groups(resampler, groups, compute):
        yield from handled.results
        yield from (_rejected(row, bad.code, bad.reason) for row, bad in handled.bad)


def _rejected(row: Mapping[str, Any], code: str, reason: str) -> dict[str, Any]:
    return {"id": row["id"], "source": row["source"], "code": code, "reason": reason}


def _summary(rejected: Iterable[Mapping[str, Any]]) -> str:
    """Return a text with the number of rejected videos per code and an example for each code."""
    first: dict[str, Mapping[str, Any]] = {}
    count: Counter[str] = Counter()
    for row in rejected:
        first.setdefault(row["code"], row)
        count[row["code"]] += 1
    parts = (f"{n} {code} (for example {first[code]['source']}: {first[code]['reason']})" for code, n in count.items())
    return "; ".join(sorted(parts))


def make_clip(source: Path, target: Path, *, video: VideoShape, config: ResampleConfig) -> list[str]:
    """Write one clip, and verify it by decoding.

    Args:
        source: A video of any size and frame rate. A video that already has the format of a clip is copied.
        target: The mp4 file to write.
        video: Size, frame rate and number of frames of the clip. The clip begins with the first frame of ``source``.
        config: Params section ``resample``.

    Returns:
        The names of conversions, other than conversions of size and frame rate, that were applied to the source:
        ``deinterlace``, then ``tone_map`` (from HDR) or ``gamut`` (from the primaries of BT.2020 or P3). The list is
        empty for ordinary video.

    Raises:
        Rejection: The source cannot become a clip.
    """
    converted: list[str] = []
    if _is_clip(source, video):
        shutil.copyfile(source, target)
    else:
        frames, converted = _clip_frames(source, video, config)
        write_video(target, frames, fps=video.fps, crf=config.crf)
    try:
        shape = read_frames(target).shape
    except ValueError as error:
        raise Rejection("wrong_size", f"the finished clip cannot be decoded: {error}") from error
    if shape != (video.frames, video.height, video.width, 3):
        raise Rejection("wrong_size", f"the finished clip has {shape[0]} frames of height {shape[1]}, width {shape[2]}")
    return converted


def constant_rate(
    pictures: Iterable[tuple[Fraction, Fraction, Picture]], *, fps: int, frames: int, slack: Fraction
) -> Iterator[Picture]:
    """Resample frames with arbitrary timestamps to a constant frame rate.

    Args:
        pictures: The source frames, as (time at which the frame appears, latest time at which the frame ends, frame).
            Times are in seconds and never decrease; the first frame appears at 0 seconds.
        fps: Frames per second of the result.
        frames: Largest number of frames to yield.
        slack: Seconds by which a source frame may be late, because timestamps are rounded.

    Yields:
        The source frames on display at 0, 1/fps, 2/fps, ... seconds, until the last source frame ends.
    """
    shown = 0
    held: list[Picture] = []
    ends = Fraction(0)
    for begins, until, picture in pictures:
        ends = until
        while held and shown < frames and Fraction(shown, fps) + slack < begins:
            yield held[0]
            shown += 1
        if shown == frames:
            return
        held = [picture]
    while held and shown < frames and Fraction(shown, fps) < ends:
        yield held[0]
        shown += 1


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The geometry of the conversion from a stored frame to a frame of the clip.

    Attributes:
        cut: The part of the stored frame to use: width, height, x and y in pixels.
        scale: Width and height in pixels to which this part is scaled.
        turns: Number of counterclockwise quarter turns after scaling.
    """

    cut: tuple[int, int, int, int]
    scale: tuple[int, int]
    turns: int


def fit(width: int, height: int, *, pixel_aspect: Fraction, rotation: int, video: VideoShape, aspect: str) -> Fit:
    """Compute the geometry of the conversion. Raises Rejection if squeezing would change the aspect ratio too much.

    Args:
        width, height: Size of the stored frames in pixels.
        pixel_aspect: Width of a stored pixel divided by its height.
        rotation: Counterclockwise rotation of the stored frames for display, in degrees.
        video: Size of the clip.
        aspect: ``crop`` or ``squeeze``, as in ``ResampleConfig``.
    """
    turns = round(rotation / 90) % 4
    goal_width, goal_height = (video.height, video.width) if turns % 2 else (video.width, video.height)
    # The aspect ratio on display divided by the aspect ratio of the clip, both before rotation.
    excess = width * pixel_aspect * goal_height / (height * goal_width)
    cut_width, cut_height = width, height
    if aspect == "squeeze":
        off = abs((1 / excess if turns % 2 else excess) - 1)
        if off > SQUEEZE_LIMIT:
            shown = f"{float(width * pixel_aspect / height):.3f}" + (" (before rotation)" if turns % 2 else "")
            raise Rejection(
                "wrong_aspect",
                f"the aspect ratio {shown} of the video differs by {float(off):.0%} from that of the clips, "
                f"{video.width / video.height:.3f}, and squeeze allows 10 %; set resample.aspect to crop",
            )
    elif excess > 1:
        cut_width = max(1, round(width / excess))
    else:
        cut_height = max(1, round(height * excess))
    return Fit(
        cut=(cut_width, cut_height, (width - cut_width) // 2, (height - cut_height) // 2),
        scale=(goal_width, goal_height),
        turns=turns,
    )


def _clip_frames(source: Path, video: VideoShape, config: ResampleConfig) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the frames of the clip, uint8 [F, H, W, 3], and the conversions that the source needed."""
    with open_strictly(source) as (container, stream):
        packets = packets_of(container, stream)
        convert = _Converter(stream, video, config)
        deinterlace = Deinterlacer(
            codec=stream.codec_context.name,
            field_order=stream.codec_context.field_order,
            time_base=stream.time_base or Fraction(1),
            replace=config.interlaced == "deinterlace",
        )
        timed = deinterlace(timed_pictures(packets, stream))
        slack = (stream.time_base or Fraction(0)) / 2
        frames = [convert(p) for p in constant_rate(timed, fps=video.fps, frames=video.frames, slack=slack)]
        for _ in packets:  # the remaining packets are read only to detect a truncated file
            pass
    if len(frames) < video.frames:
        raise Rejection(
            "too_short",
            f"the video lasts for {len(frames)} frames at {video.fps} per second; a clip needs {video.frames}",
        )
    return np.stack(frames), convert.conversions


def _is_clip(source: Path, video: VideoShape) -> bool:
    """Return whether the header and all frames of ``source`` already have the format of a clip. Raises Rejection."""
    with open_strictly(source) as (container, stream):
        context = stream.codec_context
        if (
            len(container.streams) != 1
            or "mp4" not in container.format.name
            or (context.name, context.pix_fmt) != ("h264", "yuv420p")
            or (context.width, context.height) != (video.width, video.height)
            or stream.frames != video.frames
            or stream.average_rate != video.fps
            or (stream.sample_aspect_ratio or 1) != 1
        ):
            return False
        header, order = Tags.of(context), context.field_order
        pictures = list(timed_pictures(packets_of(container, stream), stream))
    times = [begins for begins, _, _ in pictures]
    ready = all(
        not picture.rotation and not is_interlaced(picture, order) and colour_of(picture, header).as_written
        for _, _, picture in pictures
    )
    return ready and times == [Fraction(k, video.fps) for k in range(video.frames)]


class _Converter:
    """Converts decoded frames to uint8 [H, W, 3] of the clip's size. A repeated frame is converted once."""

    def __init__(self, stream: VideoStream, video: VideoShape, config: ResampleConfig) -> None:
        self.stream, self.video, self.config = stream, video, config
        self.header = Tags.of(stream.codec_context)  # read before decoding, because decoders overwrite the header
        self.layout: tuple[int, int, str] | None = None
        self.colour: Colour | None = None
        self.last: Shown | None = None
        self.applied: set[str] = set()

    @property
    def conversions(self) -> list[str]:
        """The names of the conversions that were applied so far, in the order of ``make_clip``."""
        return [name for name in ("deinterlace", "tone_map", "gamut") if name in self.applied]

    def __call__(self, shown: Shown) -> NDArray[np.uint8]:
        if shown is not self.last:
            self.layout = self.layout or layout_of(shown.picture)
            if layout_of(shown.picture) != self.layout:
                raise changed(self.layout, shown.picture)
            self._note(shown)
            upright = np.rot90(self.render(shown.picture), self.fit.turns)
            self.last, self.array = shown, np.ascontiguousarray(upright, dtype=np.uint8)
        return self.array

    def _note(self, shown: Shown) -> None:
        """Record or reject the conversions that a frame needs, and rebuild the renderer if the colours change."""
        if shown.interlaced:
            if self.config.interlaced == "reject":
                raise Rejection("interlaced", "the video is interlaced; set resample.interlaced to deinterlace")
            self.applied.add("deinterlace")
        colour = colour_of(shown.picture, self.header)
        if colour.transfer != "sdr" and self.config.hdr == "reject":
            raise Rejection("hdr", f"the video is HDR ({colour.transfer.upper()}); set resample.hdr to tone_map")
        if colour.conversion is not None:
            self.applied.add(colour.conversion)
        if colour != self.colour:
            self.colour = colour
            self._build(shown, colour)

    def _build(self, shown: Shown, colour: Colour) -> None:
        picture = shown.picture
        self.fit = fit(
            picture.width,
            picture.height,
            pixel_aspect=Fraction(self.stream.sample_aspect_ratio or 1),
            rotation=shown.rotation,
            video=self.video,
            aspect=self.config.aspect,
        )
        time_base = self.stream.time_base or Fraction(1)
        self.render = renderer(picture, colour, cut=self.fit.cut, size=self.fit.scale, time_base=time_base)
