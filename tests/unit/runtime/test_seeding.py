"""Random draws depend on their keys only."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from causvid.runtime.seeding import derive_seed, generator, normal

KEYS = st.lists(st.integers(-5, 5) | st.text("ab/:1", max_size=3), min_size=1, max_size=3)


def test_the_global_generator_is_not_used() -> None:
    draws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        draws.append(normal((3, 4), 0, "noise", 7))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*draws)


@given(first=KEYS, second=KEYS)
def test_different_keys_give_different_seeds(first: list[int | str], second: list[int | str]) -> None:
    same = [(type(k), k) for k in first] == [(type(k), k) for k in second]
    assert (derive_seed(*first) == derive_seed(*second)) == same


def test_a_number_and_a_string_of_its_digits_give_different_seeds() -> None:
    assert derive_seed(1, 2) != derive_seed("1", "2")
    assert derive_seed("a", "b") != derive_seed("b", "a")


def test_seeds_fit_torch_and_never_change() -> None:
    """A change of the derived seeds would change all recorded results."""
    assert derive_seed(0, "ode_pair", 3) == 8120615221232571146
    assert generator(0, "ode_pair", 3).initial_seed() == derive_seed(0, "ode_pair", 3)


def test_noise_is_standard_normal_float32() -> None:
    noise = normal((100, 100), 5)
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item()) < 0.05
    assert abs(noise.std().item() - 1) < 0.02
