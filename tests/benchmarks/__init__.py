"""How fast pxcompat is, beside ipyparallel and the engines' own calls.

``python -m tests.benchmarks`` runs them; see ``--help``.
"""
