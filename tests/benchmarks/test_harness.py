"""The benchmarks run: one cheap series.  What it measures is nobody's concern here."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from pathlib import Path

import pytest

from . import report, worker
from .__main__ import main
from .series import SERIES


def test_a_series_is_measured_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(
        [
            *("--series", "apply_one", "--systems", "pxcompat-dask,dask-actor"),
            *("--engines", "1", "--rounds", "2", "--scale", "0.01"),
            *("--json", str(tmp_path / "figures.json"), "--plots", str(tmp_path)),
        ]
    )
    out = capsys.readouterr().out
    assert "apply_sync, one engine" in out and "pxcompat-dask" in out
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert set(row["medians"]) == {"pxcompat-dask", "dask-actor"}
    assert all(len(figures) == 2 for figures in row["rounds"].values())
    assert (tmp_path / "apply_one.png").stat().st_size


@pytest.mark.slow
def test_simulated_engines_answer_over_the_real_channel(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    main(
        [
            *("--series", "crowd", "--systems", "pxcompat-dask,dask-actor", "--engines", "2,4"),
            *("--rounds", "2", "--scale", "0.01", "--json", str(path)),
        ]
    )
    (row,) = json.loads(path.read_text())["rows"]  # once, whatever the numbers
    assert row["engines"] == 2
    assert list(row["rounds"]) == ["pxcompat-dask"] and len(row["rounds"]["pxcompat-dask"]) == 1


def test_ratios_are_times_better_than_ipyparallel() -> None:
    def figures(*values: float) -> list[report.Figure]:
        return [report.Figure(value, stolen=0.01) for value in values]

    less, more = report.rows(
        {
            "apply_one": {2: {"ipyparallel": figures(3, 4, 5), "pxcompat-dask": figures(1)}},
            "burst": {2: {"ipyparallel": figures(100), "pxcompat-dask": figures(50)}},
        }
    )
    assert less["ratios"]["pxcompat-dask"] == 4
    assert more["ratios"]["pxcompat-dask"] == 0.5
    assert less["stolen"]["ipyparallel"] == [0.01] * 3


def test_what_was_measured_while_others_had_the_processors_is_measured_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seconds = itertools.accumulate([0.0, 1.0, 0.0, 0.5, 0.0, 0.0, 0.0])
    monkeypatch.setattr(worker, "_stolen", lambda: next(seconds))
    monkeypatch.setattr(time, "monotonic", itertools.count().__next__)
    values = iter([3.0, 2.0, 1.0, 0.0])
    series = dataclasses.replace(SERIES["apply_one"], measure=lambda *_: next(values))
    assert worker.measure(series, None, 1, 1.0) == (1.0, 0.0)  # type: ignore[arg-type]


def test_a_name_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--series", "speed"])
    assert "there are apply_one" in capsys.readouterr().err
