"""A worker process as the server sees it, and one on this machine: a socket, a log, an exit code.

``Process`` is what a worker needs of its process, wherever that runs. ``WorkerProcess`` is a child
of the server; sdstream.cluster has another one.

A child leads a process group of its own. Native code may fork, and a fork inherits the socket and
the pipe of the log: whenever the child ends its group is killed, and nothing waits without limit
for the end of a file that a fork may hold.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import IO, Final, Protocol

from sdstream.core.messages import HEADER, Command, Message, Stop, decode, encode
from sdstream.system import resident_bytes

logger = logging.getLogger("sdstream.native")

#: What a child is sent until it is gone, with the seconds it is given.
_PERSUASION: Final = ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0))
#: Descendants of a child that ended may hold its pipes open; its last lines come within this.
_LAST_WORDS_SECONDS: Final = 1.0
_LEVELS: Final = logging.getLevelNamesMapping()


class PlaceGone(OSError):
    """The machine of a worker process cannot be reached, or takes none: no fault of the model."""


class LoadRefused(Exception):
    """No machine has what the model needs; the message names what is missing."""


class Process(Protocol):
    """A process that loads one model and generates with it.

    Commands reach it in the order in which they were sent. Once ``receive`` returned None, it
    returns None for ever.
    """

    @property
    def pid(self) -> int:
        """Process id on its machine."""

    @property
    def resident_bytes(self) -> int:
        """Memory in use in bytes, as far as it is known; 0 when the process is gone."""

    def send(self, command: Command) -> None:
        """Send a command without waiting; the death of a process is noticed by ``receive``."""

    async def receive(self) -> Message | None:
        """Return the next event, or None when the process or its machine is gone."""

    async def exit_code(self) -> int:
        """Wait for the end; return the exit status, or minus the number of the signal.

        Raises:
            PlaceGone: The machine is out of reach, so that its exit code is unknown.
        """

    async def end(self) -> None:
        """Make sure that it is gone; callable in every state."""

    def kill(self) -> None:
        """End it at once, without waiting."""


#: Starts a process with an engine ("native" or "fake") and an environment. It raises PlaceGone when
#: its machine cannot be used, LoadRefused when no machine can, and any other exception when no
#: process can be started there.
Spawn = Callable[[str, Mapping[str, str]], Awaitable[Process]]


class WorkerProcess:
    """A running child of the server, made by ``spawn``, whose caller calls ``end``.

    The kernel ends the child with the *thread* that spawned it (PR_SET_PDEATHSIG), so ``spawn``
    belongs on the event loop's thread, which lives as long as the server.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        log: _Pipe,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._pipe = log
        self._log = asyncio.create_task(_relay(log.reader))
        self._exit = asyncio.create_task(self._clear_up())

    @classmethod
    async def spawn(cls, engine: str, environment: Mapping[str, str]) -> WorkerProcess:
        """Start a child with an engine ("native" or "fake") in it."""
        ours, theirs = socket.socketpair()
        level = logging.getLevelName(logger.getEffectiveLevel())
        log, output = await _Pipe.open()
        with theirs, output:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sdstream.engine.child"),
                *(str(theirs.fileno()), engine, str(os.getpid()), level),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=environment,
                # Ctrl-C in a terminal reaches the whole group; the server alone decides.
                start_new_session=True,
            )
        try:
            reader, writer = await asyncio.open_unix_connection(sock=ours)
        except BaseException:
            # Cancelled just now: the child has no owner yet who would end it.
            ours.close()
            log.close()
            process.kill()
            await process.wait()
            raise
        return cls(process, reader, writer, log)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """Memory in use, 0 when the process is gone."""
        return resident_bytes(self.pid)

    def send(self, command: Command) -> None:
        """Write a command, in the background; a dead child is noticed by ``receive``, not here.

        It does not wait until the child reads it: a stopped child never would, and only one job's
        command is under way at a time.
        """
        self.send_frame(encode(command))

    def send_frame(self, frame: bytes) -> None:
        """Write a command that is encoded already; see ``send``."""
        self._writer.write(frame)

    async def receive_frame(self) -> bytes | None:
        """Return the next event unchanged, with its header; None when the child is gone."""
        try:
            head = await self._reader.readexactly(HEADER.size)
            return head + await self._reader.readexactly(sum(HEADER.unpack(head)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def receive(self) -> Message | None:
        """The next event, or None when the child is gone."""
        try:
            header, blob = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return decode(
                await self._reader.readexactly(header), await self._reader.readexactly(blob)
            )
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except ValueError:
            # Nothing that follows on this socket can be understood either.
            logger.exception("worker %d wrote something that is not a message", self.pid)
            return None

    async def exit_code(self) -> int:
        """Wait for the end; return the exit status, or minus the number of the signal."""
        return await self._process.wait()

    async def end(self) -> None:
        """Make sure that it is gone: ask, SIGTERM, SIGKILL; then collect it and its log."""
        if self._process.returncode is None:
            self.send(Stop())
        # Closing would wait until a child that reads no more has read all.
        self._writer.transport.abort()
        # A closed socket and SIGTERM end an idle or a busy child; only one that hangs in the
        # kernel or was stopped outlives them.
        for number, seconds in _PERSUASION:
            if self._process.returncode is None:
                self._signal(number)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), seconds)
        self.kill()
        await asyncio.wait((self._log,), timeout=_LAST_WORDS_SECONDS)
        for task in (self._log, self._exit):
            task.cancel()
        self._pipe.close()

    def kill(self) -> None:
        """SIGKILL to the child and what it has forked, without waiting."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def _clear_up(self) -> None:
        """When the child has ended, end what it forked, and with that its socket and its log."""
        await self._process.wait()
        self.kill()
        await asyncio.sleep(_LAST_WORDS_SECONDS)
        self._reader.feed_eof()  # a fork has left the group and holds the socket


class _Pipe:
    """The reading end of a child's output."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        self.reader = reader
        self._transport = transport

    @classmethod
    async def open(cls) -> tuple[_Pipe, IO[bytes]]:
        """A new pipe, and its writing end."""
        ours, theirs = os.pipe()
        output = os.fdopen(theirs, "wb", 0)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", 0)
        )
        return cls(reader, transport), output

    def close(self) -> None:
        """Read no more."""
        self._transport.close()


async def _relay(output: asyncio.StreamReader) -> None:
    """Put a child's output, one record a line, into the server's log."""
    while True:
        try:
            raw = await output.readline()
        except ValueError:  # a line longer than the reader's limit: it was dropped
            continue
        if not raw:
            return
        line = raw.decode("utf-8", "replace").rstrip()
        word, _, rest = line.partition(" ")
        # What carries no level came from C code or a traceback.
        level, text = (_LEVELS[word], rest) if word in _LEVELS else (logging.WARNING, line)
        logger.log(level, "%s", text)
