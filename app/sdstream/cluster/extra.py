"""The optional extra ``cluster``: Ray, which is imported only if a cluster is used."""

from __future__ import annotations

from importlib import import_module, util

from sdstream.cluster.port import Cluster
from sdstream.cluster.setup import check_token, use_token
from sdstream.core.errors import ConfigurationError
from sdstream.settings import Settings

_INSTALL = "pip install 'sdstream[cluster]'"


class ClusterError(ConfigurationError):
    """The cluster cannot be used; the message contains the reason and the remedy."""


class ClusterUnreachable(ClusterError):
    """The head does not answer, as it does to a wrong token; a later start may succeed."""

    exit_code = 1


def check() -> None:
    """Raise ClusterError if the extra is missing."""
    if util.find_spec("ray") is None:
        raise ClusterError(f"A cluster needs an extra: {_INSTALL}")


def join(settings: Settings) -> Cluster | None:
    """Join the cluster that the settings name and return it; None without a cluster.

    Raises:
        ConfigurationError: The extra or the token is missing, or the head does not answer.
    """
    if settings.cluster is None:
        return None
    token = check_token(settings.cluster_token_file)
    check()
    # Set the variables first: Ray reads them when it is imported.
    use_token(token)
    cluster: Cluster = import_module("sdstream.cluster.driver").RayCluster(settings)
    cluster.join()
    return cluster
