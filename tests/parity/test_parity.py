"""The same lines on a live ipyparallel cluster and on pxcompat: the outcomes are the same.

Or they differ as the snippet says, where pxcompat does better. ``reader.py`` describes the format.
"""

from __future__ import annotations

import pytest

from .conftest import BACKENDS
from .reader import Snippet, load, matches

SNIPPETS = load().values()

# not counting the fixture, which runs them all
pytestmark = [pytest.mark.slow, pytest.mark.timeout(60, func_only=True)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.name)
def test_outcome(snippet: Snippet, backend: str, outcomes: dict[str, dict[str, str]]) -> None:
    theirs = outcomes["ipyparallel"][snippet.name]
    ours = outcomes[backend][snippet.name]
    if not snippet.expected:
        assert ours == theirs, snippet.code
        return
    expected = snippet.expected
    assert matches(expected["ipyparallel"], theirs), f"ipyparallel has changed: {theirs}"
    assert matches(expected["pxcompat"], ours), f"{expected['better']}\n{snippet.code}"
