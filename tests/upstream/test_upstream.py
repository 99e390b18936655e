"""ipyparallel's own tests, run against the alias.

The test modules are not here: ``conftest.py`` takes them from the installed ipyparallel wheel
and collects them in the place of this file, so that one test is named, for example::

    tests/upstream/test_upstream.py::test_view.py::TestView::test_push_pull

``exclusions.toml`` lists what is left out and why, ``pending.toml`` what does not pass yet.
"""
