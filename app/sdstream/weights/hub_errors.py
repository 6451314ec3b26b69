"""Errors of the hubs as messages with a remedy, and the rules for retries."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple
from urllib.request import getproxies, proxy_bypass

import httpx2
from huggingface_hub.errors import (  # noqa: TID251
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sdstream.core.errors import OperatorError
from sdstream.core.locations import HubFile

#: Maximum pause before a retry, in seconds. There is no retry if a hub asks for a longer pause.
_LONGEST_PAUSE: Final = 120
_TRY_AGAIN: Final = (408, 429, 500, 502, 503, 504)


class HubError(OperatorError):
    """A file is not available; the message contains the remedy."""


@dataclass(frozen=True)
class Service:
    """The names and addresses of a hub, for messages.

    Attributes:
        home: The hub's own address.
        endpoint: The address in use, which is ``home`` or a mirror.
        endpoint_variable: The environment variable that sets the endpoint.
        token_variable: The environment variable that contains the token of an account.
        tokens: The web page where users create tokens.
    """

    home: str
    endpoint: str
    endpoint_variable: str
    token_variable: str
    tokens: str

    def __str__(self) -> str:
        """Return the address in use; for a mirror also the variable that sets it."""
        named = f"{self.endpoint} ({self.endpoint_variable})"
        return self.home if self.endpoint == self.home else named


class Answer(NamedTuple):
    """A hub's answer about a file, before validation.

    Attributes:
        checksum: Checksum of the file in hex.
        size: Size of the file in bytes.
        commit: The commit that the revision points to; ModelScope's answer has the revision itself.
    """

    checksum: str | None
    size: int | None
    commit: str | None


def cause_of(error: Exception) -> Exception:
    """Return the actual cause of an error.

    hf_hub_download raises LocalEntryNotFoundError for other errors too, with their exception as the
    cause.
    """
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        return error.__cause__
    return error


def pause_after(error: Exception, pauses: list[int]) -> int | None:
    """Return the seconds until the next try, or None if there should be no retry.

    Args:
        error: The error of the last try.
        pauses: Pauses before the next retries; this function removes the first one.
    """
    if isinstance(error, HfHubHTTPError):
        if error.response.status_code not in _TRY_AGAIN:
            return None
    elif not isinstance(error, httpx2.TransportError) or _is_for_good(error):
        return None
    if not pauses:
        return None
    pause = max(pauses.pop(0), _wished_pause(error))
    return pause if pause <= _LONGEST_PAUSE else None


def _is_for_good(error: Exception) -> bool:
    """Return True if a retry cannot help: an address without a scheme, or a proxy's 4xx."""
    if isinstance(error, httpx2.ProxyError):
        return str(error).startswith("4")
    return isinstance(error, httpx2.UnsupportedProtocol)


def _wished_pause(error: Exception) -> int:
    """Return the seconds until the time in the Retry-After header; 0 without such a header."""
    headers = error.response.headers if isinstance(error, HfHubHTTPError) else {}
    wish = str(headers.get("Retry-After", ""))
    with suppress(ValueError, TypeError, OverflowError):  # no valid number and no valid date
        if wish.isdecimal():
            return int(wish)
        wait = parsedate_to_datetime(wish) - datetime.now(UTC)
        return max(0, math.ceil(wait.total_seconds()))
    return 0


def short(error: Exception) -> str:
    if isinstance(error, HfHubHTTPError):
        return f"the hub answers {error.response.status_code}"
    return str(error).rstrip(".") or type(error).__name__


@contextmanager
def sentences(hub: Service, file: HubFile, page: str) -> Iterator[None]:
    """Convert exceptions of the block to HubError with a message for the user."""
    try:
        yield
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx2.HTTPError) as error:
        raise HubError(_sentence(hub, cause_of(error), file, page)) from None
    except OfflineModeIsEnabled:
        raise HubError(f"{file} is not downloaded, and HF_HUB_OFFLINE forbids downloads.") from None
    except httpx2.InvalidURL:
        raise HubError(_not_an_address(hub)) from None
    except (HFValidationError, ImportError, ValueError) as error:
        # Causes include a missing package for SOCKS, and a proxy address of an unknown kind.
        raise HubError(f"{file} cannot be requested: {str(error).rstrip('.')}.") from None
    except OSError as error:
        why = "The disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise HubError(
            f"{file} cannot be written: {why or error}. The downloaded part is kept, and the "
            "next pull continues from there."
        ) from None


def _sentence(hub: Service, error: Exception, file: HubFile, page: str) -> str:
    match error:
        case GatedRepoError():
            return _licence(hub, file, page)
        case RevisionNotFoundError():
            return f"The repository {file.repo} has no revision '{file.revision}'."
        case EntryNotFoundError():
            return f"The repository {file.repo} has no file {file.path}."
        case RepositoryNotFoundError() if error.response.status_code in (401, 404):
            return (
                f"The hub has no repository {file.repo}, or it is private: "
                f"look at {page}, and set {hub.token_variable} to a token of an account that may "
                "read it."
            )
        case httpx2.UnsupportedProtocol():
            return _not_an_address(hub)
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    refusal = _refusal_of_proxy(hub, error, status) or _refusal_of_hub(
        hub, error, status, file, page
    )
    if refusal:
        return refusal
    what = f"the hub answers {status}" if status else f"{_place(hub, error)}: {short(error)}"
    return (
        f"{file} cannot be downloaded now ({what}). Pull again later; the downloaded part is kept."
    )


def _refusal_of_hub(hub: Service, error: Exception, status: int, file: HubFile, page: str) -> str:
    """Return why the hub or its mirror does not send a file; empty for other statuses."""
    if status == 404:
        return f"{hub} has no file {file}."
    if status == 429:
        wait = _wished_pause(error)
        when = f"in {wait} s" if wait else "later"
        return f"The hub received too many requests (429): pull again {when}."
    if status in (401, 403) and _is_the_hub(hub, error):
        return _licence(hub, file, page)
    if 400 <= status < 500 and hub.endpoint != hub.home:
        return f"{hub} answers {status} to the request for {file}: it may not be a hub."
    return ""


def _is_the_hub(hub: Service, error: Exception) -> bool:
    """Return True for an answer of the hub, or of a mirror that sends the hub's headers."""
    if hub.endpoint == hub.home:
        return True
    return isinstance(error, HfHubHTTPError) and "x-error-code" in error.response.headers


def _not_an_address(hub: Service) -> str:
    return (
        f"{hub.endpoint_variable} is '{hub.endpoint}', which is not an address; write "
        f"https://hub.example, or unset it for {hub.home}."
    )


def _url(hub: Service, error: Exception) -> httpx2.URL:
    """Return the requested URL; the hub's address if the error contains no request."""
    with suppress(RuntimeError, AttributeError):
        url: httpx2.URL = error.request.url  # type: ignore[attr-defined]
        return url
    return httpx2.URL(hub.endpoint)


def _place(hub: Service, error: Exception) -> str:
    """Return the origin of the requested URL: the hub, or a server that it redirects to."""
    url = _url(hub, error)
    origin = f"{url.scheme}://{url.netloc.decode()}"
    return str(hub) if hub.endpoint.startswith(origin) else origin


def _refusal_of_proxy(hub: Service, error: Exception, status: int) -> str:
    """Return an error message about the proxy, with its variable; empty if it is not the cause."""
    url = _url(hub, error)
    if proxy_bypass(url.host):
        return ""
    proxies = getproxies()
    name = next((name for name in (url.scheme, "all") if proxies.get(name)), None)
    if name is None:
        return ""
    variable = f"{name.upper()}_PROXY"
    # The address is shown without the user name and password.
    proxy = f"The proxy {httpx2.URL(proxies[name]).copy_with(userinfo=b'')} ({variable})"
    around = f"list {url.host} in NO_PROXY"
    said = str(error) if isinstance(error, httpx2.ProxyError) else ""
    if status == 407 or said.startswith("407"):
        return (
            f"{proxy} requires a name and a password (407): set {variable} to "
            f"http://NAME:PASSWORD@HOST:PORT, or {around}."
        )
    if said or (status == 403 and url.scheme == "http" and not _is_the_hub(hub, error)):
        return (
            f"{proxy} refused the connection to {url.host} ({said or status}): have it allow that "
            f"host, or {around}."
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) and "SSL" not in str(error):
        return f"{proxy} cannot be reached ({short(error)}): correct {variable}, or {around}."
    return ""


def _licence(hub: Service, file: HubFile, page: str) -> str:
    return (
        f"{file.repo} provides its files only to users who accepted its licence: accept it at "
        f"{page}, and set {hub.token_variable} to a token of that account ({hub.tokens})."
    )
