"""npm's eventsource, a second client besides the browser's EventSource."""

from __future__ import annotations

from tests.support.clients import run_node
from tests.support.jobs import eventsource_path
from tests.support.servers import ServerProcess


def test_a_client_that_is_cut_off_again_and_again(fake_server: ServerProcess) -> None:
    """The client receives every event of one job once, and stops reconnecting after the last
    one."""
    before = fake_server.metric("sdstream_jobs_total")
    path = eventsource_path(prompt="step=0.3", steps=8, size="64x64")
    heard = run_node("eventsource.mjs", fake_server.url + path)
    told = heard["told"]
    numbers = [int(event["id"].rpartition(":")[2]) for event in told]
    assert numbers == [*range(numbers[0], numbers[0] + len(numbers))]
    assert told[-1]["name"] == "completed"
    assert told[-1]["data"]["images"][0]["url"].startswith(fake_server.url)
    assert heard["connections"] >= 3
    assert fake_server.metric("sdstream_jobs_total") == before + 1
