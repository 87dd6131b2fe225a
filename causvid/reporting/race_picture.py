"""Draw the race of teacher and student as an animated picture, for the README."""

from __future__ import annotations

from pathlib import Path

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from causvid.data.videos.video_reader import read_frames
from causvid.reporting.figures import Frames, resize
from causvid.reporting.race import Lane, Race

RATE = 8  # pictures per second
SIDE = 192  # approximate width of a video, in pixels
GAP, BAR, LINE = 16, 6, 22  # space around videos, height of the bar of the blocks, height of a line of text, in pixels
PAPER, INK, DONE, OPEN = "#fdfdfc", "#1c1e21", "#2a639b", "#d9dce1"


def draw_race(race: Race, out: Path) -> None:
    """Write the race as an animated WebP in an endless loop.

    Args:
        race: The race.
        out: File to write.
    """
    videos = [resize(read_frames(lane.video), SIDE) for lane in race.lanes]
    pictures = [_picture(race, videos, number / RATE) for number in range(int(race.seconds * RATE))]
    pictures[0].save(
        out, save_all=True, append_images=pictures[1:], duration=1000 // RATE, loop=0, quality=60, method=4
    )


def _picture(race: Race, videos: list[Frames], now: float) -> Image.Image:
    """Return the picture at the time ``now``, in seconds of the race."""
    height, width = videos[0].shape[1:3]
    size = GAP + len(videos) * (width + GAP), LINE + height + 2 * BAR + 2 * LINE + GAP
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, 4), race.caption, INK, _font(13))
    for index, (lane, frames) in enumerate(zip(race.lanes, videos, strict=True)):
        left, top = GAP + index * (width + GAP), LINE
        shown = lane.frame_at(now, count=len(frames))
        box = (left, top, left + width - 1, top + height - 1)
        if shown is None:
            draw.rectangle(box, OPEN)
        else:
            picture.paste(Image.fromarray(frames[shown]), (left, top))
        _bar(draw, lane, now, (left, top + height + BAR // 2), width)
        seconds = min(now / race.factor, lane.parts[-1].measured)
        below = top + height + 2 * BAR
        draw.text((left, below), f"{lane.label}: {seconds:.{race.decimals}f} s", INK, _font(15))
    draw.text((GAP, size[1] - LINE), race.note, INK, _font(12))
    return picture


def _bar(draw: ImageDraw.ImageDraw, lane: Lane, now: float, corner: tuple[int, int], width: int) -> None:
    """Draw one bar per part below a video, filled in proportion to the time until the part is finished."""
    left, top = corner
    scale, before = width / lane.parts[-1].end, 0.0
    for part in lane.parts:
        start, end = left + part.start * scale, left + part.end * scale - 2
        done = min(1.0, max(0.0, (now - before) / (part.ready - before)))
        draw.rectangle((start, top, end, top + BAR), OPEN)
        if done:
            draw.rectangle((start, top, start + done * (end - start), top + BAR), DONE)
        before = part.ready


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that Matplotlib contains, so that the picture does not depend on the fonts of the machine."""
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
