import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.provenance import ROOT
from cluster.settings import Settings


def test_home_is_in_the_repository_wherever_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.home == ROOT / ".towerline"
    assert settings.tracking_uri == f"sqlite:///{ROOT}/.towerline/mlflow.db"


def test_reading_settings_writes_nothing(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    assert settings.tracking_uri
    assert not settings.home.exists()


def test_the_environment_sets_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWERLINE_SERVE_PORT", "9001")
    assert Settings().serve_port == 9001


@pytest.mark.parametrize("home", ["relative", "", "./.towerline"])
def test_a_relative_home_is_refused(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setenv("TOWERLINE_HOME", home)
    with pytest.raises(ValidationError, match="a relative path"):
        Settings()


def test_a_submitted_job_has_no_default_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ValidationError, match="a submitted job needs TOWERLINE_HOME"):
        Settings()
    assert Settings(home=tmp_path).home == tmp_path


@pytest.mark.parametrize(("field", "value"), [("serve_port", "70000"), ("num_cpus", "0"), ("dashboard_port", "x")])
def test_a_value_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, field: str, value: str) -> None:
    monkeypatch.setenv(f"TOWERLINE_{field.upper()}", value)
    with pytest.raises(ValidationError, match=field):
        Settings()


def test_importing_any_module_writes_nothing(tmp_path: Path) -> None:
    """No module does input or output when imported: a fresh process that imports all of them leaves no file behind."""
    root = Path(__file__).resolve().parents[2]
    rooms = ("cluster", "data", "train", "tune", "serve", "jobs")
    files = [path for room in rooms for path in (root / room).rglob("*.py")]
    modules = [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files]
    script = "import importlib, sys; [importlib.import_module(name) for name in sys.argv[1:]]"
    environment = {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", script, *sorted(modules)], cwd=tmp_path, env=environment, check=True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
