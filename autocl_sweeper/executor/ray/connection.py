"""The connection to a Ray cluster, or to a private one on this machine's loopback address."""

from __future__ import annotations

import logging
import os
import socket
from secrets import token_hex
from typing import Any

from autocl_sweeper.errors import ConfigurationError

CONNECT_S = 5.0
ALL_ADDRESSES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # 0: Ray's own switch for 127.0.0.1 alone
AUTH_MODE, AUTH_TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


def connect(address: str) -> Any:
    """Ray, connected to a cluster. Raises ConfigurationError with the command that fixes it."""
    if address == "local":
        _close_to_others()
    try:
        import ray
    except ImportError as error:
        raise ConfigurationError(
            f"hydra/launcher=ray needs Ray, which cannot be imported here: {error}\n"
            "  Install it on every node: pip install 'autocl-sweeper[ray]'"
        ) from error
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "://" not in address:
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            raise _unreachable(address, error) from error
    quiet = {"configure_logging": False, "log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            # Without an address Ray would join a cluster that it finds on this machine, anybody's.
            here = {"address": "local", "_node_ip_address": "127.0.0.1"}
            ray.init(include_dashboard=False, **here, **quiet)
            _refuse_open_ports(ray)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address, error) from error
    return ray


def _close_to_others() -> None:
    """A cluster of this machine listens on loopback and asks for a token (Ray 2.52 and later).

    Without both, every account that reaches a port could run code as this one. What the user has set
    stays. Ray looks at these variables when it is imported.
    """
    os.environ.setdefault(ALL_ADDRESSES, "0")
    if AUTH_MODE not in os.environ:
        os.environ[AUTH_MODE] = "token"
        os.environ.setdefault(AUTH_TOKEN, token_hex(32))


def _refuse_open_ports(ray: Any) -> None:
    host = str(ray.get_runtime_context().gcs_address).rpartition(":")[0]
    if os.environ[ALL_ADDRESSES] == "0" and host.strip("[]") not in ("127.0.0.1", "::1"):
        ray.shutdown()
        raise ConfigurationError(
            f"hydra.launcher.address=local: Ray listens at {host}, where other machines reach it, and not on"
            " loopback alone:\n  it was imported before the sweep began. Set"
            f" {ALL_ADDRESSES}=0 before the app starts,\n  or {ALL_ADDRESSES}=1 to have it so."
            " No job was started."
        )


def _unreachable(address: str, error: Exception) -> ConfigurationError:
    return ConfigurationError(
        f"No Ray cluster answers at hydra.launcher.address={address}: {error}\n"
        "  Start one with `ray start --head` and join it on the other nodes with"
        " `ray start --address=<host>:6379`,\n"
        "  or set hydra.launcher.address=local to have one on this machine alone."
    )
