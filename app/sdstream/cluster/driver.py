"""A Ray cluster whose machines run worker processes.

The server is a Ray driver. Each worker process is the child of one actor (host.Host), which is
pinned to the machine that the pool chose. The actor relays the frames of core.messages. Ray lists
the machines, starts the actors, detects the death of processes and machines, and transfers the
frames.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import ray
from ray._private.state import state as ray_state
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorUnavailableError, RayError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sdstream import __version__
from sdstream.cluster.extra import ClusterUnreachable
from sdstream.cluster.files import needs_of
from sdstream.cluster.host import Host
from sdstream.cluster.node import GPU_LABEL, SLOTS
from sdstream.cluster.port import Machine, MachineState
from sdstream.cluster.setup import is_own, split_address
from sdstream.core.messages import Command, Load, Message, encode, unframe
from sdstream.engine.process import LoadRefused, PlaceGone, Spawn
from sdstream.engine.seat import Place
from sdstream.settings import Settings

logger = logging.getLogger(__name__)

#: Time for a TCP connection to the head.
_CONNECT_SECONDS: Final = 5.0
#: Time for Ray to join the cluster; Ray itself would try for minutes.
_JOIN_SECONDS: Final = 20.0
#: Seconds between two queries of the cluster's machines.
_LOOK_SECONDS: Final = 1.0
#: A machine that could not be used gets no workers for this long. Ray detects a death in about 5 s.
_SHUN_SECONDS: Final = 20.0
#: A machine that was lost or left is listed for this long.
_GONE_SECONDS: Final = 3600.0
#: Time for an actor to start: usually four seconds, more if all cores of its machine are busy.
_START_SECONDS: Final = 60.0
#: Time for an actor to end its child.
_END_SECONDS: Final = 15.0
_KILLED: Final = -9

_RemoteHost: Final[Any] = ray.remote(max_restarts=0)(Host)


class RayProcess:
    """A child on another machine (engine.process.Process).

    Args:
        host: The Ray actor that started it.
        pid: Process ID on the actor's machine.
        out_of_reach: Called when the machine does not answer.
    """

    def __init__(self, host: Any, pid: int, out_of_reach: Callable[[], None]) -> None:
        self._host = host
        self._pid = pid
        self._out_of_reach = out_of_reach
        self._memory = 0
        self._frames = host.frames.options(num_returns="streaming").remote()
        self._code: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int:
        """The process id on its machine."""
        return self._pid

    @property
    def resident_bytes(self) -> int:
        """Memory in bytes as of the last event; 0 after the end."""
        return self._memory

    def send(self, command: Command) -> None:
        """Send a command through the actor, which runs its calls in order."""
        if not self._code.done():
            self._host.send.remote(encode(command))

    async def receive(self) -> Message | None:
        """Return the next event, or None if the child has ended or its machine is unreachable."""
        if self._code.done():
            return None
        try:
            frame, number = await (await anext(self._frames))
        except (RayError, StopAsyncIteration) as error:
            # An actor that is temporarily unreachable counts as dead: its job must not wait, and
            # images that it still generates must not be sent twice.
            if isinstance(error, ActorUnavailableError):
                self._out_of_reach()
            self._end_with(PlaceGone(f"worker {self._pid} is unreachable: {_name(error)}"))
            return None
        if not frame:
            self._end_with(number)
            return None
        self._memory = number
        try:
            return unframe(frame)
        except ValueError:
            logger.exception("worker %d wrote a frame that is not a message", self._pid)
            return None

    async def exit_code(self) -> int:
        """Wait for the end and return the exit code; raises PlaceGone."""
        return await asyncio.shield(self._code)

    async def end(self) -> None:
        """Ask the actor to end the child, then kill the actor, which ends the child in any case."""
        if not self._code.done():
            with suppress(RayError, TimeoutError):
                await asyncio.wait_for(_result(self._host.stop.remote()), _END_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the actor; the kernel of its machine then ends the child."""
        ray.kill(self._host)
        self._end_with(_KILLED)

    def _end_with(self, outcome: int | PlaceGone) -> None:
        self._memory = 0
        if self._code.done():
            return
        if isinstance(outcome, int):
            self._code.set_result(outcome)
        else:
            self._code.set_exception(outcome)
            self._code.exception()  # asyncio would log an exception that no caller retrieves


def _look() -> tuple[list[Mapping[str, Any]], Mapping[str, int]]:
    """Return the alive nodes, and a mapping with the ids of those that are draining."""
    return [node for node in ray.nodes() if node["Alive"]], ray_state.get_draining_nodes()


async def _result(reference: Any) -> Any:
    return await reference


def _name(error: BaseException) -> str:
    return type(error).__name__


class RayCluster:
    """The machines of a Ray cluster (implements port.Cluster).

    Args:
        settings: Settings of this server; ``cluster`` is the address of the head.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.cluster is not None
        self._settings = settings
        self._address = settings.cluster
        self._nodes: dict[str, str] = {}
        self._machines: dict[str, Machine] = {}
        self._shunned: dict[str, tuple[float, str]] = {}
        self._gpu_machines: set[str] = set()
        self._on_change: Callable[[], None] = lambda: None
        # The name of an actor begins with the service and an id of this server.
        self._service = ""
        self._front = uuid.uuid4().hex
        self._numbers = itertools.count()

    # --- membership -----------------------------------------------------------------------------

    def join(self) -> None:
        """Become a driver; raises ClusterUnreachable."""
        host, port = split_address(self._address)
        try:
            socket.create_connection((host, port), _CONNECT_SECONDS).close()
        except OSError as error:
            raise ClusterUnreachable(
                f"No Ray head answers at {self._address} ({error.strerror or 'timeout'}). Start "
                "one with 'sdstream cluster head'."
            ) from None
        failure: list[BaseException] = []

        def connect() -> None:
            try:
                ray.init(
                    address=self._address,
                    # If several nodes run on this machine, connect to that of the head.
                    _node_ip_address=socket.gethostbyname(host) if is_own(host) else None,
                    namespace="sdstream",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            except BaseException as error:
                failure.append(error)

        # Use a thread: Ray's own attempts take minutes, and it has no option for a time limit.
        thread = threading.Thread(target=connect, name="ray.init", daemon=True)
        thread.start()
        thread.join(_JOIN_SECONDS)
        if thread.is_alive():
            raise ClusterUnreachable(
                f"The Ray head at {self._address} accepted a connection and did not respond within "
                f"{_JOIN_SECONDS:g} s. Restart it, and check that both have the same token."
            )
        if failure:
            why = " ".join(str(failure[0]).split())[:300]
            raise ClusterUnreachable(f"The Ray head at {self._address} cannot be used: {why}")
        self._take_up(*_look())

    def leave(self) -> None:
        """Disconnect; Ray ends the actors of this driver."""
        ray.shutdown()

    def begin(self, service: str) -> Sequence[str]:
        """Update the machines; return the names of the actors of the service's other servers."""
        self._service = service
        self._take_up(*_look())
        return [
            name
            for name in list_named_actors()
            if name.startswith(f"{service}:") and not name.startswith(f"{service}:{self._front}:")
        ]

    def end_workers(self, names: Sequence[str]) -> None:
        """Kill actors by name."""
        for name in names:
            with suppress(ValueError):  # the actor has ended meanwhile
                ray.kill(ray.get_actor(name))

    def places(self) -> Sequence[Place]:
        """Return the reachable machines."""
        return [m.place for m in self._machines.values() if not m.is_gone]

    def machines(self) -> Sequence[Machine]:
        """Return all machines, including those that left or were lost within the last hour."""
        return [*self._machines.values()]

    async def watch(self, on_change: Callable[[], None], demand: Callable[[], int]) -> None:
        """Update the machines each second, and request workers from Ray's autoscaler."""
        self._on_change = on_change
        # The request of an earlier server stays valid until this server sends another number.
        asked: int | None = None
        while True:
            before = self.places()
            try:
                self._take_up(*await asyncio.to_thread(_look))
                wanted = demand()
                if wanted != asked:
                    await asyncio.to_thread(self._ask_for, wanted)
                    asked = wanted
            except Exception as error:  # of Ray or gRPC; the next round retries
                logger.warning("the head of the cluster does not respond: %s", _name(error))
            if self.places() != before:
                on_change()
            await asyncio.sleep(_LOOK_SECONDS)

    def _ask_for(self, workers: int) -> None:
        resource = "GPU" if self._gpu_machines or not self._machines else SLOTS
        request_resources(bundles=[{resource: 1}] * workers)

    def _take_up(self, nodes: Sequence[Mapping[str, Any]], leaving: Mapping[str, int]) -> None:
        """Update the machines from Ray's nodes and the ids of the draining nodes."""
        now = time.time()
        self._shunned = {n: shun for n, shun in self._shunned.items() if shun[0] > now}
        found: dict[str, Machine] = {}
        self._gpu_machines = {n["NodeManagerAddress"] for n in nodes if n["Resources"].get("GPU")}
        for node in nodes:
            machine = self._machine(node, now, is_leaving=node["NodeID"] in leaving)
            if machine is not None:
                found[machine.name] = machine
                self._nodes[machine.name] = node["NodeID"]
        for name, machine in self._machines.items():
            is_old = machine.is_gone and now - machine.since > _GONE_SECONDS
            if name not in found and not is_old:
                found[name] = self._gone(machine, now)
        known = {m.name for m in self._machines.values() if not m.is_gone}
        for machine in found.values():
            if machine.name not in known and not machine.is_gone:
                logger.info("machine %s has joined", machine.name)
        self._machines = found

    def _machine(self, node: Mapping[str, Any], now: float, *, is_leaving: bool) -> Machine | None:
        """Return the machine of a node; None if the node has no slots for workers."""
        name, resources = node["NodeManagerAddress"], node["Resources"]
        slots = int(resources.get("GPU", 0)) or int(resources.get(SLOTS, 0))
        if not slots:
            return None
        state, reason = MachineState.READY, ""
        if is_leaving:
            state, reason = MachineState.LEAVING, "It was told to stop."
        elif name in self._shunned:
            state, reason = MachineState.SHUNNED, self._shunned[name][1]
        place = Place(
            name,
            budget=int(resources.get("memory", 0)),
            slots=slots,
            gpu_bytes=int(node["Labels"].get(GPU_LABEL, 0)) * 2**20 or None,
            is_open=state is MachineState.READY,
            is_leaving=is_leaving,
        )
        before = self._machines.get(name)
        since = before.since if before is not None and before.state is state else now
        return Machine(name, node["NodeManagerHostname"], state, reason, since, place)

    def _gone(self, machine: Machine, now: float) -> Machine:
        if machine.is_gone:
            return machine
        left = machine.state is MachineState.LEAVING
        logger.log(logging.INFO if left else logging.WARNING, "machine %s is gone", machine.name)
        state = MachineState.LEFT if left else MachineState.LOST
        reason = "It left." if left else "It became unreachable."
        place = replace(machine.place, is_open=False)
        return replace(machine, state=state, reason=reason, since=now, place=place)

    def _shun(self, name: str, reason: str) -> None:
        """Start no workers on a machine until Ray has had time to detect whether it is alive."""
        logger.warning("machine %s gets no workers for %g s: %s", name, _SHUN_SECONDS, reason)
        now = time.time()
        self._shunned[name] = now + _SHUN_SECONDS, reason
        machine = self._machines.get(name)
        if machine is not None and machine.state is MachineState.READY:
            self._machines[name] = replace(
                machine,
                state=MachineState.SHUNNED,
                reason=reason,
                since=now,
                place=replace(machine.place, is_open=False),
            )
            self._on_change()

    # --- processes ------------------------------------------------------------------------------

    def spawner(self, place: str, load: Load, variables: Mapping[str, str]) -> Spawn:
        """Return a function that starts processes on a machine."""

        async def spawn(engine: str, _environment: Mapping[str, str]) -> RayProcess:
            machine = self._machines.get(place)
            if machine is None or machine.state is not MachineState.READY:
                raise PlaceGone(f"the machine {place} does not accept workers")
            needs = await asyncio.to_thread(needs_of, self._settings, load)
            return await self._spawn(machine, engine, needs, variables)

        return spawn

    async def _spawn(
        self, machine: Machine, engine: str, needs: Mapping[str, Any], variables: Mapping[str, str]
    ) -> RayProcess:
        name = machine.name
        has_gpu = name in self._gpu_machines
        actor = _RemoteHost.options(
            name=f"{self._service}:{self._front}:{next(self._numbers)}",
            num_cpus=0,
            num_gpus=1 if has_gpu else 0,
            resources={} if has_gpu else {SLOTS: 1},
            scheduling_strategy=NodeAffinitySchedulingStrategy(self._nodes[name], soft=False),
        )
        try:
            # In a thread: creating a named actor waits for the head.
            host = await asyncio.to_thread(actor.remote)
        except RayError as error:
            self._shun(name, f"It started no worker ({_name(error)}).")
            raise PlaceGone(f"the machine {name} started no worker") from error
        try:
            started = _result(host.start.remote(__version__, engine, needs, variables))
            pid, problems = await asyncio.wait_for(started, _START_SECONDS)
        except (RayError, TimeoutError) as error:
            ray.kill(host)
            self._shun(name, f"It started no worker ({_name(error)}).")
            raise PlaceGone(f"the machine {name} started no worker") from error
        except BaseException:
            ray.kill(host)
            raise
        if problems:
            ray.kill(host)
            self._refuse(name, problems)
        return RayProcess(host, pid, lambda: self._shun(name, "It does not respond."))

    def _refuse(self, name: str, problems: Sequence[str]) -> None:
        """Raise an error for a machine whose version or files differ from those of the server."""
        words = f"The machine {name} cannot load the model: {'; '.join(problems)}."
        self._shun(name, words)
        if any(machine.state is MachineState.READY for machine in self._machines.values()):
            raise PlaceGone(words)
        # No other machine is ready: clients get an error instead of waiting forever.
        raise LoadRefused(words)
