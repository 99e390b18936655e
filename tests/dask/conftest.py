"""What Dask alone has: its dashboard, and clusters that somebody else runs.  What every backend
has is in ``tests/conformance``."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

import pxcompat as ipp

from ..common import PATIENCE, surroundings

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


@pytest.fixture(scope="package", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with surroundings(tmp_path_factory.mktemp("ipython")):
        yield


@pytest.fixture(scope="module")
def rc(environment: None) -> Iterator[ipp.Client]:
    """A client of a cluster with two engines."""
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
