"""What the service needs of a cluster, and what machines say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sdstream.core.enums import DescribedEnum
from sdstream.core.messages import Load
from sdstream.engine.pool import Place
from sdstream.engine.process import Spawn


class MachineState(DescribedEnum):
    """Whether a machine takes workers; each value with its one line of meaning."""

    READY = "ready", "takes workers"
    LEAVING = "leaving", "finishes its jobs and takes no more"
    SHUNNED = "shunned", "could not be used a moment ago, and is left alone for a while"
    LOST = "lost", "is out of reach"
    LEFT = "left", "has left in order"


@dataclass(frozen=True)
class Machine:
    """A machine of the cluster.

    Attributes:
        name: Its address, which is also the name of its place.
        host: Its own host name.
        state: Whether it takes workers.
        reason: Why it does not; empty when it does.
        since: When it came into this state, in Unix seconds.
        place: What it offers.
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
        """Become its front; raises ClusterError. Blocks for some seconds."""

    def begin(self, service: str) -> Sequence[str]:
        """Look at the machines; return the names of the workers that other fronts have now.

        Called once, when this front has the jobs. Blocks for some milliseconds.

        Args:
            service: Name of the service, which all of its fronts know.
        """

    def end_workers(self, names: Sequence[str]) -> None:
        """End workers of other fronts: one that hangs would keep its workers, and their GPUs.

        Called when this front still has the jobs after ``begin`` returned: then the workers are
        not of a front that took over meanwhile. Blocks for some milliseconds.
        """

    def places(self) -> Sequence[Place]:
        """The machines that can be reached now, as the pool sees them."""

    def machines(self) -> Sequence[Machine]:
        """All of them, with those that were lost lately."""

    def spawner(self, place: str, load: Load, variables: Mapping[str, str]) -> Spawn:
        """What starts processes on a machine that are to load a model.

        Args:
            place: Name of the machine.
            load: What they will be told to load, with the front's paths.
            variables: Of their environment, beside those that the machine has.
        """

    async def watch(self, on_change: Callable[[], None], demand: Callable[[], int]) -> None:
        """Keep the machines up to date, until cancelled.

        Args:
            on_change: Called when ``places`` are others.
            demand: How many workers would have all jobs generated at once.
        """

    def leave(self) -> None:
        """Give the cluster up, and end what still runs for this front. Blocks for a second."""
