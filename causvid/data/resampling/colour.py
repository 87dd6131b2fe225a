"""Read the colour tags of a decoded picture: Y'CbCr matrix, range, transfer function and primaries."""

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

# The keys of these tables are the code points of ITU-T H.273, which FFmpeg uses as they are. Matrices have the names of
# FFmpeg's scale filter.
_UNSPECIFIED = {0, 2, 3}  # matrix 0 is R'G'B', and means nothing for a Y'CbCr picture; 3 is reserved
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}
_HDR: dict[int, Transfer] = {16: "pq", 18: "hlg"}
_NOT_DISPLAYABLE = {8: "linear", 9: "logarithmic", 10: "logarithmic", 17: "SMPTE ST 428-1"}
_WIDE: dict[int, Primaries] = {9: "bt2020", 12: "p3"}
_ODD_PRIMARIES = {8: "film", 10: "CIE XYZ", 11: "DCI-P3 with the white of cinemas"}


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Colour tags as ITU-T H.273 code points; range is 1 for limited, 2 for full and 0 for unspecified."""

    matrix: int
    range: int
    transfer: int
    primaries: int

    @classmethod
    def of(cls, source: VideoFrame | VideoCodecContext) -> Tags:
        """Read the tags of a picture, or those of a stream's header."""
        return cls(
            matrix=int(source.colorspace),
            range=int(source.color_range),
            transfer=int(source.color_trc),
            primaries=int(source.color_primaries),
        )

    def completed_by(self, header: Tags) -> Tags:
        """Take each tag that is unspecified here from ``header``.

        Decoders report limited range for a picture that says nothing, so without any other tag the header's range wins.
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
    """The colours of a picture.

    Attributes:
        kind: Content of the planes.
        matrix: The Y'CbCr matrix, used for the kind ``"ycbcr"`` only.
        assumed: Whether the matrix was derived from the picture's size, because the picture has no tag for it.
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
        """The name of the conversion to BT.709 SDR that the picture needs; None for ordinary video."""
        if self.transfer != "sdr":
            return "tone_map"
        return None if self.primaries == "bt709" else "gamut"

    @property
    def as_written(self) -> bool:
        """Whether causvid.data.videos.video_reader shows the colours of such a Y'CbCr stream correctly.

        Its decoder reads BT.601 and BT.709 by their tags, takes an untagged stream for BT.601, and maps no tones.
        """
        known = self.matrix == "bt601" or (self.matrix == "bt709" and not self.assumed)
        return known and not self.full and self.conversion is None


def colour_of(picture: VideoFrame, header: Tags) -> Colour:
    """Read the colours of ``picture`` from its tags, or from those of its stream's header where it has none.

    If both lack a tag, the rules of video players apply. Y'CbCr without a range tag has limited range; gray without a
    range tag has full range, as FFmpeg writes it. Without a matrix tag, pictures that are at least 1280 pixels wide or
    more than 576 pixels high are BT.709, and smaller ones BT.601. HDR without a matrix or primaries tag is BT.2020.
    The primaries of BT.601 are treated as those of BT.709, which differ little, and all SDR transfer functions as one.

    Args:
        picture: A decoded picture.
        header: The tags of the stream before its first picture was decoded.

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
    """Return the metadata that belong to ``picture``, each as FFmpeg's structure in memory."""
    return {part.type: bytes(part) for part in cast(Iterable[SideData], picture.side_data)}


def _kind(pixels: VideoFormat) -> Kind:
    if pixels.is_rgb or pixels.has_palette or pixels.name.startswith("xyz"):  # FFmpeg's XYZ becomes R'G'B' at once
        return "rgb"
    return "gray" if len([part for part in pixels.components if not part.is_alpha]) < 3 else "ycbcr"


def _check(tags: Tags, kind: Kind, extra: Set[Type]) -> None:
    """Raise Rejection for colours that would come out wrong. extra: The types of the picture's side data."""
    fault = None
    if tags.transfer in _UNSPECIFIED and extra & {Type.DOVI_METADATA, Type.DOVI_RPU_BUFFER}:
        # Profile 5 stores IPT without tags; the profiles whose base layer is Y'CbCr tag it.
        fault = "it is Dolby Vision without an HDR10, HLG or SDR base layer"
    elif tags.transfer in _NOT_DISPLAYABLE:
        fault = f"its transfer function is {_NOT_DISPLAYABLE[tags.transfer]}"
    elif tags.primaries in _ODD_PRIMARIES:
        fault = f"its colour primaries are {_ODD_PRIMARIES[tags.primaries]}"
    elif kind == "ycbcr" and tags.matrix not in _MATRICES.keys() | _UNSPECIFIED:
        fault = f"its Y'CbCr matrix is number {tags.matrix} of ITU-T H.273"
    if fault:
        raise Rejection("unsupported_colour", f"{fault}, which is not converted; convert the video to BT.709 first")
