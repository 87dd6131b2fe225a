"""Draws are functions of their keys and of nothing else."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from causvid.runtime.seeding import derive_seed, generator, normal

KEYS = st.lists(st.integers(-5, 5) | st.text("ab/:1", max_size=3), min_size=1, max_size=3)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        draws.append(normal((3, 4), 0, "noise", 7))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*draws)


@given(first=KEYS, second=KEYS)
def test_other_keys_give_another_seed(first: list[int | str], second: list[int | str]) -> None:
    same = [(type(k), k) for k in first] == [(type(k), k) for k in second]
    assert (derive_seed(*first) == derive_seed(*second)) == same


def test_a_number_is_not_its_digits() -> None:
    assert derive_seed(1, 2) != derive_seed("1", "2")
    assert derive_seed("a", "b") != derive_seed("b", "a")


def test_the_seed_fits_torch_and_is_pinned() -> None:
    """A change of the law would change every result made so far."""
    assert derive_seed(0, "ode_pair", 3) == 8120615221232571146
    assert generator(0, "ode_pair", 3).initial_seed() == derive_seed(0, "ode_pair", 3)


def test_noise_is_standard_normal_float32() -> None:
    noise = normal((100, 100), 5)
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.05
    assert abs(noise.std().item() - 1) < 0.02
