"""The worker process, which reads commands from a socket, runs an engine and writes events back.

Only engine/process.py starts it:
``python -m sdstream.engine.child SOCKET_FD ENGINE PARENT_PID LOG_LEVEL``. The main thread reads
commands, and a second thread loads the model and generates. The thread in which an event occurs
also writes it, so that a step's event is sent before the next step begins.

The process must not outlive the server. It asks the kernel for SIGKILL at the parent's death and
checks that the parent had not died before. It exits when the socket closes.
"""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # These signals are meant for the server, but `systemctl kill` sends them to all processes of a
    # unit. Their default action would end this process. They are ignored before the imports,
    # because the imports take most of the start time.
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

import logging
import os
import queue
import socket
import sys
import threading
from typing import Final

from sdstream.core.errors import EngineError, Reason
from sdstream.core.messages import (
    HEADER,
    Cancel,
    Cancelled,
    Done,
    Event,
    Failed,
    Generate,
    Load,
    Message,
    RequestPreview,
    Share,
    Stop,
    UnreadableJob,
    decode,
    encode,
)
from sdstream.engine.port import Engine
from sdstream.system import end_with_parent, prefer_for_oom_kill

logger = logging.getLogger("sdstream.child")

#: Stack size of the generating thread. The recursion of std::regex in the runtime grows with the
#: length of the prompt. Only virtual memory is reserved.
_STACK_BYTES: Final = 512 * 2**20


class Child:
    """A server of one engine on one socket."""

    def __init__(self, connection: socket.socket, engine: Engine) -> None:
        self._connection = connection
        self._engine = engine
        self._sending = threading.Lock()
        self._work: queue.SimpleQueue[Load | Generate] = queue.SimpleQueue()
        # The job that is running or comes next; guarded by _state.
        self._job: str | None = None
        self._cancelled = False
        self._state = threading.Lock()

    def run(self) -> None:
        """Serve until the server sends Stop or ends."""
        threading.stack_size(_STACK_BYTES)
        threading.Thread(target=self._draw_forever, daemon=True).start()
        while (command := self._receive()) is not None and not isinstance(command, Stop):
            match command:
                case Load():
                    self._work.put(command)
                case Generate(job):
                    with self._state:
                        self._job, self._cancelled = job, False
                    self._work.put(command)
                case Cancel(job):
                    self._cancel(job)
                case RequestPreview(job):
                    self._peek(job)
                case Share():
                    self._engine.share(command)
        # Native code may still be running, so exit without running destructors.
        os._exit(0)

    def _cancel(self, job: str) -> None:
        with self._state:
            if job != self._job:
                return
            self._cancelled = True
            self._engine.abort()

    def _peek(self, job: str) -> None:
        with self._state:
            if job == self._job:
                self._engine.peek()

    def _draw_forever(self) -> None:
        while True:
            match self._work.get():
                case Load() as command:
                    self._emit(self._load(command))
                case Generate(job) as command:
                    outcome = self._generate(command)
                    with self._state:
                        self._job = None
                    logger.debug("job %s: %s", job, type(outcome).__name__)
                    self._emit(outcome)

    def _load(self, command: Load) -> Event:
        try:
            return self._engine.load(command, self._emit)
        except EngineError as error:
            return Failed(None, error.reason, error.message)
        except Exception:
            logger.exception("loading failed")
            return Failed(None, Reason.MODEL_UNAVAILABLE, "The model could not be loaded.")

    def _generate(self, command: Generate) -> Event:
        job, request, inputs = command.job, command.request, command.inputs
        try:
            for index in range(command.first, request.n):
                with self._state:
                    # The lock covers both steps: a cancel between them would be lost.
                    if self._cancelled:
                        return Cancelled(job)
                    self._engine.clear_abort()
                image = self._engine.draw(job, request, inputs, index, self._emit)
                if image is None:
                    return Cancelled(job)
                self._emit(image)
        except EngineError as error:
            return Failed(job, error.reason, error.message)
        except Exception:
            logger.exception("generation failed")
            return Failed(job, Reason.GENERATION_FAILED, "The runtime returned no image.")
        return Done(job)

    def _emit(self, event: Event) -> None:
        with self._sending:
            self._connection.sendall(encode(event))

    def _receive(self) -> Message | None:
        """Return the next message; None when the server has closed the socket."""
        while (head := self._read(HEADER.size)) is not None:
            header_bytes, blob_bytes = HEADER.unpack(head)
            header, blob = self._read(header_bytes), self._read(blob_bytes)
            if header is None or blob is None:
                break
            try:
                return decode(header, blob)
            except UnreadableJob as error:
                # The job fails instead of this process, which may serve the next one.
                logger.exception("a job cannot be read")
                message = "The worker process could not read the request."
                self._emit(Failed(error.job, Reason.GENERATION_FAILED, message))
        return None

    def _read(self, count: int) -> bytes | None:
        """Return exactly ``count`` bytes, or None when the server has closed the socket."""
        parts = bytearray()
        while len(parts) < count:
            part = self._connection.recv(count - len(parts))
            if not part:
                return None
            parts += part
        return bytes(parts)


def _engine_named(name: str) -> Engine:
    # Only the requested engine is imported: the fake engine needs no native library.
    if name == "fake":
        from sdstream.engine.fake import FakeEngine  # noqa: PLC0415

        return FakeEngine()
    from sdstream.engine.native.engine import NativeEngine  # noqa: PLC0415

    return NativeEngine()


def main(descriptor: str, engine: str, parent: str, log_level: str) -> None:
    """Serve on an inherited socket.

    Args:
        descriptor: Number of the inherited socket.
        engine: "native" or "fake".
        parent: Process id of the server.
        log_level: Name of the lowest level that the server logs.
    """
    end_with_parent(int(parent))
    prefer_for_oom_kill()
    # Each record is one line that begins with its level; the server parses it (process.py).
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s %(message)s", level=log_level)
    logging.getLogger("gguf").setLevel(logging.WARNING)
    connection = socket.socket(fileno=int(descriptor))
    connection.set_inheritable(False)  # a child process must not keep the socket open
    Child(connection, _engine_named(engine)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
