"""Measure every system in one run: round by round, one system after the other, each alone.

A cluster that idles still computes, Ray's most of all: on a machine with few processors one
would measure the neighbours.  So a system has the machine to itself while its series are measured,
and its cluster is gone before the next one's starts.

Nothing here passes or fails.  What a machine says on one day is compared within one run only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from . import report
from .series import SERIES
from .systems import NAMES

ROOT = Path(__file__).parents[2]


class Process:
    """The process of a system."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        environment = {
            **os.environ,
            "IPYTHONDIR": os.path.join(folder, name),
            "PXCOMPAT_NONINTERACTIVE": "1",
        }
        self._log = Path(folder, f"{name}.log")
        with self._log.open("w") as log:
            self._start(log, environment)

    def _start(self, log: IO[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker", self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def measure(self, series: str, engines: int, scale: float) -> report.Figure | None:
        """One figure; None where the system has nothing of that kind, or failed."""
        assert self._process.stdin is not None and self._process.stdout is not None
        order = {"series": series, "engines": engines, "scale": scale}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            tail = self._log.read_text()[-2000:]
            raise RuntimeError(f"{self.name} ended while it measured {series}:\n{tail}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            print(f"{self.name} failed at {series}:\n{answer['error']}", file=sys.stderr)
            return None
        if answer["value"] is None:
            return None
        return report.Figure(answer["value"], answer["stolen"])

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.terminate()  # it ends its cluster first
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    names = ", ".join

    def some(known: Any) -> Any:
        def parse(text: str) -> list[str]:
            chosen = text.split(",")
            wrong = [name for name in chosen if name not in known]
            if wrong:
                raise argparse.ArgumentTypeError(
                    f"unknown: {names(wrong)}; there are {names(known)}"
                )
            return chosen

        return parse

    parser.add_argument(
        "--series", type=some(SERIES), default=list(SERIES), help=f"some of {names(SERIES)}"
    )
    parser.add_argument(
        "--systems", type=some(NAMES), default=list(NAMES), help=f"some of {names(NAMES)}"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--engines", type=lambda text: [int(n) for n in text.split(",")], default=[2, 4]
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="0.1: a tenth of the calls and bytes of each"
    )
    parser.add_argument("--json", type=Path, help="write every figure there")
    parser.add_argument("--plots", type=Path, help="write a PNG a series into this folder")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> report.Results:
    """Measure what was asked for."""
    results: report.Results = {
        series: {
            engines: {}
            for engines in options.engines
            # of these each has numbers of engines of its own
            if not SERIES[series].once or engines == options.engines[0]
        }
        for series in options.series
    }
    # those with a cluster of their own last: the others share one
    order = sorted(options.series, key=lambda series: SERIES[series].fresh)
    with tempfile.TemporaryDirectory(prefix="px-bench-") as folder:
        for engines in options.engines:
            for number in range(options.rounds):
                for system in options.systems:
                    say(f"{engines} engines, round {number + 1} of {options.rounds}: {system}")
                    process = Process(system, folder)
                    try:
                        for series in order:
                            if engines not in results[series] or (SERIES[series].once and number):
                                continue
                            figure = process.measure(series, engines, options.scale)
                            if figure is not None:
                                figures = results[series][engines].setdefault(system, [])
                                figures.append(figure)
                                said = f"{figure.value:.4g} {SERIES[series].unit}"
                                say(f"    {series}: {said} ({figure.stolen:.1%} stolen)")
                    finally:
                        process.close()
    return results


def say(line: str) -> None:
    """Say how far it is."""
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> None:
    options = arguments(argv)
    started = time.strftime("%Y-%m-%d %H:%M")
    results = run(options)
    print(report.table(results, options.systems))
    about = {
        "started": started,
        "machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
        "rounds": options.rounds,
        "scale": options.scale,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("pxcompat", "ipyparallel", "distributed", "ray")},
        },
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        report.write(results, about, options.json)
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        report.plot(results, options.plots)


if __name__ == "__main__":
    # clusters that were started end with it
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    main()
