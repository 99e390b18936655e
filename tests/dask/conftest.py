"""What Dask alone has: its dashboard, and clusters that somebody else runs.  What every backend
has is in ``tests/conformance``."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pxcompat as ipp

#: seconds for anything to happen that a test waits for
PATIENCE = 30

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,900",
)


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Wait until a condition holds; its value."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not so after {timeout} s: {condition}"
        time.sleep(0.05)
    return value


@pytest.fixture(scope="package", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Profiles of our own, no progress bars, and temporary files where they can be counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patch.setenv("PXCOMPAT_NONINTERACTIVE", "1")
        with tempfile.TemporaryDirectory(prefix="px") as folder:
            patch.setenv("TMPDIR", folder)
            patch.setattr(tempfile, "tempdir", folder)
            yield


@pytest.fixture(scope="module")
def rc(environment: None) -> Iterator[ipp.Client]:
    """A client of a cluster with two engines, whose dashboard is up."""
    with (
        ipp.Cluster(n=2, backend="dask", cluster_id="dask-tests") as client,
    ):
        client.wait_for_engines(2, timeout=PATIENCE)
        yield client


@pytest.fixture(scope="module")
def browser(environment: None) -> Iterator[Any]:
    """A headless Chromium."""
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no Chromium with its chromedriver; .ci/run installs them")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    with tempfile.TemporaryDirectory(prefix="px", ignore_cleanup_errors=True) as folder:
        for flag in (*FLAGS, f"--user-data-dir={os.path.join(folder, 'profile')}"):
            options.add_argument(flag)
        driven = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        yield driven
        driven.quit()
