"""The interface through which the service uses a cluster, and the description of its machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sdstream.core.enums import DescribedEnum
from sdstream.core.messages import Load
from sdstream.engine.process import Spawn
from sdstream.engine.seat import Place


class MachineState(DescribedEnum):
    """Whether a machine takes workers; each value with its one line of meaning."""

    READY = "ready", "accepts workers"
    LEAVING = "leaving", "finishes its jobs and accepts no new ones"
    SHUNNED = "shunned", "failed recently, and gets no workers for a while"
    LOST = "lost", "is unreachable"
    LEFT = "left", "has left the cluster as requested"


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster.

    Attributes:
        name: The machine's address, which is also the name of its place.
        host: The machine's host name.
        state: Whether it accepts workers.
        reason: Why it accepts no workers; empty if it does.
        since: Unix seconds when it entered this state.
        place: The machine as the worker pool sees it.
    """

    name: str
    host: str
    state: MachineState
    reason: str
    since: float
    place: Place

    @property
    def is_gone(self) -> bool:
        """True if the machine was lost or has left."""
        return self.state in (MachineState.LOST, MachineState.LEFT)


class Cluster(Protocol):
    """Machines that run workers."""

    def join(self) -> None:
        """Connect this server to the cluster; raises ClusterError. Blocks for some seconds."""

    def begin(self, service: str) -> Sequence[str]:
        """Update the machines; return the names of the workers of the service's other servers.

        Called once, when this server has opened the store. Blocks for some milliseconds.

        Args:
            service: Name of the service, which all of its servers share.
        """

    def end_workers(self, names: Sequence[str]) -> None:
        """End workers of other servers: a server that hangs would keep its workers and their GPUs.

        Called if this server still owns the store after ``begin`` returned: this shows that the
        workers do not belong to a server that took over meanwhile. Blocks for some milliseconds.
        """

    def places(self) -> Sequence[Place]:
        """Return the reachable machines, as the pool sees them."""

    def machines(self) -> Sequence[Machine]:
        """Return all machines, including those that left or were lost recently."""

    def spawner(self, place: str, load: Load, variables: Mapping[str, str]) -> Spawn:
        """Return a function that starts processes on a machine, which then load a model.

        Args:
            place: Name of the machine.
            load: The command that will load the model, with the server's paths.
            variables: Environment variables, in addition to those of the machine.
        """

    async def watch(self, on_change: Callable[[], None], demand: Callable[[], int]) -> None:
        """Keep the machines up to date until cancelled.

        Args:
            on_change: Called when ``places`` have changed.
            demand: Returns how many workers all jobs could use at once.
        """

    def leave(self) -> None:
        """Leave the cluster, which ends this server's workers. Blocks for a second."""
