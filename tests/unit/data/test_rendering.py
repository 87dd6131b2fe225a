"""The colours of decoded frames agree with the ITU-R formulas in every pixel."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from causvid.data.resampling import hdr
from causvid.data.resampling.colour import Colour, Tags, colour_of
from causvid.data.resampling.rejection import Rejection
from causvid.data.resampling.rendering import peak_luminance, renderer
from tests.unit.data.picture_files import (
    FULL,
    LIMITED,
    MATRICES,
    UNSPECIFIED,
    Array,
    halved,
    planes_of,
    signal_of,
    write_planes,
)

TOLERANCE = 2.0  # largest error in steps of 1/255
SIZE = 48


def _patches(height: int = SIZE, width: int = SIZE, block: int = 4) -> Array:
    """Return R'G'B' from 0 to 1 in square blocks; the colours include black, white, and full red, green and blue."""
    blocks = np.random.default_rng(0).uniform(0, 1, (height // block, width // block, 3))
    blocks[0, :5] = [(0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    return blocks.repeat(block, axis=0).repeat(block, axis=1)


def _rendered(path: Path) -> tuple[NDArray[np.uint8], Colour, av.VideoFrame]:
    """Decode and render the first frame of a file at the size stored in the file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        header = Tags.of(stream.codec_context)
        picture = next(container.decode(stream))
        colour = colour_of(picture, header)
        size = (picture.width, picture.height)
        render = renderer(picture, colour, cut=(*size, 0, 0), size=size, time_base=stream.time_base or Fraction(1))
        return render(picture), colour, picture


def _off(path: Path, expected: Array) -> float:
    return float(np.abs(_rendered(path)[0] - 255 * expected).max())


@pytest.mark.parametrize(("matrix", "full", "bits"), list(itertools.product(MATRICES, (False, True), (8, 10))))
def test_each_matrix_range_and_depth_is_within_two_of_255(tmp_path: Path, matrix: str, full: bool, bits: int) -> None:
    planes = planes_of(_patches(), matrix, full=full, bits=bits)
    path = write_planes(
        tmp_path / "a.mkv",
        [planes],
        codec="ffv1",
        pix_fmt="yuv444p" if bits == 8 else "yuv444p10le",
        tags=(MATRICES[matrix], FULL if full else LIMITED, UNSPECIFIED, UNSPECIFIED),
    )
    assert _off(path, signal_of(planes, matrix, full=full, bits=bits)) < TOLERANCE


@pytest.mark.parametrize(("codec", "pix_fmt"), [("libx264", "yuv420p"), ("libx265", "yuv420p10le"), ("prores_ks", "")])
def test_the_tags_of_each_codec_are_followed(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    signal = _patches(160, 160, block=32)
    bits = 8 if pix_fmt == "yuv420p" else 10
    for matrix in ("bt601", "bt709", "bt2020"):
        planes = planes_of(signal, matrix, full=False, bits=bits)
        path = write_planes(
            tmp_path / f"{matrix}.{'mov' if codec == 'prores_ks' else 'mp4'}",
            [planes if codec == "prores_ks" else halved(planes)] * 3,
            codec=codec,
            pix_fmt=pix_fmt or "yuv444p10le",
            tags=(MATRICES[matrix], LIMITED, 1, 1),
            stream={
                "libx264": {"qp": "0"},
                "libx265": {"x265-params": "lossless=1:log-level=none"},
                "prores_ks": {"profile": "4444", "qscale": "1"},
            }[codec],
        )
        shown, colour, _ = _rendered(path)
        assert (colour.matrix, colour.full, colour.conversion) == (matrix, False, None)
        middles = (slice(16, None, 32), slice(16, None, 32))  # 4:2:0 mixes colours at the edges of the patches
        expected = 255 * signal_of(planes, matrix, full=False, bits=bits)
        assert float(np.abs(shown[middles] - expected[middles]).max()) < TOLERANCE, matrix


@pytest.mark.parametrize(
    ("width", "height", "matrix"),
    [(720, 576, "bt601"), (640, 480, "bt601"), (1280, 720, "bt709"), (608, 1080, "bt709"), (1280, 544, "bt709")],
)
def test_the_size_decides_the_matrix_of_a_frame_without_tags(
    tmp_path: Path, width: int, height: int, matrix: str
) -> None:
    planes = planes_of(_patches(height, width), matrix, full=False, bits=8)
    path = write_planes(tmp_path / "a.mkv", [planes], codec="ffv1", pix_fmt="yuv444p")
    assert _off(path, signal_of(planes, matrix, full=False, bits=8)) < TOLERANCE


@pytest.mark.parametrize(("bits", "full"), [(8, False), (8, True), (10, False), (10, True)])
def test_gray_follows_its_range(tmp_path: Path, bits: int, full: bool) -> None:
    signal = _patches()[..., :1].repeat(3, axis=2)
    luma = planes_of(signal, "bt601", full=full, bits=bits)[:1]
    path = write_planes(
        tmp_path / "a.mkv",
        [luma],
        codec="ffv1",
        pix_fmt="gray" if bits == 8 else "gray10le",
        tags=(UNSPECIFIED, FULL if full else LIMITED, UNSPECIFIED, UNSPECIFIED),
    )
    assert _off(path, signal) < TOLERANCE


@pytest.mark.parametrize("pix_fmt", ["gbrp", "gbrp10le", "gbrp12le"])
def test_rgb_is_unchanged(tmp_path: Path, pix_fmt: str) -> None:
    signal, top = _patches(), 2 ** {"gbrp": 8, "gbrp10le": 10, "gbrp12le": 12}[pix_fmt] - 1
    planes = [np.rint(signal[..., part] * top) for part in (1, 2, 0)]
    name, codec = ("a.avi", "utvideo") if pix_fmt == "gbrp" else ("a.mkv", "ffv1")
    path = write_planes(tmp_path / name, [planes], codec=codec, pix_fmt=pix_fmt, tags=(0, FULL, 1, 1))
    assert _off(path, signal) < TOLERANCE


@pytest.mark.parametrize(
    ("primaries", "number", "matrix", "bits"),
    [("bt2020", 9, "bt2020", 10), ("bt2020", 9, "bt2020", 8), ("p3", 12, "bt709", 10)],
)
def test_wide_gamut_sdr_becomes_bt709(
    tmp_path: Path, primaries: hdr.Primaries, number: int, matrix: str, bits: int
) -> None:
    inside = _patches()
    linear = inside**2.4 @ np.linalg.inv(hdr.gamut_matrix(primaries)).T
    signal = np.maximum(linear, 0.0) ** (1 / 2.4)  # rounding makes a black channel slightly negative on some machines
    planes = planes_of(signal, matrix, full=False, bits=bits)
    path = write_planes(
        tmp_path / "a.mkv",
        [planes],
        codec="ffv1",
        pix_fmt="yuv444p" if bits == 8 else "yuv444p10le",
        tags=(MATRICES[matrix], LIMITED, 14, number),
    )
    found, colour, _ = _rendered(path)
    assert (colour.conversion, colour.primaries) == ("gamut", primaries)
    stored = signal_of(planes, matrix, full=False, bits=bits)
    expected = np.clip(stored**2.4 @ hdr.gamut_matrix(primaries).T, 0, 1) ** (1 / 2.4)
    assert float(np.abs(found - 255 * expected).max()) < TOLERANCE
    assert float(np.abs(found - 255 * inside).mean()) < 2  # agreement with the intended colours, before rounding


# --- Tone mapping of HDR


@pytest.mark.parametrize(
    ("transfer", "number", "pix_fmt", "full"),
    [
        ("pq", 16, "yuv444p10le", False),
        ("pq", 16, "yuv444p12le", True),
        ("hlg", 18, "yuv444p10le", False),
        ("hlg", 18, "yuv444p10le", True),
        ("pq", 16, "gbrp10le", True),
        ("hlg", 18, "gray10le", False),
    ],
)
def test_hdr_is_tone_mapped_by_the_formulas(
    tmp_path: Path, transfer: hdr.Transfer, number: int, pix_fmt: str, full: bool
) -> None:
    signal, bits = _patches(), 12 if "12" in pix_fmt else 10
    if pix_fmt == "gray10le":
        signal = signal[..., :1].repeat(3, axis=2)
    planes = planes_of(signal, "bt2020", full=full, bits=bits)
    if pix_fmt == "gbrp10le":
        planes = [np.rint(signal[..., part] * 1023) for part in (1, 2, 0)]
    tags = (0 if pix_fmt == "gbrp10le" else 9, FULL if full else LIMITED, number, 9)
    path = write_planes(
        tmp_path / "a.mkv", [planes[: 1 if "gray" in pix_fmt else 3]], codec="ffv1", pix_fmt=pix_fmt, tags=tags
    )
    peak = hdr.PQ_PEAK if transfer == "pq" else hdr.HLG_PEAK
    stored = planes_signal(planes, pix_fmt, full=full, bits=bits)
    expected = hdr.to_bt709(stored, transfer=transfer, primaries="bt2020", peak=peak)
    found, colour, _ = _rendered(path)
    assert colour.conversion == "tone_map"
    assert float(np.abs(found - 255 * expected).max()) < TOLERANCE


def planes_signal(planes: list[Array], pix_fmt: str, *, full: bool, bits: int) -> Array:
    """Convert integer planes, as stored in a file, to R'G'B'."""
    if pix_fmt == "gbrp10le":
        return np.stack([planes[2], planes[0], planes[1]], axis=-1) / 1023
    if pix_fmt == "gray10le":
        return np.repeat((planes[0][..., None] / 4 - 16) / 219, 3, axis=2).clip(0, 1)
    return signal_of(planes, "bt2020", full=full, bits=bits)


@pytest.mark.parametrize(
    ("transfer", "code", "gray"), [(18, 0.75, 230), (18, 0.38, 109), (16, 0.5807, 230), (16, 0.5081, 189)]
)
def test_reference_levels_have_the_same_brightness_in_hlg_and_pq(
    tmp_path: Path, transfer: int, code: float, gray: int
) -> None:
    """In HLG and in PQ, reference white (203 cd/m2) becomes gray level 230, and 100 cd/m2 becomes gray level 189.

    The peak is 1000 cd/m2.
    """
    flat = np.full((SIZE, SIZE, 3), code)
    path = write_planes(
        tmp_path / "a.mp4",
        [halved(planes_of(flat, "bt2020", full=False, bits=10))] * 3,
        codec="libx265",
        pix_fmt="yuv420p10le",
        tags=(9, LIMITED, transfer, 9),
        stream={"x265-params": "lossless=1:log-level=none:hdr10=1:max-cll=1000,400"},
    )
    assert np.abs(_rendered(path)[0].astype(int) - gray).max() <= 1


@pytest.mark.parametrize(
    ("said", "peak"),
    [
        ("max-cll=1200,300", 1200),
        ("master-display=G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(40000000,50)", 4000),
        ("max-cll=0,0:master-display=G(8500,39850)B(6550,2300)R(35400,14600)WP(15635,16450)L(0,0)", 10000),
        ("max-cll=1,1", 10000),
        ("hdr10=0", 10000),
    ],
)
def test_the_peak_of_pq_is_that_of_its_metadata_if_possible(tmp_path: Path, said: str, peak: int) -> None:
    flat = np.full((SIZE, SIZE, 3), 0.5)
    path = write_planes(
        tmp_path / "a.mkv",
        [halved(planes_of(flat, "bt2020", full=False, bits=10))],
        codec="libx265",
        pix_fmt="yuv420p10le",
        tags=(9, LIMITED, 16, 9),
        stream={"x265-params": f"log-level=none:{said}"},
    )
    _, colour, picture = _rendered(path)
    assert peak_luminance(picture, colour) == peak


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_tags_that_only_the_container_has_are_used(tmp_path: Path, suffix: str) -> None:
    """The HEVC stream inside the container has no colour tags; only the container has colour tags."""
    signal = _patches(64, 64)
    bare = write_planes(
        tmp_path / "bare.mkv",
        [halved(planes_of(signal, "bt2020", full=False, bits=10))] * 3,
        codec="libx265",
        pix_fmt="yuv420p10le",
        stream={"x265-params": "log-level=none"},
    )
    assert _rendered(bare)[1].conversion is None
    tagged = tmp_path / f"tagged.{suffix}"
    with av.open(str(bare)) as source, av.open(str(tagged), "w", options=_colour_box(suffix)) as container:
        track: Any = container.add_stream_from_template(source.streams.video[0])
        context = track.codec_context
        context.colorspace, context.color_range, context.color_trc, context.color_primaries = 9, LIMITED, 18, 9
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = track
                container.mux(packet)
    colour = _rendered(tagged)[1]
    assert (colour.transfer, colour.matrix, colour.primaries) == ("hlg", "bt2020", "bt2020")


def _colour_box(suffix: str) -> dict[str, str]:
    return {} if suffix == "mkv" else {"movflags": "+write_colr"}


def test_hdr_without_matrix_or_primaries_is_bt2020(tmp_path: Path) -> None:
    path = write_planes(
        tmp_path / "a.mkv",
        [planes_of(_patches(), "bt2020", full=False, bits=10)],
        codec="ffv1",
        pix_fmt="yuv444p10le",
        tags=(UNSPECIFIED, LIMITED, 16, UNSPECIFIED),
    )
    colour = _rendered(path)[1]
    assert (colour.matrix, colour.primaries, colour.transfer) == ("bt2020", "bt2020", "pq")


@pytest.mark.parametrize(("transfer", "refused"), [(UNSPECIFIED, True), (16, False), (18, False), (1, False)])
def test_dolby_vision_without_an_ordinary_base_layer_is_rejected(tmp_path: Path, transfer: int, refused: bool) -> None:
    """Profile 5 has no colour tags and stores IPT instead of Y'CbCr; the other profiles tag an ordinary base layer."""
    tags = (UNSPECIFIED, 0, UNSPECIFIED, UNSPECIFIED) if refused else (9, LIMITED, transfer, 9)
    planes = halved(planes_of(_patches(64, 64), "bt2020", full=False, bits=10))
    plain = write_planes(
        tmp_path / "plain.mkv",
        [planes] * 3,
        codec="libx265",
        pix_fmt="yuv420p10le",
        tags=tags,
        stream={"x265-params": "log-level=none"},
    )
    path = tmp_path / "dolby.mkv"
    with av.open(str(plain)) as source, av.open(str(path), "w") as container:
        track: Any = container.add_stream_from_template(source.streams.video[0])
        for stored in source.demux(video=0):
            if stored.size:
                unit = bytes([62 << 1, 1, 0x19]) + bytes(range(1, 20))  # only the presence of the metadata matters
                packet = av.Packet(bytes(stored) + len(unit).to_bytes(4, "big") + unit)
                packet.pts, packet.dts, packet.time_base = stored.pts, stored.dts, stored.time_base
                packet.is_keyframe, packet.stream = stored.is_keyframe, track
                container.mux(packet)
    if refused:
        with pytest.raises(Rejection, match="Dolby Vision") as caught:
            _rendered(path)
        assert caught.value.code == "unsupported_colour"
    else:
        assert _rendered(path)[1].transfer == {16: "pq", 18: "hlg", 1: "sdr"}[transfer]


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ((8, LIMITED, 1, 1), r"matrix is number 8 of"),
        ((14, LIMITED, 16, 9), r"matrix is number 14 of"),
        ((10, LIMITED, 14, 9), r"matrix is number 10 of"),
        ((1, LIMITED, 8, 1), r"transfer function is linear"),
        ((1, LIMITED, 9, 1), r"transfer function is logarithmic"),
        ((1, LIMITED, 1, 11), r"primaries are DCI-P3"),
        ((1, LIMITED, 17, 10), r"SMPTE ST 428-1"),
    ],
)
def test_colours_that_cannot_be_converted_are_rejected(
    tmp_path: Path, tags: tuple[int, int, int, int], said: str
) -> None:
    planes = planes_of(_patches(), "bt709", full=False, bits=8)
    path = write_planes(tmp_path / "a.mkv", [planes], codec="ffv1", pix_fmt="yuv444p", tags=tags)
    with pytest.raises(Rejection, match=said) as caught:
        _rendered(path)
    assert caught.value.code == "unsupported_colour"
