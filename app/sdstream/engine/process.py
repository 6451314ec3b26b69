"""The interface of a worker process, and its implementation as a child of the server.

Through ``Process``, the supervisor (``Worker``) controls a process on this or another machine.
``WorkerProcess`` implements it with a child process of the server. sdstream.cluster implements it
for other machines.

Each child leads its own process group, because native code may fork. A fork inherits the socket
and the log pipe. The group is therefore killed when the child ends, and no code waits without a
time limit for the end of a file that a fork may hold open.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from typing import IO, Final, Protocol

from sdstream.core.messages import HEADER, Command, Message, Stop, decode, encode
from sdstream.system import resident_bytes

logger = logging.getLogger("sdstream.native")

#: Signals sent to a child until it ends, each with the seconds to wait after it.
_PERSUASION: Final = ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0))
#: Seconds to wait for the last log lines of a child that ended; its forks may hold the pipe open.
_LAST_WORDS_SECONDS: Final = 1.0
_LEVELS: Final = logging.getLevelNamesMapping()


class PlaceGone(OSError):
    """The machine of a worker process cannot be reached, or cannot start one.

    The model is not the cause.
    """


class LoadRefused(Exception):
    """No machine can load the model; the message names what is missing."""


class Process(Protocol):
    """A process that loads one model and generates with it.

    Commands arrive in the order in which they were sent. After ``receive`` has returned None, it
    always returns None.
    """

    @property
    def pid(self) -> int:
        """Process id on its machine."""

    @property
    def resident_bytes(self) -> int:
        """Memory in use in bytes, as last known; 0 when the process has ended."""

    def send(self, command: Command) -> None:
        """Send a command without waiting; only ``receive`` reports that the process has ended."""

    async def receive(self) -> Message | None:
        """Return the next event, or None when the process has ended or its machine is lost."""

    async def exit_code(self) -> int:
        """Wait for the end; return the exit status, or the negative number of the signal.

        Raises:
            PlaceGone: The machine cannot be reached, so the exit code is unknown.
        """

    async def end(self) -> None:
        """Make sure that the process has ended; the caller may call it in every state."""

    def kill(self) -> None:
        """Kill the process at once, without waiting for its end."""


#: Function that starts a process with an engine ("native" or "fake") and an environment. It raises
#: PlaceGone if the chosen machine cannot be used, LoadRefused if no machine can load the model, and
#: any other exception if the process cannot be started.
Spawn = Callable[[str, Mapping[str, str]], Awaitable[Process]]


class WorkerProcess:
    """A running child of the server.

    ``spawn`` starts it, and the caller of ``spawn`` must call ``end``. The kernel kills the child
    when the *thread* that spawned it ends (PR_SET_PDEATHSIG). ``spawn`` must therefore run on the
    event loop's thread, which runs as long as the server.
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
        """Start a child that runs an engine ("native" or "fake")."""
        level = logging.getLevelName(logger.getEffectiveLevel())
        ours, theirs = socket.socketpair()
        with ExitStack() as opened:  # closed if the task is cancelled before the child has an owner
            opened.callback(ours.close)
            with theirs:
                log, output = await _Pipe.open()
                opened.callback(log.close)
                with output:
                    process = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "sdstream.engine.child"),
                        *(str(theirs.fileno()), engine, str(os.getpid()), level),
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=output,
                        stderr=asyncio.subprocess.STDOUT,
                        pass_fds=[theirs.fileno()],
                        env=environment,
                        # Ctrl-C in a terminal signals the whole group; only the server may end the
                        # child.
                        start_new_session=True,
                    )
            try:
                reader, writer = await asyncio.open_unix_connection(sock=ours)
            except BaseException:
                process.kill()
                await process.wait()
                raise
            opened.pop_all()
        return cls(process, reader, writer, log)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """Memory in use in bytes; 0 when the process has ended."""
        return resident_bytes(self.pid)

    def send(self, command: Command) -> None:
        """Write a command in the background; only ``receive`` reports that the child has ended.

        ``send`` does not wait until the child has read the command, because a stopped child never
        reads it. The write buffer stays small, since only one job is sent at a time.
        """
        self.send_frame(encode(command))

    def send_frame(self, frame: bytes) -> None:
        """Write an encoded command; see ``send``."""
        self._writer.write(frame)

    async def receive_frame(self) -> bytes | None:
        """Return the next event, still encoded, or None when the child has ended."""
        try:
            head = await self._reader.readexactly(HEADER.size)
            return head + await self._reader.readexactly(sum(HEADER.unpack(head)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def receive(self) -> Message | None:
        """Return the next event, or None when the child has ended."""
        try:
            header, blob = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            return decode(
                await self._reader.readexactly(header), await self._reader.readexactly(blob)
            )
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        except ValueError:
            # The start of the next message is unknown, so nothing more can be decoded.
            logger.exception("worker %d wrote something that is not a message", self.pid)
            return None

    async def exit_code(self) -> int:
        """Wait for the end; return the exit status, or the negative number of the signal."""
        return await self._process.wait()

    async def end(self) -> None:
        """End the child with Stop, SIGTERM and SIGKILL as needed, then read the rest of its log."""
        if self._process.returncode is None:
            self.send(Stop())
        # close() would wait until the child has read everything, which it may never do.
        self._writer.transport.abort()
        # A closed socket and SIGTERM end an idle or busy child. Only a child that hangs in the
        # kernel or was stopped (SIGSTOP) survives them.
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
        """Send SIGKILL to the child and its forks, without waiting for their end."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def _clear_up(self) -> None:
        """Kill the forks of a child that has ended, which closes its socket and its log."""
        await self._process.wait()
        self.kill()
        await asyncio.sleep(_LAST_WORDS_SECONDS)
        self._reader.feed_eof()  # in case a fork left the group and holds the socket open


class _Pipe:
    """The reading end of a child's output."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        self.reader = reader
        self._transport = transport

    @classmethod
    async def open(cls) -> tuple[_Pipe, IO[bytes]]:
        """Return a new pipe and its writing end."""
        ours, theirs = os.pipe()
        output = os.fdopen(theirs, "wb", 0)
        reader = asyncio.StreamReader()
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(ours, "rb", 0)
            )
        except BaseException:  # asyncio closes the reading end
            output.close()
            raise
        return cls(reader, transport), output

    def close(self) -> None:
        """Stop reading."""
        self._transport.close()


async def _relay(output: asyncio.StreamReader) -> None:
    """Write a child's output to the server's log, one record for each line."""
    while True:
        try:
            raw = await output.readline()
        except ValueError:  # a line longer than the reader's limit: it was dropped
            continue
        if not raw:
            return
        line = raw.decode("utf-8", "replace").rstrip()
        word, _, rest = line.partition(" ")
        # A line without a level comes from C code or a traceback.
        level, text = (_LEVELS[word], rest) if word in _LEVELS else (logging.WARNING, line)
        logger.log(level, "%s", text)
