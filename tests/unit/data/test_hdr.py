"""The HDR formulas agree with the numbers in the ITU recommendations."""

from __future__ import annotations

import numpy as np
import pytest

from causvid.data.resampling import hdr


@pytest.mark.parametrize(
    ("luminance", "code"),
    [(0.0, 0.0), (0.005, 0.0151), (100, 0.5081), (203, 0.5807), (1000, 0.7518), (4000, 0.9026), (10000, 1)],
)
def test_pq_values_are_those_of_bt2408(luminance: float, code: float) -> None:
    found = hdr.pq_inverse_eotf(np.array(luminance))
    assert float(found) == pytest.approx(code, abs=6e-5)
    assert float(hdr.pq_eotf(found)) == pytest.approx(luminance, abs=1e-6)


@pytest.mark.parametrize(("signal", "luminance"), [(0.0, 0.0), (0.38, 26), (0.5, 50.7), (0.75, 203), (1.0, 1000)])
def test_hlg_levels_are_those_of_bt2408(signal: float, luminance: float) -> None:
    """18 % gray has a signal of 38 % and 26 cd/m2. Reference white has a signal of 75 % and 203 cd/m2."""
    assert hdr.hlg_eotf(np.full((1, 3), signal))[0] == pytest.approx(np.full(3, luminance), rel=0.02)


def test_the_two_parts_of_the_hlg_curve_meet() -> None:
    below, above = hdr.hlg_eotf(np.array([[0.5, 0.5, 0.5], [0.5 + 1e-9] * 3]))
    np.testing.assert_allclose(below, above, rtol=1e-6)


def test_the_matrix_from_bt2020_is_that_of_bt2087() -> None:
    published = [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]
    np.testing.assert_allclose(hdr.gamut_matrix("bt2020"), published, atol=6e-5)
    np.testing.assert_allclose(hdr.gamut_matrix("bt709"), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(hdr.gamut_matrix("p3") @ np.ones(3), np.ones(3), atol=1e-12)


@pytest.mark.parametrize("peak", [203.0, 400.0, 1000.0, 4000.0, 10000.0])
def test_the_tone_curve_keeps_dark_tones_and_ends_at_white(peak: float) -> None:
    luminance = np.linspace(0, peak, 5000)
    shown = hdr.tone_curve(luminance, peak=peak)
    assert np.all(np.diff(shown) >= 0)
    assert float(shown[-1]) == pytest.approx(hdr.SDR_WHITE, rel=1e-9)
    assert np.all(shown <= luminance + 1e-9)
    # By BT.2390, nothing changes below the knee at 1.5 * (peak of the target) - 0.5, in PQ relative to the source.
    relative = float(hdr.pq_inverse_eotf(np.array(203.0)) / hdr.pq_inverse_eotf(np.array(peak)))
    knee = float(hdr.pq_eotf((1.5 * relative - 0.5) * hdr.pq_inverse_eotf(np.array(peak))))
    dark = luminance < knee
    np.testing.assert_allclose(shown[dark], luminance[dark], rtol=1e-9, atol=1e-9)


def test_the_slope_is_one_at_the_knee_and_no_highlight_is_clipped_early() -> None:
    relative = float(hdr.pq_inverse_eotf(np.array(203.0)) / hdr.pq_inverse_eotf(np.array(1000.0)))
    knee = float(hdr.pq_eotf((1.5 * relative - 0.5) * hdr.pq_inverse_eotf(np.array(1000.0))))
    around = hdr.tone_curve(knee + np.linspace(-0.1, 0.1, 101), peak=1000)
    np.testing.assert_allclose(np.diff(around), 0.002, rtol=0.005)
    assert float(hdr.tone_curve(np.array(900.0), peak=1000)) < hdr.SDR_WHITE


@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_gray_and_hues_are_preserved(transfer: hdr.Transfer) -> None:
    grays = np.repeat(np.linspace(0, 1, 65)[:, None], 3, axis=1)
    shown = hdr.to_bt709(grays, transfer=transfer, primaries="bt2020", peak=1000)
    np.testing.assert_allclose(shown, shown[:, :1] * np.ones(3), atol=1e-9)
    assert shown[0].max() == 0
    assert float(shown[-1].min()) == pytest.approx(1)
    # The bright orange is inside BT.709. Tone mapping must preserve the ratios of linear red, green and blue.
    orange = np.array([[800.0, 300.0, 60.0]])
    stored = hdr.pq_inverse_eotf(orange @ np.linalg.inv(hdr.gamut_matrix("bt2020")).T)
    linear = hdr.to_bt709(stored, transfer="pq", primaries="bt2020", peak=1000) ** 2.4
    np.testing.assert_allclose(linear / linear.max(), orange / orange.max(), rtol=1e-6)


def test_wide_gamut_sdr_of_a_known_colour() -> None:
    colours = np.random.default_rng(0).uniform(0, 1, (100, 3))
    for primaries in ("bt2020", "p3", "bt709"):
        stored = (colours**2.4 @ np.linalg.inv(hdr.gamut_matrix(primaries)).T) ** (1 / 2.4)
        shown = hdr.to_bt709(stored, transfer="sdr", primaries=primaries, peak=0)
        np.testing.assert_allclose(shown, colours, atol=1e-9)
