"""Tests of the headline numbers."""

from causvid.reporting import summary


def test_the_headline_numbers_are_those_of_the_student() -> None:
    judge, speed = {"velocity": 0.5, "motion": 1}, {"first_frame_s": 0.25, "fps": 100.0}
    results = {
        "evaluate/teacher": {"judge": {"velocity": 0.9}, "frechet_distance": 1.0},
        "evaluate/dmd": {"judge": judge, "frechet_distance": 2.0, "table4": {"temporal": 90.0, "frame": 80.0}},
        "measure_latency": {"teacher": {"first_frame_s": 1.0, "fps": 10.0}, "student": speed},
    }
    scores = {"velocity": 0.5, "motion": 1.0, "frechet": 2.0, "temporal": 90.0, "frame": 80.0}
    assert summary.values(results) == {**scores, "first_frame_s": 0.25, "fps": 100.0}
    assert summary.values(results, summary.SCORES) == scores


def test_numbers_that_were_not_measured_are_absent() -> None:
    assert summary.values({}) == {}
    assert summary.values({"evaluate/dmd": {"judge": {"velocity": None}}}) == {}
