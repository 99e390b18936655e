"""Importing Ray, which happens as a client connects."""

from __future__ import annotations

import subprocess
import sys

from ..common import PATIENCE

INTERRUPTED = """if True:
    import signal
    import sys

    from pxcompat.backends.ray import session

    class Presser:
        pressed = False

        def find_spec(self, name, path=None, target=None):
            if name == "ray._private.worker" and not self.pressed:
                self.pressed = True
                signal.raise_signal(signal.SIGINT)

    sys.meta_path.insert(0, Presser())
    try:
        session.import_ray()
    except KeyboardInterrupt:
        print("interrupted")
    print(session.import_ray().__name__)
"""


def test_ray_can_be_imported_after_a_ctrl_c_in_the_midst_of_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stdout.split() == ["interrupted", "ray"], done.stderr[-3000:]
