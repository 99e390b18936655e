"""What Dask logs beside an engine's requests."""

from __future__ import annotations

from pathlib import Path

import pxcompat as ipp

from ..common import PATIENCE, wait_until
from ..conformance.test_requests import hold


def says(text: str) -> None:
    import logging

    logging.getLogger("distributed.core").warning("warned of %s", text)
    print("printed", text)


def test_what_dask_says_is_no_output_of_a_cell(rc: ipp.Client, tmp_path: Path) -> None:
    ar = rc[:].apply_async(hold, str(tmp_path / "go"))
    mine = {"msg_id": {"$in": ar.msg_ids}, "status": "running"}
    wait_until(lambda: len(rc.db_query(mine)) == len(rc))
    rc.dask_client.run(says, tmp_path.name)  # on the worker's own thread
    (tmp_path / "go").touch()
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert ar.stdout == ar.stderr == [""] * len(rc)
    assert rc.cluster is not None
    (log,) = (s.get_output() for s in rc.cluster.engines.values())
    assert log.count(f"warned of {tmp_path.name}\n") == len(rc)
    assert log.count(f"printed {tmp_path.name}\n") == len(rc)


def test_what_a_cell_has_it_say_is(rc: ipp.Client) -> None:
    ar = rc[:].apply_async(says, "its own")
    ar.get(PATIENCE)
    ar.wait_for_output(PATIENCE)
    assert all(text.endswith("warned of its own\n") for text in ar.stderr)
    assert ar.stdout == ["printed its own\n"] * len(rc)
