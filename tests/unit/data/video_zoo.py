"""Write videos like those of people, phones, editors, broken disks and attackers, with the expected verdict on each."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.unit.data.picture_files import halved, planes_of, write_planes
from tests.unit.data.source_files import gray_frames, rotate, write_source

KEPT = "kept"
STYP = struct.pack(">I4s", 16, b"styp") + b"msdh\0\0\0\0"
SECONDS = 3
RATE = 8


def textured(count: int = SECONDS * RATE, height: int = 96, width: int = 128) -> np.ndarray:
    """Return uint8 [F, H, W, 3] with moving waves and noise, so that every bit of an encoded stream matters."""
    y, x, time = np.mgrid[:height, :width, :count]
    waves = 127 + 80 * np.sin((x + 3 * time) / 9) + 30 * np.cos((y - 2 * time) / 5)
    noise = np.random.default_rng(0).normal(0, 6, (height, width, count))
    gray = (waves + noise).clip(0, 255).astype(np.uint8).transpose(2, 0, 1)
    return np.repeat(gray[..., None], 3, axis=-1)


class Zoo:
    """A folder of videos, and a map of each file name to the expected verdict."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.verdicts: dict[str, str] = {}
        self.plain = textured()
        self.still = gray_frames(SECONDS * RATE, 96, 128)

    def path(self, name: str, verdict: str) -> Path:
        assert name not in self.verdicts, name
        self.verdicts[name] = verdict
        return self.folder / name

    def bytes(self, name: str, verdict: str, content: bytes) -> None:
        self.path(name, verdict).write_bytes(content)

    def write(self, name: str, verdict: str = KEPT, frames: np.ndarray | None = None, **how: Any) -> Path:
        frames = self.plain if frames is None else frames
        return write_source(self.path(name, verdict), frames, **({"fps": RATE} | how))

    def changed(self, name: str, verdict: str, origin: str, change: Callable[[bytes], bytes]) -> None:
        self.bytes(name, verdict, change((self.folder / origin).read_bytes()))


def fill(folder: Path) -> Zoo:
    """Write all videos into ``folder``, and return the zoo."""
    zoo = Zoo(folder)
    for make in (_sound, _timed, _dressed, _no_videos, _cut, _changed, _odd):
        make(zoo)
    return zoo


def _sound(zoo: Zoo) -> None:
    """Write valid videos in every container, codec, pixel format, size and rate in use."""
    for suffix in ("mp4", "mov", "m4v", "mkv"):
        zoo.write(f"h264.{suffix}")
    zoo.write("h264.avi", stream={"bf": "0"})
    zoo.write("h264 out of order.avi", "damaged", stream={"bf": "2"})  # AVI cannot store the timestamps of B-frames
    for name, codec, pix_fmt in (
        ("hevc.mp4", "libx265", "yuv420p"),
        ("av1.mp4", "libsvtav1", "yuv420p"),
        ("av1.mkv", "libsvtav1", "yuv420p10le"),
        ("vp8.webm", "libvpx", "yuv420p"),
        ("vp9.webm", "libvpx-vp9", "yuv420p"),
        ("mpeg4.avi", "mpeg4", "yuv420p"),
        ("mjpeg.mov", "mjpeg", "yuvj420p"),
        ("prores.mov", "prores_ks", "yuv422p10le"),
        ("ffv1.mkv", "ffv1", "yuv444p"),
        ("ten bits.mp4", "libx264", "yuv420p10le"),
        ("full colour.mp4", "libx264", "yuv444p"),
        ("rgb.mkv", "libx264rgb", "rgb24"),
        ("gray.mp4", "libx264", "gray"),
    ):
        zoo.write(name, codec=codec, pix_fmt=pix_fmt)
    for fps in (9, 24, 30, 60, 120):
        zoo.write(f"{fps} per second.mp4", frames=textured(SECONDS * fps, 48, 64), fps=fps)
    for height, width in ((47, 63), (2, 2), (1, 1), (400, 16), (16, 400)):
        zoo.write(f"{width} by {height}.mp4", frames=textured(height=height, width=width), pix_fmt="yuv444p")
    zoo.write("8k.mp4", frames=gray_frames(10, 4320, 7680), stream={"preset": "ultrafast"})
    zoo.write("all key frames.mp4", stream={"g": "1"})
    zoo.write("one key frame.mp4", stream={"g": "999", "bf": "4"})
    zoo.write("interlaced.mp4", stream={"x264-params": "tff=1"})
    for name, transfer in (("hlg.mp4", 18), ("pq.mkv", 16)):
        planes = planes_of(zoo.plain[0] / 255, "bt2020", full=False, bits=10)
        write_planes(
            zoo.path(name, KEPT),
            [halved(planes)] * (SECONDS * RATE),
            codec="libx265",
            pix_fmt="yuv420p10le",
            tags=(9, 1, transfer, 9),
            fps=RATE,
            stream={"x265-params": "log-level=none"},
        )


def _timed(zoo: Zoo) -> None:
    """Write videos whose timestamps differ from k / rate."""
    count = 5 * RATE
    phone = [Fraction(round(600 * k / RATE) + random.Random(k).randrange(-9, 9), 600) + 1 for k in range(count)]
    zoo.write("phone.mp4", frames=textured(count), times=phone)
    gap = [Fraction(k, RATE) + (2 if k > 6 else 0) for k in range(2 * RATE)]
    zoo.write("gap of two seconds.mkv", frames=textured(2 * RATE), times=gap)
    zoo.write("starts late.mkv", times=[Fraction(k, RATE) + 100 for k in range(SECONDS * RATE)])
    slow = [Fraction(2 * k, 3) for k in range(4)]
    zoo.write("slide show.mp4", frames=textured(4), times=slow)


def _dressed(zoo: Zoo) -> None:
    """Write valid videos with unusual containers, rotations, tracks and names."""
    zoo.write("index first.mp4", options={"movflags": "+faststart"})
    zoo.write("fragments.mp4", options={"movflags": "+frag_keyframe+empty_moov"})
    for degrees in (90, 180, 270):
        rotate(zoo.write(f"turned by {degrees}.mp4"), degrees)
    zoo.write("wide pixels.mp4", stream={"aspect": "2:1"})
    zoo.write("mkv inside.mp4", options={"format": "matroska"})
    zoo.write("-i ;$(touch x)\n'%d.mp4")
    _mux(zoo.path("with sound.mp4", KEPT), zoo.plain, sound=True)
    _mux(zoo.path("with cover.mp4", KEPT), zoo.plain, cover=True)
    _mux(zoo.path("two videos.mkv", KEPT), zoo.plain, zoo.plain[:3])
    zoo.changed("segment first.mp4", KEPT, "fragments.mp4", lambda content: content.replace(b"ftyp", b"styp", 1))
    zoo.changed("bytes behind.mp4", KEPT, "h264.mp4", lambda content: content + bytes(1000))


def _no_videos(zoo: Zoo) -> None:
    for name, content in (
        ("empty.mp4", b""),
        ("one byte.mp4", b"\0"),
        ("text.mp4", b"this is no video\n"),
        ("page.mp4", b"<!DOCTYPE html><title>404</title>"),
        ("list.mp4", f"ffconcat version 1.0\nfile {zoo.folder}/h264.mp4\n".encode()),
        ("playlist.mp4", f"#EXTM3U\n#EXTINF:3,\n{zoo.folder}/h264.mp4\n#EXT-X-ENDLIST\n".encode()),
        ("session.mp4", b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"),
        ("noise.mp4", random.Random(0).randbytes(5000)),
        ("noise after a head.mp4", struct.pack(">I", 24) + b"ftypisom" + random.Random(0).randbytes(5000)),
        ("noise after a head.mkv", b"\x1aE\xdf\xa3" + random.Random(0).randbytes(5000)),
        ("endless box.mp4", struct.pack(">I4sI4sQ", 16, b"ftyp", 0, b"isom", 2**63 - 1)),
    ):
        zoo.bytes(name, "unreadable", content)
    noise = random.Random(0).randbytes(5000)
    zoo.bytes("noise after a head.avi", "no_video_stream", b"RIFF\xff\xff\xff\xffAVI " + noise)
    for suffix, codec in (("ts", "libx264"), ("flv", "libx264"), ("gif", "gif")):
        origin = write_source(
            zoo.folder / f"x.{suffix}",
            zoo.plain,
            fps=RATE,
            codec=codec,
            pix_fmt="rgb8" if codec == "gif" else "yuv420p",
        )
        zoo.bytes(f"a {suffix}.mp4", "unreadable", origin.read_bytes())
        origin.unlink()
    _mux(zoo.path("sound alone.mp4", "no_video_stream"), sound=True)
    _mux(zoo.path("sound and cover.mp4", "no_video_stream"), sound=True, cover=True)
    zoo.write("one frame.mp4", "too_short", zoo.plain[:1])
    zoo.write("too short.mp4", "too_short", zoo.plain[:8])
    zoo.write("too short in time.mp4", "too_short", textured(30, 48, 64), fps=60)
    zoo.changed("segment alone.mp4", "unreadable", "fragments.mp4", lambda c: STYP + c[c.index(b"moof") - 4 :])
    zoo.changed("no frames.mp4", "too_short", "fragments.mp4", lambda content: content[: content.index(b"moof") - 4])


def _cut(zoo: Zoo) -> None:
    """Write truncated and incomplete copies of videos."""
    for origin, share, verdict in (
        ("h264.mp4", 0.5, "unreadable"),
        ("h264.mov", 0.95, "unreadable"),
        ("index first.mp4", 0.9, "damaged"),
        ("index first.mp4", 0.5, "damaged"),
        ("fragments.mp4", 0.9, "damaged"),
        ("h264.mkv", 0.7, "damaged"),
        ("ffv1.mkv", 0.5, "damaged"),
        ("vp9.webm", 0.7, "damaged"),
        ("mpeg4.avi", 0.7, "damaged"),
    ):
        stem, suffix = origin.split(".")
        zoo.changed(
            f"{stem} cut at {share}.{suffix}",
            verdict,
            origin,
            lambda content, s=share: content[: int(len(content) * s)],
        )
    zoo.changed("hole.mp4", "damaged", "h264.mp4", lambda c: c[: len(c) // 3] + bytes(2000) + c[len(c) // 3 + 2000 :])
    zoo.changed("missing block.mp4", "damaged", "index first.mp4", lambda c: c[: len(c) // 2] + c[len(c) // 2 + 512 :])


def _changed(zoo: Zoo) -> None:
    """Write videos with wrong headers or flipped bits."""

    def flip(count: int) -> Callable[[bytes], bytes]:
        def change(content: bytes) -> bytes:
            dice, damaged = random.Random(count), bytearray(content)
            first = content.index(b"mdat") + 2000
            for _ in range(count):
                damaged[dice.randrange(first, first + 8000)] ^= 1 << dice.randrange(8)
            return bytes(damaged)

        return change

    for count in (10, 40):
        zoo.changed(f"{count} flipped bits.mp4", "damaged", "h264.mp4", flip(count))
    zoo.changed("unknown codec.mp4", "unreadable", "h264.mp4", lambda c: c.replace(b"avc1", b"xxxx"))
    zoo.changed("no index.mp4", "damaged", "h264.mp4", lambda c: c.replace(b"moov", b"free"))
    zoo.changed("no sizes.mp4", "damaged", "h264.mp4", lambda c: _zero(c, b"stsz", 12, 4))
    zoo.changed("lies about its length.mp4", KEPT, "h264.mp4", lambda c: _put(c, b"mvhd", 20, struct.pack(">I", 2**30)))
    zoo.changed("lies about its length.mkv", "damaged", "h264.mkv", _ten_times_longer)
    zoo.changed("more frames than there are.mp4", "damaged", "h264.mp4", _more_samples)


def _odd(zoo: Zoo) -> None:
    frames = [textured(4), textured(12, 64, 64)]
    _joined(zoo.path("changes its size.mkv", "changing_size"), frames)
    _without_first(zoo.folder / "one key frame.mp4", zoo.path("no key frame.mkv", "too_short"))
    _huge_header(zoo.folder / "ffv1.mkv", zoo.path("says it is 60000 wide.mkv", "damaged"))


def _put(content: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    at = content.index(box) + offset
    return content[:at] + value + content[at + len(value) :]


def _zero(content: bytes, box: bytes, offset: int, count: int) -> bytes:
    return _put(content, box, offset, bytes(count))


def _more_samples(content: bytes) -> bytes:
    """Change the table of sample sizes so that the table describes more bytes than the file has."""
    at = content.index(b"stsz") + 16
    count = struct.unpack(">I", content[at - 4 : at])[0]
    return content[:at] + struct.pack(">I", 2**28) * count + content[at + 4 * count :]


def _ten_times_longer(content: bytes) -> bytes:
    """Multiply Matroska's Duration (element id 4489, a double) by ten."""
    at = content.index(b"\x44\x89\x88") + 3
    return content[:at] + struct.pack(">d", 10 * struct.unpack(">d", content[at : at + 8])[0]) + content[at + 8 :]


def _mux(path: Path, *videos: np.ndarray, sound: bool = False, cover: bool = False) -> None:
    with av.open(str(path), "w") as container:
        streams = []
        for frames in videos:
            stream = container.add_stream("libx264", rate=RATE)
            stream.height, stream.width, stream.pix_fmt = 96, 128, "yuv420p"
            streams.append((stream, frames))
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.height, picture.width, picture.pix_fmt = 32, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
        if sound:
            wave = container.add_stream("aac", rate=16_000, layout="mono")
        for stream, frames in streams:
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        if cover:
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
            container.mux(picture.encode())
        if sound:
            for index in range(SECONDS * 16):
                piece = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                piece.sample_rate, piece.pts = 16_000, index * 1024
                container.mux(wave.encode(piece))
            container.mux(wave.encode())


def _joined(path: Path, parts: list[np.ndarray]) -> None:
    """Write a stream whose frames change in size, like the recording of a window that is resized."""
    packets: list[bytes] = []
    for number, frames in enumerate(parts):
        raw = write_source(path.with_name(f"part{number}.h264"), frames, fps=RATE, stream={"bf": "0"})
        with av.open(str(raw)) as container:
            packets += [bytes(packet) for packet in container.demux(video=0) if packet.size]
        raw.unlink()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = parts[0].shape[1], parts[0].shape[2], "yuv420p"
        for index, content in enumerate(packets):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, Fraction(1, RATE), index, index
            packet.is_keyframe = index in (0, len(parts[0]))
            container.mux(packet)


def _without_first(origin: Path, path: Path) -> None:
    """Copy a stream without its only key frame."""
    with av.open(str(origin)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in itertools.islice(_packets(source), 1, None):
            packet.stream = stream
            container.mux(packet)


def _packets(container: Any) -> Iterator[Any]:
    return (packet for packet in container.demux(video=0) if packet.size)


def _huge_header(origin: Path, path: Path) -> None:
    """Set Matroska's PixelWidth and PixelHeight (element ids b0 and ba) to 60000, which would need 11 GB per frame."""
    content = origin.read_bytes()
    at = content.index(b"\xb0\x81\x80\xba\x81\x60")
    path.write_bytes(content[:at] + b"\xb0\x82\xea\x60\xba\x82\xea\x60"[:6] + content[at + 6 :])
