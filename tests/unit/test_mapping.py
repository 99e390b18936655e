"""Sequences are split and put together as ipyparallel does it, and what it fails at works."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest

from pxcompat import serialize
from pxcompat.mapping import Map, RoundRobinMap, as_sequence, dists, mappable


def split(mapping, seq, q, n=None):
    return [mapping.getPartition(seq, p, q, n) for p in range(q)]


def test_contiguous_parts_and_the_first_ones_are_longer():
    assert split(Map(), list(range(8)), 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert split(Map(), list(range(2)), 4) == [[0], [1], [], []]
    assert split(Map(), "abcde", 2) == ["abc", "de"]
    assert split(Map(), range(5), 2) == [range(3), range(3, 5)]


def test_round_robin_parts():
    assert split(RoundRobinMap(), list(range(8)), 3) == [[0, 3, 6], [1, 4, 7], [2, 5]]
    assert split(RoundRobinMap(), list(range(2)), 4) == [[0], [1], [], []]


@pytest.mark.parametrize("kind", ["b", "r"])
@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 101])
@pytest.mark.parametrize("q", [1, 2, 3, 8])
def test_joining_undoes_splitting(kind, n, q):
    mapping = dists[kind]()
    whole = list(range(n))
    assert mapping.joinPartitions(split(mapping, whole, q)) == whole
    array = np.arange(n * 2).reshape(n, 2)
    joined = mapping.joinPartitions(split(mapping, array, q))
    np.testing.assert_array_equal(joined, array)
    assert joined.dtype == array.dtype


def test_a_length_that_is_not_the_sequence_s():
    assert Map().getPartition([0, 1, 2, 3, 4], 1, 2, 4) == [2, 3]
    assert Map().getPartition([0], 1, 2, 4) == []


def test_iterators_sets_and_dicts_are_read_through():
    assert Map().getPartition(count(), 1, 2, 10) == [5, 6, 7, 8, 9]
    assert RoundRobinMap().getPartition(count(), 1, 2, 10) == [1, 3, 5, 7, 9]
    assert Map().getPartition({"a": 1, "b": 2}, 1, 2) == ["b"]


@pytest.mark.parametrize("p, q", [(-1, 2), (2, 2), (0, 0)])
@pytest.mark.parametrize("mapping", [Map(), RoundRobinMap()])
def test_there_is_no_such_part(mapping, p, q):
    with pytest.raises(ValueError, match=f"no part {p} of {q}"):
        mapping.getPartition([1, 2], p, q)


@pytest.mark.parametrize("mapping", [Map(), RoundRobinMap()])
def test_what_is_no_list_or_array_is_left_as_it_is(mapping):
    for parts in ([1, 2], ["ab", "c"], [range(2), range(2, 3)], [{1}, {2}], [None, None]):
        assert mapping.joinPartitions(parts) == parts
    scalars = [np.array(1), np.array(2)]
    assert mapping.joinPartitions(scalars) is scalars


def test_arrays_of_one_kind_stay_of_it():
    big_endian = np.arange(4, dtype=">i4")
    for mapping in (Map(), RoundRobinMap()):
        parts = [mapping.getPartition(big_endian, i, 2) for i in range(2)]
        parts = [serialize.loads(serialize.dumps(part)) for part in parts]
        assert mapping.joinPartitions(parts).dtype.str == ">i4"


def test_parts_of_scatter_flatten_are_joined_though_some_are_items():
    assert Map().joinPartitions([[1, 2], 3]) == [1, 2, 3]
    assert RoundRobinMap().joinPartitions([[1, 3], 2]) == [1, 2, 3]


@pytest.mark.parametrize("mapping", [Map(), RoundRobinMap()])
def test_values_are_left_as_they_are_though_some_are_lists(mapping):
    for parts in ([1, [2], (3, 4)], [None, [2]], ["a", ["b"]]):
        assert mapping.joinPartitions(parts) == parts


def test_mappable():
    assert mappable([]) and mappable(()) and mappable(np.arange(2))
    assert not mappable("a") and not mappable(range(2)) and not mappable(5)


def test_as_sequence_keeps_what_has_slices():
    for sequence in ([1], (1,), "a", range(3), np.arange(3)):
        assert as_sequence(sequence) is sequence
    assert as_sequence({"a": 1}) == ["a"]
    assert as_sequence({5}) == [5]
    assert as_sequence(iter("ab")) == ["a", "b"]
