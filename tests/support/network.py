"""Records the names and addresses that a process and its children look up and connect to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Python's sockets and native libraries call these functions of the C library.
_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what, const char *name) {
    FILE *file = fopen(getenv("WATCHED_NETWORK"), "a");
    if (file) { fprintf(file, "%s %s\n", what, name ? name : ""); fclose(file); }
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    note("resolve", name);
    return real(name, service, hints, found);
}

struct hostent *gethostbyname(const char *name) {
    struct hostent *(*real)(const char *) = dlsym(RTLD_NEXT, "gethostbyname");
    note("resolve", name);
    return real(name);
}

int connect(int fd, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    char text[64] = "";
    if (address->sa_family == AF_INET)
        inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text);
    if (address->sa_family == AF_INET6)
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text);
    if (*text) note("connect", text);
    return real(fd, address, length);
}
"""

_OURS: Final = ("127.0.0.1", "::1", "localhost", "")


@dataclass(frozen=True)
class Watch:
    """Watches the network accesses of processes that run with ``environment``."""

    environment: dict[str, str]
    log: Path

    def foreign(self) -> set[str]:
        """The lookups and connections that were not to this machine."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return {line for line in lines if line.partition(" ")[2] not in _OURS}


def watched(folder: Path) -> Watch | None:
    """Build a watch with its files in a folder; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    source, library = folder / "watch.c", folder / "watch.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    log = folder / "network.log"
    environment = {**os.environ, "LD_PRELOAD": str(library), "WATCHED_NETWORK": str(log)}
    return Watch(environment, log)


def look_up(watch: Watch, name: str) -> None:
    """Look up a name in a watched process."""
    code = f"import socket\ntry: socket.getaddrinfo({name!r}, 80)\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", code], env=watch.environment, check=True)
