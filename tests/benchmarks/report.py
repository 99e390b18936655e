"""What came of it: a table, a JSON file, a plot of each series."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from .series import SERIES

__all__ = ["Figure", "Results", "plot", "table", "write"]


class Figure(NamedTuple):
    """What one round measured.

    Attributes
    ----------
    stolen
        Share of the processors' time that this machine, a virtual one, did not get meanwhile.
    """

    value: float
    stolen: float = 0.0


#: series, number of engines, system, and a figure for each round
Results = dict[str, dict[int, dict[str, list[Figure]]]]


def _ratio(series: str, value: float, reference: float) -> float:
    return reference / value if SERIES[series].better == "less" else value / reference


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rows(results: Results) -> list[dict[str, Any]]:
    """One row a series and number of engines: medians, and ratios to ipyparallel."""
    found = []
    for series, by_engines in results.items():
        for engines, by_system in by_engines.items():
            values = {s: [f.value for f in figures] for s, figures in by_system.items()}
            medians = {s: statistics.median(v) for s, v in values.items() if v}
            reference = medians.get("ipyparallel")
            ratios = (
                {s: _ratio(series, m, reference) for s, m in medians.items() if m and reference}
                if reference
                else {}
            )
            found.append(
                {
                    "series": series,
                    "title": SERIES[series].title,
                    "unit": SERIES[series].unit,
                    "engines": engines,
                    "medians": medians,
                    "rounds": values,
                    "stolen": {s: [round(f.stolen, 4) for f in v] for s, v in by_system.items()},
                    "ratios": ratios,
                    "targets": SERIES[series].targets or {},
                    "goal": SERIES[series].goal,
                }
            )
    return found


def table(results: Results, systems: list[str]) -> str:
    """Markdown: the median of each system and, where ipyparallel was measured, how many
    times better than it."""
    lines = [
        "| Series | Engines | " + " | ".join(systems) + " |",
        "| --- | --- | " + " | ".join("---" for _ in systems) + " |",
    ]
    for row in rows(results):
        cells = []
        for system in systems:
            if system not in row["medians"]:
                cells.append("")
                continue
            cell = _short(row["medians"][system])
            if system in row["ratios"] and system != "ipyparallel":
                cell += f" ({row['ratios'][system]:.2g}x"
                wanted = row["targets"].get(system)
                cell += f", wanted {wanted:.2g}x)" if wanted else ")"
            if row["goal"] and system.startswith("pxcompat"):
                cell += f", wanted {row['goal']:.2g}"
            cells.append(cell)
        lines.append(f"| {row['title']}, {row['unit']} | {row['engines']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write(results: Results, about: dict[str, Any], path: Path) -> None:
    """The figures of every round, and what they were measured on."""
    path.write_text(json.dumps({"about": about, "rows": rows(results)}, indent=1) + "\n")


def plot(results: Results, folder: Path) -> None:
    """One PNG a series."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    by_series: dict[str, list[dict[str, Any]]] = {}
    for row in rows(results):
        by_series.setdefault(row["series"], []).append(row)
    for series, group in by_series.items():
        systems = [s for s in group[0]["medians"] if any(s in r["medians"] for r in group)]
        if not systems:
            continue
        figure, axes = pyplot.subplots(figsize=(6, 0.5 + 0.45 * len(systems) * len(group)))
        labels, values = [], []
        for row in group:
            for system in systems:
                if system in row["medians"]:
                    labels.append(f"{system}, {row['engines']} engines")
                    values.append(row["medians"][system])
        colors = ["tab:blue" if label.startswith("pxcompat") else "tab:gray" for label in labels]
        bars = axes.barh(labels, values, color=colors)
        axes.bar_label(bars, [_short(value) for value in values], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.set_title(group[0]["title"], fontsize=10)
        better = "shorter" if SERIES[series].better == "less" else "longer"
        axes.set_xlabel(f"{group[0]['unit']} ({better} is better)")
        figure.tight_layout()
        figure.savefig(folder / f"{series}.png", dpi=80, metadata={"Software": None})
        pyplot.close(figure)
