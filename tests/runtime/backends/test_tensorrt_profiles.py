"""Which profile takes which rows of a batch, and what stands in the padded cells."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mexma_rt import BackendError
from mexma_rt.backends.profiles import GRAPH_CELLS, Piece, pad, plan, runs_as_graph
from mexma_rt.backends.sidecar import Profile

SHAPES = [(1, 32), (1, 128), (8, 64), (512, 32), (128, 128), (32, 512)]
DEFAULT = tuple(Profile(batch=batch, length=length) for batch, length in SHAPES)


def piece(profile: int, start: int, stop: int, *shape: int) -> Piece:
    return Piece(profile=profile, start=start, stop=stop, shape=shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "length", "pieces"),
    [
        (1, 5, [piece(0, 0, 1, 1, 32)]),  # a query: the full shape of the small profile
        (1, 33, [piece(1, 0, 1, 1, 128)]),  # and a passage
        (9, 33, [piece(4, 0, 9, 9, 40)]),  # 128x128 and 32x512 have the same area: the shorter; 9 x 33 cells are made 9 x 40
        (2, 5, [piece(2, 0, 2, 2, 8)]),  # not padded to the full shape of a large profile, but to 16 cells
        (512, 32, [piece(3, 0, 512, 512, 32)]),
        (513, 30, [piece(3, 0, 512, 512, 30), piece(0, 512, 513, 1, 32)]),  # what is left is planned anew
        (1300, 21, [piece(3, 0, 512, 512, 21), piece(3, 512, 1024, 512, 21), piece(3, 1024, 1300, 276, 22)]),
        (70, 512, [piece(5, 0, 32, 32, 512), piece(5, 32, 64, 32, 512), piece(5, 64, 70, 6, 512)]),
        (0, 7, []),
    ],
)
def test_plans_of_the_default_profiles(rows: int, length: int, pieces: list[Piece]) -> None:
    assert plan(rows, length, DEFAULT) == pieces


def test_a_length_that_is_no_multiple_of_8_ends_the_padding() -> None:
    (only,) = plan(50, 99, (Profile(batch=64, length=99),))
    assert only.shape == (50, 99)
    assert plan(50, 1, (Profile(batch=64, length=99),))[0].shape == (50, 4)
    assert plan(300, 1, (Profile(batch=300, length=2),))[0].shape == (300, 2)  # engines take no single token


PROFILES = st.lists(
    st.builds(Profile, batch=st.integers(1, 40), length=st.integers(2, 80)), min_size=1, max_size=6, unique=True
).map(tuple)


@given(rows=st.integers(0, 200), length=st.integers(1, 80), profiles=PROFILES)
def test_every_row_is_computed_once_in_a_shape_that_the_engine_has(
    rows: int, length: int, profiles: tuple[Profile, ...]
) -> None:
    if max(profile.length for profile in profiles) < length:
        with pytest.raises(BackendError, match=f"Sentences of {length} tokens"):
            plan(rows, length, profiles)
        return
    done = 0
    for part in plan(rows, length, profiles):
        chosen = profiles[part.profile]
        assert part.start == done < part.stop
        assert part.stop - part.start <= part.shape[0] <= chosen.batch
        assert max(length, 2) <= part.shape[1] <= chosen.length
        if runs_as_graph(chosen):
            assert part.shape == (chosen.batch, chosen.length)
        else:
            assert part.shape[0] == part.stop - part.start and part.shape[1] < length + 8
            assert part.shape[0] * part.shape[1] % 8 == 0 or part.shape[1] == chosen.length
        holding = [p for p in profiles if p.length >= length and p.batch >= rows - done]
        if holding:
            assert part.stop == rows
            assert chosen.batch * chosen.length == min(p.batch * p.length for p in holding)
        else:  # as many rows at once as any profile takes
            assert part.stop - part.start == max(p.batch for p in profiles if p.length >= length)
        done = part.stop
    assert done == rows


def test_small_profiles_run_as_graphs() -> None:
    assert [runs_as_graph(profile) for profile in DEFAULT] == [True, True, False, False, False, False]
    assert runs_as_graph(Profile(batch=1, length=GRAPH_CELLS)) and not runs_as_graph(Profile(batch=1, length=GRAPH_CELLS + 1))


def test_a_length_that_no_profile_has_says_what_to_type() -> None:
    profiles = (Profile(batch=1, length=16), Profile(batch=32, length=64))
    message = (
        "Sentences of 65 tokens are longer than the engine was built for: its profiles, rows x tokens, are 1x16, 32x64. "
        "Load with max_length=64, or build it again with a longer profile: --profiles 1x16,32x64,32x65"
    )
    with pytest.raises(BackendError, match=f"^{re.escape(message)}$"):
        plan(3, 65, profiles)


def test_padding_overwrites_what_was_there() -> None:
    into = np.full((3, 4), 99)
    pad(np.array([[5, 6], [7, 8]]), into, 1)
    assert into.tolist() == [[5, 6, 1, 1], [7, 8, 1, 1], [1, 1, 1, 1]]
    pad(np.zeros((3, 4), dtype=np.int64), into, 1)
    assert not into.any()
