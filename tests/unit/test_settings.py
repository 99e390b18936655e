"""Where settings come from, and what is said of bad ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pxcompat import backends
from pxcompat.cluster import profiles, settings as settings_module
from pxcompat.cluster.profiles import Profile
from pxcompat.cluster.settings import (
    PxCompat,
    SettingError,
    cpu_count,
    load_config,
    write_config,
)
from pxcompat.error import ConnectionFileError

from ..common import logged


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("PXCOMPAT_", "IPP_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setattr(backends, "names", lambda: ["dask", "other"])


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    (tmp_path / "profile_p").mkdir()
    return profiles.find("p")


def configure(profile: Profile, text: str) -> None:
    profile.config_file.write_text("c = get_config()\n" + text)


class TestOrder:
    def test_default(self, profile: Profile) -> None:
        settings = PxCompat.resolve(profile)
        assert (settings.backend, settings.n, settings.address) == ("dask", None, "")
        assert settings.timeout == 10

    def test_file_before_default(self, profile: Profile) -> None:
        configure(profile, "c.PxCompat.n = 3\nc.PxCompat.backend = 'other'")
        settings = PxCompat.resolve(profile)
        assert (settings.n, settings.backend) == (3, "other")

    def test_variable_before_file(self, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
        configure(profile, "c.PxCompat.n = 3")
        monkeypatch.setenv("PXCOMPAT_N", "5")
        assert PxCompat.resolve(profile).n == 5

    def test_argument_before_variable(
        self, profile: Profile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configure(profile, "c.PxCompat.n = 3")
        monkeypatch.setenv("PXCOMPAT_N", "5")
        assert PxCompat.resolve(profile, n=7).n == 7

    def test_empty_variable_and_absent_argument_say_nothing(
        self, profile: Profile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configure(profile, "c.PxCompat.n = 3")
        monkeypatch.setenv("PXCOMPAT_N", "")
        assert PxCompat.resolve(profile, n=None).n == 3

    def test_a_section_of_its_own_before_the_common_one(self, profile: Profile) -> None:
        configure(profile, "c.PxCompat.n = 3\nc.Cluster.n = 4")
        assert PxCompat.resolve(profile).n == 3
        assert PxCompat.resolve(profile, sections=("Cluster", "PxCompat")).n == 4

    @pytest.mark.parametrize(
        "variable, text, name, value",
        [
            ("PXCOMPAT_BACKEND", "other", "backend", "other"),
            ("PXCOMPAT_ADDRESS", "tcp://h:1", "address", "tcp://h:1"),
            ("PXCOMPAT_CLUSTER_ID", "x", "cluster_id", "x"),
            ("PXCOMPAT_TIMEOUT", "2.5", "timeout", 2.5),
            ("PXCOMPAT_START_TIMEOUT", "9", "start_timeout", 9.0),
            ("PXCOMPAT_NONINTERACTIVE", "1", "noninteractive", True),
            ("PXCOMPAT_NONINTERACTIVE", "false", "noninteractive", False),
        ],
    )
    def test_every_variable(
        self,
        profile: Profile,
        monkeypatch: pytest.MonkeyPatch,
        variable: str,
        text: str,
        name: str,
        value: Any,
    ) -> None:
        monkeypatch.setenv(variable, text)
        assert getattr(PxCompat.resolve(profile), name) == value

    def test_json_is_read_too_and_python_wins(self, profile: Profile) -> None:
        profile.config_file.with_suffix(".json").write_text(
            '{"PxCompat": {"n": 2, "address": "tcp://h:1"}}'
        )
        configure(profile, "c.PxCompat.n = 3")
        settings = PxCompat.resolve(profile)
        assert (settings.n, settings.address) == (3, "tcp://h:1")

    def test_options_of_the_backend_chosen(self, profile: Profile) -> None:
        configure(profile, "c.DaskBackend.tls = False\nc.OtherBackend.x = 1")
        assert PxCompat.resolve(profile).options == {"tls": False}
        assert PxCompat.resolve(profile, backend="other").options == {"x": 1}


class TestBadValues:
    @pytest.mark.parametrize(
        "variable, value",
        [
            ("PXCOMPAT_N", "many"),
            ("PXCOMPAT_N", "0"),
            ("PXCOMPAT_BACKEND", "dsak"),
            ("PXCOMPAT_TIMEOUT", "-1"),
            ("PXCOMPAT_NONINTERACTIVE", "perhaps"),
        ],
    )
    def test_variable(
        self, profile: Profile, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
    ) -> None:
        monkeypatch.setenv(variable, value)
        with pytest.raises(SettingError, match=f"variable {variable} = '{value}'"):
            PxCompat.resolve(profile)

    @pytest.mark.parametrize("line", ["n = 'many'", "n = -2", "backend = 'dsak'", "timeout = 'x'"])
    def test_file(self, profile: Profile, line: str) -> None:
        configure(profile, f"c.PxCompat.{line}")
        name, _, value = line.partition(" = ")
        with pytest.raises(SettingError) as raised:
            PxCompat.resolve(profile)
        assert f"{profile.config_file}: c.PxCompat.{name} = {value}" in str(raised.value)

    def test_argument(self, profile: Profile) -> None:
        with pytest.raises(SettingError, match=r"argument n = 'many'"):
            PxCompat.resolve(profile, n="many")

    def test_misspelt_setting(self, profile: Profile) -> None:
        configure(profile, "c.PxCompat.bakend = 'dask'")
        with pytest.raises(SettingError, match=r"PxCompat\.bakend; did you mean 'backend'"):
            PxCompat.resolve(profile)

    def test_file_that_raises(self, profile: Profile) -> None:
        configure(profile, "1 / 0")
        with pytest.raises(SettingError, match=r"pxcompat_config\.py: ZeroDivisionError"):
            PxCompat.resolve(profile)

    def test_file_with_a_syntax_error(self, profile: Profile) -> None:
        configure(profile, "c.PxCompat.n =")
        with pytest.raises(SettingError, match=r"pxcompat_config\.py: SyntaxError"):
            PxCompat.resolve(profile)


class TestMisspeltVariables:
    @pytest.fixture(autouse=True)
    def nothing_is_said_yet(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(settings_module, "_misspelt", set())

    def test_are_warned_of_once(
        self, profile: Profile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setenv("PXCOMPAT_BACKND", "ray")
        monkeypatch.setenv("PXCOMPAT_QQQQQ", "1")
        for _ in range(2):
            assert PxCompat.resolve(profile).backend == "dask"
        said = sorted(logged(caplog))
        assert [text.partition(" is not used")[0] for text in said] == [
            "variable PXCOMPAT_BACKND",
            "variable PXCOMPAT_QQQQQ",
        ]
        assert "did you mean PXCOMPAT_BACKEND?" in said[0]
        assert "there are PXCOMPAT_" in said[1]

    def test_others_that_are_ours_are_none(
        self, profile: Profile, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("PROFILE", "PROFILE_DIR", "TEST_BACKEND", "N"):
            monkeypatch.setenv(f"PXCOMPAT_{name}", "1")
        PxCompat.resolve(profile)
        assert not logged(caplog)


def test_one_engine_for_each_cpu_we_may_use(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert cpu_count() == 3
    assert PxCompat.resolve(profile).engines == 3
    assert PxCompat.resolve(profile, n=2).engines == 2


@pytest.mark.parametrize("variable", ["PXCOMPAT_NONINTERACTIVE", "IPP_NONINTERACTIVE"])
def test_progress_bars_can_be_unwanted(
    profile: Profile, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    assert PxCompat.resolve(profile).progress
    monkeypatch.setenv(variable, "1")
    assert not PxCompat.resolve(profile).progress


def test_written_configuration_explains_and_sets_nothing(profile: Profile) -> None:
    from pxcompat.cluster import Cluster

    write_config(profile.config_file, [PxCompat, Cluster])
    text = profile.config_file.read_text()
    assert "# c.PxCompat.backend = 'dask'" in text
    assert "PXCOMPAT_BACKEND" in text
    assert "# c.Cluster.engine_timeout = 60" in text
    assert load_config(profile) == {}
    assert PxCompat.resolve(profile).backend == "dask"


class TestProfiles:
    def test_named(self, profile: Profile, tmp_path: Path) -> None:
        assert profile == Profile("p", tmp_path / "profile_p")

    def test_default_need_not_exist(self, tmp_path: Path) -> None:
        assert profiles.find() == Profile("default", tmp_path / "profile_default")
        assert not (tmp_path / "profile_default").exists()

    def test_variable(self, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PXCOMPAT_PROFILE", "p")
        assert profiles.find() == profile
        assert profiles.find("default").name == "default"

    def test_no_such_profile(self, profile: Profile) -> None:
        with pytest.raises(ConnectionFileError, match=r"no IPython profile 'q'.*: p\..*create q"):
            profiles.find("q")

    def test_no_such_profile_by_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PXCOMPAT_PROFILE", "q")
        with pytest.raises(ConnectionFileError, match="named by PXCOMPAT_PROFILE"):
            profiles.find()

    def test_directory(self, profile: Profile, tmp_path: Path) -> None:
        assert profiles.find(profile_dir=tmp_path / "profile_p") == profile
        assert profiles.find(profile_dir=tmp_path).name == str(tmp_path)

    def test_no_such_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConnectionFileError, match=r"no profile directory .*nowhere"):
            profiles.find(profile_dir=tmp_path / "nowhere")

    def test_ipython_dir(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / "profile_q").mkdir(parents=True)
        assert profiles.find("q", ipython_dir=elsewhere).path == elsewhere / "profile_q"

    def test_the_session_s_profile(self, profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(profiles, "_session_profile_dir", lambda: profile.path)
        assert profiles.find() == profile
        assert profiles.find("default").name == "default"

    def test_created_with_a_closed_security_folder(self, tmp_path: Path) -> None:
        new = profiles.find("new", must_exist=False)
        profiles.create(new)
        assert new.security_dir.stat().st_mode & 0o777 == 0o700
        assert new in profiles.all_profiles()

    @pytest.mark.parametrize("bad", ["a/b", "..", "."])
    def test_cluster_id_is_no_path(self, profile: Profile, bad: str) -> None:
        with pytest.raises(ValueError, match="cluster_id"):
            profile.connection_file(bad)
