"""The process of one system: reads orders from stdin, a JSON line each, and answers on stdout."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

from .series import SERIES
from .systems import load


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the systems print is not an answer
    # an interrupt is for the one who gives the orders, who then ends us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    system = load(name)
    running = 0
    try:
        for line in sys.stdin:
            order = json.loads(line)
            answer: dict[str, Any] = {}
            try:
                series, n = SERIES[order["series"]], order["engines"]
                if not (hasattr(system, series.needs) and name.startswith(series.only)):
                    answer["value"] = None
                else:
                    wanted = 0 if series.fresh else n
                    if running != wanted:
                        if running:
                            system.stop()
                        running = 0
                        if wanted:
                            system.start(wanted)
                        running = wanted
                    answer["value"] = series.measure(system, n, order["scale"])
            except Exception:
                answer["error"] = traceback.format_exc()
            answers.write(json.dumps(answer) + "\n")
    finally:
        # whatever runs: also when a start was cut short, or there is nobody to answer
        system.stop()


def _end(signum: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + signum)


if __name__ == "__main__":
    main(sys.argv[1])
