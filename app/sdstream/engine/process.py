"""One worker process as the server sees it: a socket with frames on it, a log, an exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from sdstream.core.messages import HEADER, Command, Message, Stop, decode, encode

logger = logging.getLogger("sdstream.native")

#: What a child is sent until it is gone, with the seconds it is given.
_PERSUASION: Final = ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0))
_LEVELS: Final = logging.getLevelNamesMapping()


class WorkerProcess:
    """A running child. Made by ``spawn``; whoever made it calls ``end``.

    The kernel ends the child with the *thread* that spawned it (PR_SET_PDEATHSIG), so ``spawn``
    belongs on the event loop's thread, which lives as long as the server.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._log = asyncio.create_task(self._relay_log())

    @classmethod
    async def spawn(cls, engine: str, environment: Mapping[str, str]) -> WorkerProcess:
        """Start a child with an engine ("native" or "fake") in it."""
        ours, theirs = socket.socketpair()
        level = logging.getLevelName(logger.getEffectiveLevel())
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "sdstream.engine.child"),
                *(str(theirs.fileno()), engine, str(os.getpid()), level),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
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
            process.kill()
            await process.wait()
            raise
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def resident_bytes(self) -> int:
        """Memory in use, 0 when the process is gone."""
        with suppress(OSError, ValueError, IndexError):
            pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGESIZE")
        return 0

    def send(self, command: Command) -> None:
        """Write a command, in the background; a dead child is noticed by ``receive``, not here.

        Nobody waits until it is read: a child that was stopped would never read it, and only one
        job's command is under way at a time.
        """
        self._writer.write(encode(command))

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
            logger.exception("worker %d wrote what is no message", self.pid)
            return None

    async def exit_code(self) -> int:
        """Wait for the end: 0 or more is an exit status, less is minus the signal."""
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
                with suppress(ProcessLookupError):
                    self._process.send_signal(number)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), seconds)
        await self._log

    def kill(self) -> None:
        """SIGKILL, without waiting."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def _relay_log(self) -> None:
        """Put the child's output, one record a line, into the server's log."""
        assert self._process.stdout is not None
        while True:
            try:
                raw = await self._process.stdout.readline()
            except ValueError:  # a line longer than the reader's limit: it was dropped
                continue
            if not raw:
                return
            line = raw.decode("utf-8", "replace").rstrip()
            word, _, rest = line.partition(" ")
            # What carries no level came from C code or a traceback.
            level, text = (_LEVELS[word], rest) if word in _LEVELS else (logging.WARNING, line)
            logger.log(level, "%s", text)
