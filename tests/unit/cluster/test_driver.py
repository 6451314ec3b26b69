"""Ray nodes as the machines of the cluster; Ray itself does not run."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sdstream.cluster.port import Cluster, MachineState
from sdstream.settings import Settings
from tests.support.machines import need_ray

pytestmark = pytest.mark.cluster


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import the module, on a clock that moves only when the test moves it."""
    need_ray()
    module = import_module("sdstream.cluster.driver")
    monkeypatch.setattr(module.time, "time", lambda: module.NOW)
    monkeypatch.setattr(module, "NOW", 1000.0, raising=False)
    return module


@pytest.fixture
def cluster(driver: Any) -> Any:
    """The cluster of a front that never joined."""
    return driver.RayCluster(Settings(cluster="192.0.2.1:6379", data_dir=Path("/nowhere")))


def node(address: str, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    """Describe a node in the form in which Ray lists it."""
    return {
        "NodeID": f"id-{address}",
        "NodeManagerAddress": address,
        "NodeManagerHostname": "host",
        "Resources": {"memory": 2**30, **resources},
        "Labels": labels or {},
        "Alive": True,
    }


def states(cluster: Cluster) -> dict[str, MachineState]:
    """Return the state of each machine by its name."""
    return {machine.name: machine.state for machine in cluster.machines()}


def test_slots_are_gpus_or_what_a_machine_offers(cluster: Any) -> None:
    """A head node, and a front's own node, offer no slots and are not listed as machines."""
    gpus = node("a", {"sdstream-gpu-mib": "24576"}, GPU=4, sdstream_slots=1)
    cluster._take_up([gpus, node("b", sdstream_slots=2), node("head")], {})
    first, second = cluster.places()
    assert (first.name, first.slots, first.gpu_bytes) == ("a", 4, 24576 * 2**20)
    assert (second.name, second.slots, second.gpu_bytes) == ("b", 2, None)
    assert second.budget == 2**30
    assert first.is_open


def test_a_machine_leaves_is_lost_and_comes_back(cluster: Any, driver: Any) -> None:
    """A machine may return after it left or was lost; after an hour it is removed from the list."""
    cluster._take_up([node("a", GPU=1), node("b", GPU=1)], {})
    driver.NOW += 7200
    cluster._take_up([node("a", GPU=1)], {"id-a": 0})
    assert states(cluster) == {"a": MachineState.LEAVING, "b": MachineState.LOST}
    (place,) = cluster.places()
    assert (place.is_leaving, place.is_open) == (True, False)
    cluster._take_up([], {})
    reasons = {machine.name: machine.reason for machine in cluster.machines()}
    assert reasons == {"a": "It left.", "b": "It became unreachable."}
    assert cluster.places() == []
    cluster._take_up([node("b", GPU=1)], {})
    assert states(cluster) == {"a": MachineState.LEFT, "b": MachineState.READY}
    driver.NOW += 3601
    cluster._take_up([node("b", GPU=1)], {})
    assert states(cluster) == {"b": MachineState.READY}


def test_a_shunned_machine_is_open_again_after_a_while(cluster: Any, driver: Any) -> None:
    """A shunned machine is listed with the reason, and starts no worker for 20 seconds."""
    cluster._take_up([node("a", GPU=1)], {})
    changes: list[int] = []
    cluster._on_change = lambda: changes.append(1)
    cluster._shun("a", "It does not respond.")
    assert changes == [1]
    (machine,) = cluster.machines()
    assert (machine.state, machine.reason) == (MachineState.SHUNNED, "It does not respond.")
    assert not machine.place.is_open
    driver.NOW += 19
    cluster._take_up([node("a", GPU=1)], {})
    assert states(cluster) == {"a": MachineState.SHUNNED}
    driver.NOW += 2
    cluster._take_up([node("a", GPU=1)], {})
    assert states(cluster) == {"a": MachineState.READY}


def test_what_a_machine_lacks_is_told_when_no_other_one_is_left(cluster: Any, driver: Any) -> None:
    """The next machine is tried; the missing files are reported if there is none."""
    cluster._take_up([node("a", GPU=1), node("b", GPU=1)], {})
    with pytest.raises(driver.PlaceGone):
        cluster._refuse("a", ["--lora-dir lacks ink.safetensors"])
    with pytest.raises(driver.LoadRefused, match=r"The machine b .* lacks ink\.safetensors"):
        cluster._refuse("b", ["--lora-dir lacks ink.safetensors"])


def test_a_front_that_takes_over_ends_the_workers_of_earlier_ones(
    cluster: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only workers of the front's own service are ended, and one may have ended already."""
    own = f"mine:{cluster._front}:0"
    actors = {"mine:dead:0": "a", "mine:dead:1": "b", "other:dead:0": "c", own: "d"}

    def get_actor(name: str) -> str:
        if name == "mine:dead:0":
            raise ValueError(name)
        return actors[name]

    killed: list[str] = []
    monkeypatch.setattr(driver, "list_named_actors", lambda: [*actors])
    monkeypatch.setattr(driver.ray, "get_actor", get_actor)
    monkeypatch.setattr(driver.ray, "kill", killed.append)
    monkeypatch.setattr(driver, "_look", lambda: ([node("a", GPU=1)], {}))
    left = cluster.begin("mine")
    assert (left, killed) == (["mine:dead:0", "mine:dead:1"], [])
    cluster.end_workers(left)
    assert killed == ["b"]
    assert states(cluster) == {"a": MachineState.READY}
