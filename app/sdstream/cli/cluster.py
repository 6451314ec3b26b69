"""The commands ``sdstream cluster head`` and ``join``, which run Ray's processes."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click

from sdstream.cli.console import is_terminal, plain_errors
from sdstream.cli.flags import read_settings, setting_flags
from sdstream.cli.inputs import finite
from sdstream.cluster import extra
from sdstream.cluster.node import GPU_LABEL, SLOTS, command, gpu_mib
from sdstream.cluster.setup import (
    check_token,
    make_token,
    own_address,
    ray_variables,
    split_address,
    store_token,
    with_variables,
)
from sdstream.settings import ASSET_FOLDERS, Settings
from sdstream.web.application import configure_logging

logger = logging.getLogger("sdstream.cluster")

#: Pauses after the first failed attempts to join; the last pause repeats.
_RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 15.0)
_CONNECT_SECONDS: Final = 5.0
#: An attempt that lasted longer than this does not count as failed.
_HELD_SECONDS: Final = 60.0
#: Size of Ray's object store, which holds frames in transit and uses shared memory.
_STORE_BYTES: Final = 200_000_000
#: Time for Ray's processes to end, in addition to the time for running jobs.
_END_SECONDS: Final = 30.0

_FOLDERS: Final = ("model_dir", "cache_dir", *ASSET_FOLDERS)


@click.group()
def cluster() -> None:
    """Generate on several machines with Ray.

    \b
    On the server's machine, in two terminals or services:
        sdstream cluster head
        sdstream serve --cluster HOST:6379
    On each machine that generates:
        sdstream cluster join HOST:6379
    """


def _node_options(function: Callable[..., None]) -> Callable[..., None]:
    options: list[Callable[[Callable[..., None]], Callable[..., None]]] = [
        click.option(
            "--ip",
            metavar="ADDRESS",
            help="Address of this machine for the others [default: that of the route to them].",
        ),
        click.option(
            "--temp-dir",
            type=click.Path(file_okay=False, path_type=Path),
            help="Folder for Ray's sockets and logs; its path must be short [default: /tmp/ray].",
        ),
        setting_flags("cluster_token_file", "log_level"),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@cluster.command()
@click.option("--port", type=click.IntRange(1, 65535), default=6379, show_default=True)
@_node_options
def head(port: int, ip: str | None, temp_dir: Path | None, **flags: Any) -> None:
    """Run the head of the cluster, which knows the machines and generates nothing.

    The first start makes the token of the cluster and shows it. A program with the token can
    run code on all of its machines.
    """
    settings = read_settings(**flags)
    configure_logging(settings.log_level)
    with plain_errors():
        extra.check()
        path = settings.cluster_token_file
        address = ip or own_address()
        if not path.exists():
            token = make_token(path)
            click.echo(f"The token of the cluster, kept in {path} and shown this once:\n{token}")
        check_token(path)
        click.echo(f"Machines join with: sdstream cluster join {address}:{port}")
        arguments = [
            *("--head", f"--port={port}", "--num-cpus=0", "--num-gpus=0"),
            "--include-dashboard=false",
        ]
        node = _Node(settings, address, temp_dir, arguments)
    sys.exit(node.run())


@cluster.command()
@click.argument("address")
@click.option("--gpus", type=click.IntRange(0), help="GPUs to use [default: all].")
@click.option(
    "--slots",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Maximum number of workers without GPUs; 0 if the machine only runs the front.",
)
@click.option(
    "--grace-seconds",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    callback=finite,
    help="Seconds in which running jobs may finish after SIGTERM.",
)
@setting_flags("memory_mb", *_FOLDERS)
@_node_options
def join(
    address: str,
    gpus: int | None,
    slots: int,
    grace_seconds: float,
    ip: str | None,
    temp_dir: Path | None,
    **flags: Any,
) -> None:
    """Join the cluster of the head at ADDRESS (HOST:PORT) and generate for its server.

    It retries until it is in, and joins again when the head was restarted. At SIGTERM it takes no
    more jobs, finishes those that run, and leaves. Without a file with the cluster's token, it
    reads the token from the terminal or stdin.
    """
    settings = read_settings(**flags)
    configure_logging(settings.log_level)
    with plain_errors():
        extra.check()
        to_join = split_address(address)
        _get_token(settings.cluster_token_file)
        memory = gpu_mib()
        arguments = [f"--address={address}", f'--resources={{"{SLOTS}": {slots}}}']
        if gpus is not None or memory:
            arguments.append(f"--num-gpus={len(memory) if gpus is None else gpus}")
        if memory:
            arguments.append(f"--labels={GPU_LABEL}={min(memory)}")
        if settings.memory_mb:
            arguments.append(f"--memory={settings.memory_mb * 2**20}")
        own = ip or own_address(to_join[0])
        node = _Node(settings, own, temp_dir, arguments, grace_seconds, to_join)
    sys.exit(node.run())


def _get_token(path: Path) -> None:
    """Check the token file; if it does not exist, prompt for the token and write the file.

    Raises:
        ConfigurationError: The file cannot be used.
    """
    if not path.exists():
        typed = click.prompt("Token of the cluster", hide_input=is_terminal(sys.stdin), err=True)
        store_token(path, typed.strip())
    check_token(path)


def _answers(head: tuple[str, int]) -> bool:
    """Return whether the head accepts connections; Ray would wait for minutes if it does not."""
    try:
        socket.create_connection(head, _CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


class _Node:
    """Ray's processes on this machine.

    Args:
        settings: Settings with the folders and the token file.
        ip: Address of this machine.
        temp_dir: Folder for Ray's sockets and logs; None for Ray's default.
        arguments: Arguments of ``ray start``.
        grace_seconds: Time for running jobs after SIGTERM.
        head: Host and port of the head to join; None runs the head.
    """

    def __init__(
        self,
        settings: Settings,
        ip: str,
        temp_dir: Path | None,
        arguments: Sequence[str],
        grace_seconds: float = 0.0,
        head: tuple[str, int] | None = None,
    ) -> None:
        self._head = head
        own = [f"--node-ip-address={ip}", f"--object-store-memory={_STORE_BYTES}"]
        if temp_dir is not None:
            own.append(f"--temp-dir={temp_dir.absolute()}")
        own.append("--include-log-monitor=false")
        self._command = command(os.getpid(), [*arguments, *own])
        folders = {name: getattr(settings, name) for name in _FOLDERS}
        self._variables = {
            **ray_variables(check_token(settings.cluster_token_file)),
            **{f"SDSTREAM_{n.upper()}": str(f.absolute()) for n, f in folders.items() if f},
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(int(grace_seconds)),
        }
        self._limit = grace_seconds + _END_SECONDS
        self._stopping = False
        self._deadline = math.inf
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Run Ray's processes until a signal and return the exit code.

        If the processes end earlier, they are started again, except on the head.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        failures = 0
        code = 1
        while not self._stopping:
            began, why = time.monotonic(), "no head answers"
            if self._head is None or _answers(self._head):
                code = self._run_once()
                why = f"Ray ended with code {code}"
            if self._stopping or self._head is None:
                break
            failures = 0 if time.monotonic() - began > _HELD_SECONDS else failures + 1
            pause = _RETRY_SECONDS[max(0, min(failures, len(_RETRY_SECONDS)) - 1)]
            logger.warning("not in the cluster: %s; next attempt in %g s", why, pause)
            self._rest(pause)
        return 0 if self._stopping else code

    def _run_once(self) -> int:
        self._process = subprocess.Popen(
            self._command,
            env=with_variables(self._variables),
            stdin=subprocess.DEVNULL,
            # Ctrl-C reaches every process of the group, but only this one should handle it.
            start_new_session=True,
        )
        if self._stopping:  # the signal arrived while the process was started
            self._process.kill()
        while True:
            try:
                return self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                if time.monotonic() > self._deadline:
                    logger.warning("Ray did not end in time and is killed")
                    self._process.kill()

    def _rest(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            time.sleep(0.1)

    def _stop(self, *_: object) -> None:
        if not self._stopping and self._process is not None and self._process.poll() is None:
            logger.info("leaving the cluster when the running jobs have ended")
            self._process.terminate()
            self._deadline = time.monotonic() + self._limit
        self._stopping = True
