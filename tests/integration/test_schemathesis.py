"""The OpenAPI document is true: schemathesis checks every answer against it."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.support.servers import ServerProcess

#: Whether a value is accepted depends on the loaded model, which the schema cannot express.
DEPEND_ON_THE_MODEL = "positive_data_acceptance,negative_data_rejection"

#: 501 is the answer of routes for models that this server does not have; its schema is checked.
CONFIGURATION = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "501"]
"""


@pytest.mark.schemathesis
@pytest.mark.timeout(600)
def test_every_answer_is_as_described(fake_server: ServerProcess, tmp_path: Path) -> None:
    """Valid and invalid requests get the described statuses, content types, schemas and methods."""
    tool = Path(sysconfig.get_path("scripts")) / "schemathesis"
    (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
    command = [
        *(str(tool), "run", f"{fake_server.url}/openapi.json"),
        *("--exclude-checks", DEPEND_ON_THE_MODEL, "--phases", "coverage,fuzzing"),
        *("--max-examples", "15", "--max-time", "180", "--request-timeout", "60"),
        *("--continue-on-failure", "--no-shrink", "--suppress-health-check", "all"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-8000:]
