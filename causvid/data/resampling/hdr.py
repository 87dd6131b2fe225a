"""Convert HDR and wide-gamut R'G'B' to R'G'B' for a BT.709 SDR display, with the formulas of ITU-R.

Arrays are float64 [..., 3]; luminance is in cd/m2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from causvid.data.resampling.colour import Primaries, Transfer

Array = NDArray[np.float64]

SDR_WHITE = 203.0  # luminance of the HDR reference white of BT.2408 in cd/m2; it becomes the white of SDR
PQ_PEAK = 10_000.0  # largest luminance that PQ can encode, in cd/m2
HLG_PEAK = 1_000.0  # peak luminance in cd/m2 of the reference display of BT.2100, whose system gamma is 1.2
_BT1886_GAMMA = 2.4
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593])
# Chromaticities (x, y) of red, green and blue in BT.709, BT.2020 and SMPTE EG 432-1. All three have the white D65.
_PRIMARIES: dict[Primaries, Array] = {
    "bt709": np.array([[0.640, 0.330], [0.300, 0.600], [0.150, 0.060]]),
    "bt2020": np.array([[0.708, 0.292], [0.170, 0.797], [0.131, 0.046]]),
    "p3": np.array([[0.680, 0.320], [0.265, 0.690], [0.150, 0.060]]),
}
_D65 = np.array([0.3127, 0.3290])


def to_bt709(signal: Array, *, transfer: Transfer, primaries: Primaries, peak: float) -> Array:
    """Convert R'G'B' with other primaries or HDR to R'G'B' with BT.709 primaries for a BT.1886 display of gamma 2.4.

    HDR is first converted to the light that its reference display emits. The tone curve then compresses the largest of
    R, G and B, and all three components are scaled by the same factor, which preserves hue and saturation. Colours
    outside BT.709 are clipped.

    Args:
        signal: Values from 0 to 1, [..., 3].
        transfer: The transfer function of ``signal``.
        primaries: The primaries of ``signal``.
        peak: The luminance of the brightest highlights of HDR, in cd/m2. SDR does not use this value.

    Returns:
        Values from 0 to 1, [..., 3].
    """
    matrix = gamut_matrix(primaries)
    if transfer == "sdr":
        light = np.maximum(signal**_BT1886_GAMMA @ matrix.T, 0)
    else:
        shown = pq_eotf(signal) if transfer == "pq" else hlg_eotf(signal)
        bright = np.maximum(shown @ matrix.T, 0)
        largest = bright.max(axis=-1, keepdims=True)
        light = bright * (tone_curve(largest, peak=peak) / np.maximum(largest, 1e-6)) / SDR_WHITE
    return np.asarray(np.minimum(light, 1) ** (1 / _BT1886_GAMMA))


def pq_eotf(signal: Array) -> Array:
    """Convert PQ values from 0 to 1 to luminances in cd/m2 (BT.2100, table 4)."""
    m1, m2, c1, c2, c3 = _PQ
    root = np.asarray(signal) ** (1 / m2)
    return np.asarray(PQ_PEAK * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1))


def pq_inverse_eotf(luminance: Array) -> Array:
    """Convert luminances in cd/m2 to PQ values from 0 to 1 (BT.2100, table 4)."""
    m1, m2, c1, c2, c3 = _PQ
    power = (np.asarray(luminance) / PQ_PEAK) ** m1
    return np.asarray(((c1 + c2 * power) / (1 + c3 * power)) ** m2)


_PQ = (2610 / 16384, 2523 / 4096 * 128, 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32)


def hlg_eotf(signal: Array) -> Array:
    """Convert HLG values from 0 to 1 to R, G, B [..., 3] in cd/m2 on a display of 1000 cd/m2 (BT.2100, table 5)."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = scene @ _BT2020_LUMINANCE
    return np.asarray(HLG_PEAK * luminance[..., None] ** 0.2 * scene)


def tone_curve(luminance: Array, *, peak: float) -> Array:
    """Compress luminances in cd/m2 from 0 ... ``peak`` to 0 ... SDR_WHITE (BT.2390 section 5.4.1, EETF).

    Dark and middle tones are unchanged; a Hermite spline in PQ values compresses the highlights.
    """
    top = pq_inverse_eotf(np.array(max(peak, SDR_WHITE)))
    source = np.minimum(pq_inverse_eotf(luminance) / top, 1)
    maximum = pq_inverse_eotf(np.array(SDR_WHITE)) / top
    knee = 1.5 * maximum - 0.5
    t = np.maximum(source - knee, 0) / max(1 - knee, 1e-9)
    spline = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (3 * t**2 - 2 * t**3) * maximum
    return pq_eotf(np.where(source < knee, source, spline) * top)


def gamut_matrix(primaries: Primaries) -> Array:
    """Return the matrix [3, 3] that converts linear R, G, B of ``primaries`` to BT.709 (SMPTE RP 177, BT.2087)."""
    return np.asarray(np.linalg.solve(_to_xyz("bt709"), _to_xyz(primaries)))


def _to_xyz(primaries: Primaries) -> Array:
    """Return the matrix [3, 3] that converts linear R, G, B to CIE XYZ and maps R = G = B = 1 to D65 with Y = 1."""

    def xyz(xy: Array) -> Array:
        return np.array([xy[0] / xy[1], 1.0, (1 - xy[0] - xy[1]) / xy[1]])

    columns = np.stack([xyz(xy) for xy in _PRIMARIES[primaries]], axis=1)
    return np.asarray(columns * np.linalg.solve(columns, xyz(_D65)))
