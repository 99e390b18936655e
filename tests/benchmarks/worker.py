"""The process of one system: reads orders from stdin, a JSON line each, and answers on stdout."""

from __future__ import annotations

import json
import os
import sys
import traceback
from typing import Any

from .series import SERIES
from .systems import load


def main(name: str) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the systems print is not an answer
    system = load(name)
    running = 0
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
    if running:
        system.stop()


if __name__ == "__main__":
    main(sys.argv[1])
