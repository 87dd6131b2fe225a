"""One source video into one clip of exactly the run's size, rate and frame count, or a reason why not.

Frames are chosen by their time stamps, never by their index: phones and screen recorders write uneven rates. Sources
are untrusted: the container is forced, nothing but the file itself is opened, each is read in a process that may die.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from causvid.compute.parallel import Compute, map_groups
from causvid.data.resampling.colour import Colour, Tags, colour_of
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
SECONDS_PER_VIDEO = 300.0
VIDEO_MEMORY = 4 * 2**30  # bytes; 8K with 16 reference frames takes one
SQUEEZE_LIMIT = Fraction(1, 10)  # how far off the target's aspect a squeezed source may be (the released rule)
VIDEOS_PER_GROUP = 32  # of one Ray worker: its process costs a second to start

Picture = TypeVar("Picture")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ResampleConfig:
    """Params section ``resample``.

    aspect: crop scales and cuts to the centre; squeeze scales only, and rejects sources more than 10 % off the target's
    aspect. crf: x264's quality of the clips, lower is better. hdr: tone_map converts HLG and PQ to BT.709 SDR; reject
    rejects them. interlaced: deinterlace makes one whole picture of each interlaced one; reject rejects them.
    """

    aspect: Literal["crop", "squeeze"]
    crf: int
    hdr: Literal["tone_map", "reject"]
    interlaced: Literal["deinterlace", "reject"]


@dataclass(frozen=True, kw_only=True)
class Resampler:
    """Resamples groups of the manifest rows of ``raw`` into ``out``. Each video is read in a process that may die.

    seconds: what a video may take; processes: videos a worker reads at once.
    """

    raw: Path
    out: Path
    video: VideoShape
    config: ResampleConfig
    processes: int
    seconds: float

    def load(self, row: Row) -> Row:
        """Nothing is read here."""
        return row

    def worker(self) -> Resampler:
        """No models to load."""
        return self

    def __call__(self, rows: Sequence[Row]) -> list[Row]:
        """Of each row the finished clip's, or that of rejected.jsonl."""
        return list(self.each(rows))

    def each(self, rows: Sequence[Row]) -> Iterator[Row]:
        """The same as they are done."""
        processes = min(self.processes, len(rows))
        done = run_killable(self.one, rows, workers=processes, seconds=self.seconds, memory=VIDEO_MEMORY)
        for row, result in done:
            yield _rejected(row, result.code, result.reason) if isinstance(result, Lost) else result

    def one(self, row: Row) -> Row:
        """The same of one row, in this process."""
        target = self.out / "videos" / f"{row['id']}.mp4"
        try:
            if not row["caption"]:
                raise Rejection("no_caption", "nothing says what the video shows")
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
    """Turn every video of the manifest in ``raw`` into a clip below ``out`` or a row of its rejected.jsonl.

    A video may take ``seconds``. Returns counts. Raises ValueError when nothing is left.
    """
    rows = manifest.read_manifest(raw)
    (out / "videos").mkdir(parents=True)
    here = compute.workers == 1
    job = Resampler(
        raw=raw, out=out, video=video, config=config, processes=compute.threads if here else 1, seconds=seconds
    )
    results = job.each(rows) if here else _on_ray(job, rows, compute)
    done = sorted(progress(results, total=len(rows), what="resampling"), key=lambda row: str(row["id"]))
    kept, rejected = [row for row in done if "code" not in row], [row for row in done if "code" in row]
    if not kept:
        raise ValueError(f"none of the {len(rows)} videos can be used: {_summary(rejected)}")
    manifest.write_rows(out / manifest.NAME, kept)
    manifest.write_rows(out / REJECTED, rejected)
    codes = Counter(row["code"] for row in rejected)
    return {"kept": len(kept), "rejected": len(rejected), "rejected_by_code": dict(sorted(codes.items()))}


def _on_ray(job: Resampler, rows: Sequence[Row], compute: Compute) -> Iterator[Row]:
    groups = [rows[start : start + VIDEOS_PER_GROUP] for start in range(0, len(rows), VIDEOS_PER_GROUP)]
    for handled in map_groups(job, groups, compute):
        yield from handled.results
        yield from (_rejected(row, bad.code, bad.reason) for row, bad in handled.bad)


def _rejected(row: Mapping[str, Any], code: str, reason: str) -> dict[str, Any]:
    return {"id": row["id"], "source": row["source"], "code": code, "reason": reason}


def _summary(rejected: Iterable[Mapping[str, Any]]) -> str:
    first: dict[str, Mapping[str, Any]] = {}
    count: Counter[str] = Counter()
    for row in rejected:
        first.setdefault(row["code"], row)
        count[row["code"]] += 1
    parts = (f"{number} {code} (as {first[code]['source']}: {first[code]['reason']})" for code, number in count.items())
    return "; ".join(sorted(parts))


def make_clip(source: Path, target: Path, *, video: VideoShape, config: ResampleConfig) -> list[str]:
    """Write the first ``video.frames`` frames of ``source`` at ``video.fps`` to ``target``, and check it by decoding.

    A source that is such a clip already is copied.

    Returns:
        The conversions beyond size and rate that the source needed, in order: ``deinterlace``, then ``tone_map`` (from
        HDR) or ``gamut`` (from the primaries of BT.2020 or P3). Empty for ordinary video.

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
        found = read_frames(target).shape
    except ValueError as error:
        raise Rejection("wrong_size", f"the finished clip cannot be decoded: {error}") from error
    if found != (video.frames, video.height, video.width, 3):
        raise Rejection("wrong_size", f"the finished clip has {found[0]} frames of height {found[1]}, width {found[2]}")
    return converted


def constant_rate(
    pictures: Iterable[tuple[Fraction, Fraction, Picture]], *, fps: int, frames: int, slack: Fraction
) -> Iterator[Picture]:
    """What is on screen at 0, 1/fps, 2/fps, ... seconds, ``frames`` times or until the last picture ends.

    pictures: (time it appears, time it ends at the latest, picture) in seconds, times never falling, the first at 0.
    slack: seconds a picture may be late, for time stamps that were rounded.
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
    """From a stored picture to a clip's: cut [width, height, x, y], scale to [width, height], quarter turns left."""

    cut: tuple[int, int, int, int]
    scale: tuple[int, int]
    turns: int


def fit(width: int, height: int, *, pixel_aspect: Fraction, rotation: int, video: VideoShape, aspect: str) -> Fit:
    """The Fit for stored pictures of ``width`` x ``height`` that are shown turned by ``rotation`` degrees to the left.

    pixel_aspect is a stored pixel's width over its height. Raises Rejection when squeezing would distort too much.
    """
    turns = round(rotation / 90) % 4
    goal_width, goal_height = (video.height, video.width) if turns % 2 else (video.width, video.height)
    # Shown aspect over wanted aspect, both before turning.
    excess = width * pixel_aspect * goal_height / (height * goal_width)
    cut_width, cut_height = width, height
    if aspect == "squeeze":
        off = abs((1 / excess if turns % 2 else excess) - 1)
        if off > SQUEEZE_LIMIT:
            shown = f"{float(width * pixel_aspect / height):.3f}" + (" (turned)" if turns % 2 else "")
            raise Rejection(
                "wrong_aspect",
                f"its aspect {shown} is {float(off):.0%} off the clips' {video.width / video.height:.3f}; "
                "at most 10 % is squeezed, resample.aspect: crop takes any",
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
    """uint8 [F, H, W, 3] of the clip's size, rate and count, and the conversions that they needed."""
    with open_strictly(source) as (container, stream):
        packets = packets_of(container, stream)
        convert = _Converter(stream, video, config)
        whole = Deinterlacer(
            codec=stream.codec_context.name,
            field_order=stream.codec_context.field_order,
            time_base=stream.time_base or Fraction(1),
            replace=config.interlaced == "deinterlace",
        )
        timed = whole(timed_pictures(packets, stream))
        slack = (stream.time_base or Fraction(0)) / 2
        frames = [convert(p) for p in constant_rate(timed, fps=video.fps, frames=video.frames, slack=slack)]
        for _ in packets:  # the rest is not needed, but a source that was cut short is not to be trusted
            pass
    if len(frames) < video.frames:
        raise Rejection(
            "too_short", f"it gives {len(frames)} frames at {video.fps} per second; a clip needs {video.frames}"
        )
    return np.stack(frames), convert.conversions


def _is_clip(source: Path, video: VideoShape) -> bool:
    """Whether ``source`` can be taken as it is; decodes all of it when its header says so. Raises Rejection."""
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
    """Decoded pictures to uint8 [H, W, 3] of the clip's size; a picture shown several times is converted once.

    conversions: The names of those that make_clip returns, so far.
    """

    def __init__(self, stream: VideoStream, video: VideoShape, config: ResampleConfig) -> None:
        self.stream, self.video, self.config = stream, video, config
        self.header = Tags.of(stream.codec_context)  # decoders overwrite it
        self.layout: tuple[int, int, str] | None = None
        self.colour: Colour | None = None
        self.last: Shown | None = None
        self.applied: set[str] = set()

    @property
    def conversions(self) -> list[str]:
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
        """Prepare for the colours of ``shown``, and record or reject the conversions that it needs."""
        if shown.interlaced:
            if self.config.interlaced == "reject":
                raise Rejection("interlaced", "it is interlaced; resample.interlaced: deinterlace takes it")
            self.applied.add("deinterlace")
        colour = colour_of(shown.picture, self.header)
        if colour.transfer != "sdr" and self.config.hdr == "reject":
            raise Rejection("hdr", f"it is HDR ({colour.transfer.upper()}); resample.hdr: tone_map takes it")
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
