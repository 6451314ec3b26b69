"""Workers on a Ray cluster whose machines join, leave, die and hang, with the fake engine.

The tests of this file share machines and run in order, because a machine takes seconds to start.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import httpx2
import psutil
import pytest

from sdstream.cluster.setup import make_token
from tests.integration.test_two_fronts import fronts, state_of
from tests.support.collector import Collector
from tests.support.jobs import ENDINGS, EventStream, Told, begin, wait_for
from tests.support.machines import MACHINE, RayMachines, RayNode, need_ray, ray_machines
from tests.support.postgres import Postgres
from tests.support.servers import Call, ServerProcess, free_port, running_server, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

FIRST: Final = {"Authorization": "Bearer one"}
SECOND: Final = {"Authorization": "Bearer two"}
QUICK: Final[dict[str, Any]] = {"prompt": "a", "size": "64x64", "sample_steps": 3}
LONG: Final[dict[str, Any]] = {"prompt": "step=0.1", "size": "64x64", "sample_steps": 40}

ONE, TWO, THREE = "127.0.0.3", "127.0.0.4", "127.0.0.5"


@pytest.fixture(scope="module")
def machines() -> Iterator[RayMachines]:
    """A Ray head, and a first machine with two slots."""
    with ray_machines() as found:
        found.join(ONE, "--slots", "2")
        yield found


@pytest.fixture(scope="module")
def front(
    machines: RayMachines, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server on the cluster with a worker of its model in each slot."""
    folder = tmp_path_factory.mktemp("front")
    settings = settings_of(machines, folder)
    settings["environment"] |= collector.environment
    with running_server(folder, api_keys="one,two", **settings) as server:
        yield server


def settings_of(machines: RayMachines, folder: Path) -> dict[str, Any]:
    """Write a catalogue and return the settings of a server on the cluster."""
    models = folder / "models.yaml"
    models.write_text(
        "models:\n  - {id: a, family: sd3, files: {model: x}, size: {min: 64}, replicas: auto}\n"
    )
    return {
        "engine": "fake",
        "models": models,
        "cluster": machines.address,
        "cluster_token_file": machines.token,
        "environment": machines.environment(),
    }


def cluster_of(front: ServerProcess) -> dict[str, dict[str, Any]]:
    """Return the machines by name, as the server reports them."""
    answer = httpx2.get(f"{front.url}/v1/cluster", headers=FIRST, timeout=10)
    assert answer.status_code == 200
    return {machine["name"]: machine for machine in answer.json()["machines"]}


def kinds(fields: dict[str, Any]) -> dict[str, type]:
    """Return the type of each field that is always present."""
    return {name: type(value) for name, value in fields.items() if name != "gpu_bytes"}


def loaded(front: ServerProcess, machine: str) -> int:
    """Count the loaded workers of a machine."""
    workers = cluster_of(front).get(machine, {"workers": []})["workers"]
    return len([worker for worker in workers if worker["state"] in ("ready", "busy")])


def busy(front: ServerProcess, machine: str) -> int:
    """Count the workers of a machine that generate."""
    workers = cluster_of(front).get(machine, {"workers": []})["workers"]
    return len([worker for worker in workers if worker["state"] == "busy"])


def until_loaded(front: ServerProcess, machine: str, count: int) -> None:
    """Create jobs until a machine has this many loaded workers."""
    deadline = time.monotonic() + 100
    while loaded(front, machine) < count:
        assert time.monotonic() < deadline, cluster_of(front)
        jobs = [begin(front, {**QUICK, "prompt": "step=0.1"}, FIRST)["id"] for _ in range(6)]
        for job in jobs:
            wait_for(front, job, "completed", headers=FIRST)


def running_on(front: ServerProcess, machine: str, jobs: int) -> list[str]:
    """Begin a job per slot and wait until a machine generates ``jobs`` of them; return all ids."""
    total = sum(m["slots"] for m in cluster_of(front).values() if m["state"] == "ready")
    begun = [begin(front, LONG, FIRST)["id"] for _ in range(total)]
    wait_until(lambda: busy(front, machine) == jobs, 20, "the machine does not generate")
    return begun


def test_nothing_of_ray_is_imported_without_a_cluster(fake_server: ServerProcess) -> None:
    """A server without a cluster does not load Ray, and /v1/cluster lists only its own machine."""
    (machine,) = httpx2.get(f"{fake_server.url}/v1/cluster", timeout=10).json()["machines"]
    assert (machine["name"], machine["state"], machine["slots"]) == ("", "ready", None)
    assert machine["workers"]
    assert machine["free_bytes"] <= machine["memory_bytes"]
    maps = Path(f"/proc/{fake_server.process.pid}/maps").read_text()
    assert "_raylet" not in maps


#: Runs in a separate process, because Ray cannot be unloaded completely.
_CONTRACT: Final = """
import asyncio
from functools import partial
from sdstream.cluster.extra import join
from sdstream.core.messages import Load
from sdstream.settings import Settings
from tests.integration import test_process_port as port

cluster = join(Settings())
spawn = cluster.spawner("127.0.0.3", Load("fake", "sd1", {"model": "x"}, "", {}), {})
start = partial(spawn, "fake", {})
for scenario in (
    port.test_commands_are_obeyed_in_order,
    port.test_a_cancel_ends_a_job_and_not_the_process,
    partial(port.test_a_kill_is_the_end, busy=False),
    partial(port.test_a_kill_is_the_end, busy=True),
    port.test_stop_is_an_orderly_end,
):
    scenario(start=start)


async def watched(seconds):
    watching = cluster.watch(lambda: None, lambda: 3)
    await asyncio.wait((asyncio.ensure_future(watching),), timeout=seconds)


asyncio.run(watched(2))
# Not before: Ray reads the token's variables when it is imported.
from ray.experimental.internal_kv import _internal_kv_get
print(_internal_kv_get("autoscaler_resource_request"))
cluster.leave()
print("kept")
"""


def test_a_process_on_a_machine_keeps_the_contract(machines: RayMachines) -> None:
    """A process on a machine passes the same scenarios as a child of the server.

    It also sends the number of workers that the jobs need to Ray's autoscaler.
    """
    variables = {
        "SDSTREAM_CLUSTER": machines.address,
        "SDSTREAM_CLUSTER_TOKEN_FILE": str(machines.token),
        "PYTHONPATH": os.pathsep.join(["app", "."]),
    }
    done = subprocess.run(
        [sys.executable, "-c", _CONTRACT],
        cwd=Path(__file__).parents[2],
        env={**machines.environment(), **variables},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.stdout.endswith("kept\n"), done.stderr[-3000:]
    assert done.stdout.count('{"sdstream_slots": 1}') == 3


def test_a_front_that_cannot_join_ends_with_a_sentence(
    machines: RayMachines, tmp_path: Path
) -> None:
    """A front that cannot join exits with a message that names the head's address.

    The token is wrong, the head accepts connections without answering, or there is no head. The
    exit code is 1, so that a supervisor starts the front again.
    """
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    with socket.create_server(("127.0.0.2", 0)) as silent, ExitStack() as stack:
        addresses = {
            machines.address: "The Ray head at",
            f"127.0.0.2:{silent.getsockname()[1]}": "The Ray head at",
            f"127.0.0.2:{free_port()}": "No Ray head answers at",
        }
        servers = []
        for number, address in enumerate(addresses):
            folder = tmp_path / str(number)
            folder.mkdir()
            settings: dict[str, Any] = {
                "cluster": address,
                "cluster_token_file": token,
                "engine": "fake",
            }
            running = running_server(folder, wait=False, **settings)
            servers.append(stack.enter_context(running))
        for server, (address, words) in zip(servers, addresses.items(), strict=True):
            assert server.process.wait(200) == 1
            assert f"{words} {address}" in server.log.read_text()


def test_a_machine_waits_for_its_head(tmp_path: Path) -> None:
    """A machine without a head retries, and exits with 0 at SIGTERM."""
    need_ray()
    waiting = RayMachines(tmp_path)
    make_token(waiting.token)
    node = waiting.join(ONE, wait=False)
    wait_until(
        lambda: node.log.read_text().count("no head answers; next attempt") >= 2,
        10,
        "it does not retry",
    )
    assert node.stop() == 0
    assert not waiting.alive()


def test_a_machine_generates(front: ServerProcess, collector: Collector) -> None:
    """A machine generates an image, and is listed with its slots, memory and workers."""
    answer = front.post(QUICK, headers=FIRST)
    assert answer.status_code == 200, answer.text
    assert collector.wait_for(sdstream_machine=ONE).name in ("loading", "image")
    machine = cluster_of(front)[ONE]
    assert (machine["state"], machine["slots"], machine["reason"]) == ("ready", 2, "")
    assert machine["memory_bytes"] > 0
    assert {worker["model"] for worker in machine["workers"]} == {"a"}
    # The page reads these fields.
    assert kinds(machine) == kinds(MACHINE)
    assert kinds(machine["workers"][0]) == kinds(MACHINE["workers"][0])
    assert front.metric("sdstream_worker_up", headers=FIRST, machine=ONE) >= 1
    assert front.metric("sdstream_machines", headers=FIRST, state="ready") == 1


def test_cancel_takes_effect_within_a_step(front: ServerProcess) -> None:
    """A cancel takes effect within a step, and the same worker generates the next image."""
    starts = front.metric("sdstream_worker_starts", headers=FIRST)
    job = begin(front, {**LONG, "prompt": "step=0.2", "sample_steps": 100}, FIRST)["id"]
    wait_for(front, job, "running", headers=FIRST)
    time.sleep(0.5)
    began = time.monotonic()
    httpx2.post(f"{front.url}/v1/jobs/{job}/cancel", headers=FIRST, timeout=10)
    wait_for(front, job, "cancelled", headers=FIRST)
    assert time.monotonic() - began < 5
    assert front.post(QUICK, headers=FIRST).status_code == 200
    assert front.metric("sdstream_worker_starts", headers=FIRST) <= starts + 1


def test_a_machine_joins_and_generates(machines: RayMachines, front: ServerProcess) -> None:
    """A machine can join a running server, which loads the model in each of its slots."""
    machines.join(TWO, "--slots", "2")
    wait_until(lambda: TWO in cluster_of(front), 15, "the machine is not seen")
    until_loaded(front, ONE, 2)
    until_loaded(front, TWO, 2)
    assert cluster_of(front)[TWO]["free_slots"] == 0


def test_two_keys_share_all_workers(front: ServerProcess) -> None:
    """The second key's two jobs do not wait for the sixteen jobs of the first key."""
    # Long enough that few of them have ended when the last one is accepted.
    body = {**QUICK, "prompt": "step=0.2", "sample_steps": 5}
    first = [begin(front, body, FIRST)["id"] for _ in range(16)]
    second = [begin(front, body, SECOND)["id"] for _ in range(2)]
    ended = [wait_for(front, job, "completed", headers=SECOND)["ended"] for job in second]
    others = [wait_for(front, job, "completed", headers=FIRST)["ended"] for job in first]
    assert len([at for at in others if at > max(ended)]) >= 6


def test_a_killed_machine_loses_no_job(machines: RayMachines, front: ServerProcess) -> None:
    """The jobs of a killed machine are generated elsewhere, and count as first attempts."""
    begun = running_on(front, TWO, 2)
    waiting = Call(front, {**QUICK, "stream": True}, FIRST)
    node_at(machines, TWO).kill()
    began = time.monotonic()
    wait_until(lambda: cluster_of(front)[TWO]["state"] != "ready", 10, "it is not noticed")
    assert time.monotonic() - began < 50
    ends = [wait_for(front, job, "completed", headers=FIRST) for job in begun]
    assert [end["attempts"] for end in ends] == [1] * len(begun)
    assert list(waiting.frames())[-1] == b"data: [DONE]\n\n"
    wait_until(lambda: cluster_of(front)[TWO]["state"] == "lost", 20, "it is not given up")
    assert not cluster_of(front)[TWO]["workers"]
    assert len(front.log_lines("is generated again")) >= 2


def test_a_stopped_machine_loses_no_job(machines: RayMachines, front: ServerProcess) -> None:
    """The jobs of a machine that hangs are generated elsewhere; it joins again when it resumes."""
    node = machines.join(THREE, "--slots", "2")
    wait_until(lambda: THREE in cluster_of(front), 15, "the machine is not seen")
    until_loaded(front, THREE, 2)
    begun = running_on(front, THREE, 2)
    stopped = node.signal_all(signal.SIGSTOP)
    began = time.monotonic()
    try:
        wait_until(lambda: busy(front, THREE) == 0, 10, "it is not noticed")
        assert time.monotonic() - began < 50
        ends = [wait_for(front, job, "completed", headers=FIRST) for job in begun]
        assert [end["attempts"] for end in ends] == [1] * len(begun)
    finally:
        for process in stopped:
            if process.is_running():
                process.send_signal(signal.SIGCONT)
    wait_until(lambda: cluster_of(front)[THREE]["state"] == "ready", 60, "it does not come back")


def test_a_machine_leaves_in_order(machines: RayMachines, front: ServerProcess) -> None:
    """A machine that receives SIGTERM finishes its jobs, gets no new ones, and exits."""
    until_loaded(front, THREE, 2)
    lost = len(front.log_lines("is generated again"))
    begun = running_on(front, THREE, 2)
    node = node_at(machines, THREE)
    node.process.terminate()
    wait_until(lambda: cluster_of(front)[THREE]["state"] == "leaving", 20, "it does not leave")
    assert busy(front, THREE) == 2
    later = begin(front, QUICK, FIRST)["id"]
    ends = [wait_for(front, job, "completed", headers=FIRST) for job in (*begun, later)]
    assert [end["attempts"] for end in ends] == [1] * len(ends)
    assert len(front.log_lines("is generated again")) == lost
    assert node.process.wait(120) == 0
    wait_until(lambda: cluster_of(front)[THREE]["state"] == "left", 20, "it is still there")
    assert cluster_of(front)[THREE]["reason"] == "It left."


def node_at(machines: RayMachines, ip: str) -> RayNode:
    """Return the newest machine at an address."""
    return next(node for node in reversed(machines.nodes) if node.ip == ip)


def test_the_front_leaves_no_worker_behind(machines: RayMachines, front: ServerProcess) -> None:
    """No worker survives a killed front: Ray ends its actors, and the kernel their children."""
    begun = running_on(front, ONE, 2)
    assert len(begun) == 2
    front.process.kill()
    wait_until(lambda: not _children(node_at(machines, ONE)), 15, "workers live on")


def _children(node: RayNode) -> set[psutil.Process]:
    found = set()
    for process in node.processes():
        with suppress(psutil.Error):
            if "sdstream.engine.child" in process.cmdline():
                found.add(process)
    return found


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
def test_another_front_takes_over(
    machines: RayMachines, postgres: Postgres, tmp_path: Path, number: signal.Signals
) -> None:
    """Another front takes over when the first is killed or hangs.

    The first front's workers end, all background jobs complete, and readers miss no event. Readers
    reconnect as an EventSource behind a load balancer does.
    """
    node = node_at(machines, ONE)
    with (
        fronts(postgres, tmp_path, **settings_of(machines, tmp_path)) as pair,
        ThreadPoolExecutor(2) as readers,
    ):
        first, second = pair.pair()
        jobs = [begin(first, {**LONG, "sample_steps": 25})["id"] for _ in range(4)]
        wait_until(lambda: busy(first, ONE) == 2, 20, "the machine does not generate")
        before = _children(node)
        waiting = Call(first, {**QUICK, "stream": True})
        waiting.wait_for("queued")
        paths = [f"/v1/jobs/{job}/events" for job in jobs[1:3]]
        reading = [readers.submit(read_to_the_end, (first, second), path) for path in paths]
        time.sleep(1)
        first.process.send_signal(number)
        began = time.monotonic()
        wait_until(lambda: state_of(second) == "ok", 20, second.log.read_text()[-3000:])
        print(f"{number.name}: ready after {time.monotonic() - began:.1f} s")
        wait_until(lambda: not before & _children(node), 10, "workers of the first front live on")
        ends = [wait_for(second, job, *ENDINGS) for job in jobs]
        print(f"all jobs have ended after {time.monotonic() - began:.1f} s")
        if number is signal.SIGSTOP:
            first.process.send_signal(signal.SIGCONT)
            assert first.process.wait(200) == 70
        assert [end["status"] for end in ends] == ["completed"] * len(jobs)
        assert {end["attempts"] for end in ends} == {1, 2}  # two ran, at most
        for seen in (future.result(100) for future in reading):
            numbers = [event.number for event in seen]
            assert numbers == sorted(set(numbers))
            assert [event.name for event in seen if event.name in ENDINGS] == ["completed"]
        lost = httpx2.get(f"{second.url}/v1/jobs", params={"status": "failed"}, timeout=20).json()
        assert [job["error"]["reason"] for job in lost["data"]] == ["interrupted"]
        waiting.leave()
    wait_until(lambda: not _children(node), 15, "workers of the second front live on")


def read_to_the_end(servers: tuple[ServerProcess, ServerProcess], path: str) -> list[Told]:
    """Read a job's events to the end; reconnect after each break with the last event's id."""
    seen: list[Told] = []
    while not seen or seen[-1].name not in ENDINGS:
        last = {"Last-Event-ID": seen[-1].id} if seen else {}
        for server in servers:
            with (
                suppress(OSError, http.client.HTTPException),
                EventStream(server, path, last) as stream,
            ):
                if stream.answer.status == 200:
                    seen.extend(stream.events())
        time.sleep(0.1)
    return seen


def test_the_same_bytes_as_on_one_machine(
    machines: RayMachines, native_server: ServerProcess, tmp_path: Path
) -> None:
    """The runtime generates the same bytes on a machine of the cluster as on a single server."""
    body = {"prompt": "a red circle", "seed": 5, "sample_steps": 4, "response_format": "b64_json"}
    with running_server(
        tmp_path,
        cluster=machines.address,
        cluster_token_file=machines.token,
        environment=machines.environment(),
    ) as server:
        there = server.post(body).json()["data"][0]["b64_json"]
        assert server.metric("sdstream_worker_up", machine=ONE) == 1
    assert there == native_server.post(body).json()["data"][0]["b64_json"]


def test_nothing_is_left(machines: RayMachines) -> None:
    """No process remains after all machines have stopped."""
    for node in reversed(machines.nodes):
        node.stop()
    wait_until(lambda: not machines.alive(), 10, f"these live on: {machines.alive()}")
