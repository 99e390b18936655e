"""Copies of buffers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from pxcompat.serialize import memory


@pytest.mark.parametrize("nbytes", [0, 10, memory.HUGE - 1, memory.HUGE, memory.HUGE + 5])
def test_a_copy_is_ones_own_and_writable(nbytes):
    source = np.arange(nbytes, dtype="u1")
    copy = memory.owned(memoryview(source).toreadonly())
    assert copy == source.data and memoryview(copy).nbytes == nbytes
    source[:] = 0
    array = np.frombuffer(copy, dtype="u1")
    assert array.flags.writeable or not nbytes
    assert (array == np.arange(nbytes, dtype="u1")).all()


def test_a_copy_lives_as_long_as_what_is_made_of_it():
    source = np.ones(memory.HUGE)
    head, buffers = pickle.dumps(source, 5, buffer_callback=(kept := []).append), kept
    array = pickle.loads(head, buffers=[memory.owned(b.raw()) for b in buffers])
    array += 1
    assert array.sum() == 2 * memory.HUGE and source.sum() == memory.HUGE


def test_without_huge_pages_it_is_a_copy_too(monkeypatch):
    monkeypatch.setattr(memory, "_MADVICE", None)
    assert memory.owned(bytes(memory.HUGE)) == bytearray(memory.HUGE)
