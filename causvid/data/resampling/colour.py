"""Read the colour tags of a decoded frame: Y'CbCr matrix, range, transfer function and primaries."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from typing import Literal, cast

from av.sidedata.sidedata import SideData, Type
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat
from av.video.frame import VideoFrame

from causvid.data.resampling.rejection import Rejection

Kind = Literal["ycbcr", "gray", "rgb"]
Transfer = Literal["sdr", "pq", "hlg"]
Primaries = Literal["bt709", "bt2020", "p3"]

# The keys of these tables are the code points of ITU-T H.273; FFmpeg uses the same numbers. Names of matrices are the
# names that FFmpeg's scale filter uses.
_UNSPECIFIED = {0, 2, 3}  # matrix 0 is R'G'B', which is meaningless for a Y'CbCr frame; 3 is reserved
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
_HDR: dict[int, Transfer] = {16: "pq", 18: "hlg"}
_NOT_DISPLAYABLE = {8: "linear", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE ST 428-1"}
_WIDE: dict[int, Primaries] = {9: "bt2020", 12: "p3"}
_ODD_PRIMARIES = {8: "film", 10: "CIE XYZ", 11: "DCI-P3 with the DCI white point"}


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Colour tags as code points of ITU-T H.273.

    Attributes:
        matrix: The Y'CbCr matrix.
        range: 0 = unspecified, 1 = limited, 2 = full.
        transfer: The transfer function.
        primaries: The colour primaries.
    """

    matrix: int
    range: int
    transfer: int
    primaries: int

    @classmethod
    def of(cls, source: VideoFrame | VideoCodecContext) -> Tags:
        """Read the tags of a frame or of a stream's header."""
        return cls(
            matrix=int(source.colorspace),
            range=int(source.color_range),
            transfer=int(source.color_trc),
            primaries=int(source.color_primaries),
        )

    def completed_by(self, header: Tags) -> Tags:
        """Return these tags, with each unspecified tag replaced by the same tag of ``header``.

        Decoders report limited range for a frame without a range tag. If the frame has no other tag, the range of
        ``header`` therefore has priority over the range of the frame.
        """
        silent = self.matrix in _UNSPECIFIED and self.transfer in _UNSPECIFIED and self.primaries in _UNSPECIFIED
        return Tags(
            matrix=header.matrix if self.matrix in _UNSPECIFIED else self.matrix,
            range=header.range if header.range and (not self.range or (silent and self.range == 1)) else self.range,
            transfer=header.transfer if self.transfer in _UNSPECIFIED else self.transfer,
            primaries=header.primaries if self.primaries in _UNSPECIFIED else self.primaries,
        )


@dataclass(frozen=True, kw_only=True)
class Colour:
    """The colours of a frame.

    Attributes:
        kind: Content of the planes.
        matrix: The Y'CbCr matrix; only the kind ``"ycbcr"`` uses it.
        assumed: Whether the matrix was derived from the size of the frame, because the frame has no matrix tag.
        full: Whether the range is full; otherwise it is limited.
        transfer: The transfer function.
        primaries: The colour primaries.
    """

    kind: Kind
    matrix: str
    assumed: bool
    full: bool
    transfer: Transfer
    primaries: Primaries

    @property
    def conversion(self) -> Literal["tone_map", "gamut"] | None:
        """The name of the conversion to BT.709 SDR that the frame needs; None for ordinary video."""
        if self.transfer != "sdr":
            return "tone_map"
        return None if self.primaries == "bt709" else "gamut"

    @property
    def as_written(self) -> bool:
        """Whether ``data.videos.video_reader`` decodes the colours of a Y'CbCr stream with these tags correctly.

        The decoder of that module uses the tags of BT.601 and BT.709, assumes BT.601 for a stream without tags, and
        does not apply tone mapping.
        """
        known = self.matrix == "bt601" or (self.matrix == "bt709" and not self.assumed)
        return known and not self.full and self.conversion is None


def colour_of(picture: VideoFrame, header: Tags) -> Colour:
    """Read the colours of a frame from its tags. If the frame lacks a tag, the tag in the stream's header is used.

    If the frame and the header lack a tag, the rules of video players apply. Y'CbCr without a range tag has limited
    range. Gray without a range tag has full range, because FFmpeg writes gray with full range. Without a matrix tag,
    frames that are at least 1280 pixels wide or more than 576 pixels high use BT.709; smaller frames use BT.601. HDR
    without a matrix or primaries tag uses BT.2020. The primaries of BT.601 differ little from the primaries of BT.709,
    and are treated as equal. All SDR transfer functions are treated as equal.

    Args:
        picture: A decoded frame.
        header: The tags in the stream's header, read before the first frame was decoded.

    Raises:
        Rejection: The tags name a matrix, transfer function or primaries that cannot be converted.
    """
    tags = Tags.of(picture).completed_by(header)
    kind = _kind(picture.format)
    _check(tags, kind, side_data(picture).keys())
    transfer = _HDR.get(tags.transfer, "sdr")
    hdr = transfer != "sdr"
    assumed = "bt2020" if hdr else "bt709" if picture.width >= 1280 or picture.height > 576 else "bt601"
    return Colour(
        kind=kind,
        matrix=_MATRICES.get(tags.matrix, assumed),
        assumed=tags.matrix in _UNSPECIFIED,
        full=kind == "rgb" or tags.range == 2 or (kind == "gray" and not tags.range),
        transfer=transfer,
        primaries="bt2020" if hdr and tags.primaries in _UNSPECIFIED else _WIDE.get(tags.primaries, "bt709"),
    )


def side_data(picture: VideoFrame) -> dict[Type, bytes]:
    """Map the types of a frame's metadata to the bytes of FFmpeg's structures."""
    return {part.type: bytes(part) for part in cast(Iterable[SideData], picture.side_data)}


def _kind(pixels: VideoFormat) -> Kind:
    if pixels.is_rgb or pixels.has_palette or pixels.name.startswith("xyz"):  # FFmpeg converts XYZ to R'G'B' itself
        return "rgb"
    return "gray" if len([part for part in pixels.components if not part.is_alpha]) < 3 else "ycbcr"


def _check(tags: Tags, kind: Kind, extra: Set[Type]) -> None:
    """Raise Rejection if the colours cannot be converted. ``extra`` contains the types of the frame's side data."""
    fault = None
    if tags.transfer in _UNSPECIFIED and extra & {Type.DOVI_METADATA, Type.DOVI_RPU_BUFFER}:
        # Dolby Vision profile 5 stores IPT without tags; profiles with a Y'CbCr base layer have tags.
        fault = "the video is Dolby Vision without an HDR10, HLG or SDR base layer"
    elif tags.transfer in _NOT_DISPLAYABLE:
        fault = f"the transfer function is {_NOT_DISPLAYABLE[tags.transfer]}"
    elif tags.primaries in _ODD_PRIMARIES:
        fault = f"the colour primaries are {_ODD_PRIMARIES[tags.primaries]}"
    elif kind == "ycbcr" and tags.matrix not in _MATRICES.keys() | _UNSPECIFIED:
        fault = f"the Y'CbCr matrix is number {tags.matrix} of ITU-T H.273"
    if fault:
        raise Rejection("unsupported_colour", f"{fault}, which is not supported; convert the video to BT.709 first")
