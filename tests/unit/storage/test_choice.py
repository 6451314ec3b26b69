"""The choice of a store by the settings, and the packages it needs."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from sdstream.settings import Settings
from sdstream.storage.choice import database_of, images_of
from sdstream.storage.files import ImageFolder
from sdstream.storage.ports import StoreError
from sdstream.storage.postgres import PostgresDatabase
from sdstream.storage.s3 import ImageBucket
from sdstream.storage.sqlite import SqliteDatabase

ROOT = Path(__file__).parents[3]
SHARED: dict[str, Any] = {
    "database": "postgresql://me:hush@db.example/jobs",
    "images": "s3://bucket/prefix",
}


def test_each_setting_has_its_store(tmp_path: Path) -> None:
    """The default is SQLite and a folder, which a private service uses in any case."""
    plain, shared = Settings(data_dir=tmp_path), Settings(data_dir=tmp_path, **SHARED)
    for settings in (plain, shared.private(tmp_path)):
        assert isinstance(database_of(settings), SqliteDatabase)
        assert isinstance(images_of(settings), ImageFolder)
    assert isinstance(database_of(shared), PostgresDatabase)
    assert isinstance(images_of(shared), ImageBucket)
    assert "hush" not in repr(shared)


def test_extras_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error contains the command to install the missing extra."""
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    settings = Settings(**SHARED)
    with pytest.raises(StoreError, match=r"--database needs an extra: pip install 'sdstream\[pos"):
        database_of(settings)
    with pytest.raises(StoreError, match=r"--images needs an extra: pip install 'sdstream\[s3\]'"):
        images_of(settings)


def test_nothing_is_imported_without_the_settings(tmp_path: Path) -> None:
    """The libraries of PostgreSQL and S3 are not imported without their settings."""
    program = (
        "import sys; from sdstream.web.application import build_app;"
        "from sdstream.settings import Settings; build_app(Settings(engine='fake'));"
        "print({'psycopg', 'boto3', 'botocore'} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": str(ROOT / "app"), "SDSTREAM_DATA_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_flags_of_the_guide_exist() -> None:
    """Every flag in the guide to two servers is a flag of ``sdstream serve``."""
    guide = (ROOT / "docs/deploy/two-fronts.md").read_text().replace("--pwprompt", "")
    others = {"owner", "slots", "gpus"}  # flags of createuser and of ``sdstream cluster join``
    flags = set(re.findall(r"(?<![\w-])--([a-z][a-z-]+)", guide)) - others
    known = {name.replace("_", "-") for name in Settings.model_fields}
    assert flags
    assert flags <= known
