"""Machines elsewhere: logging in, tunnels back, checks beforehand, results brought home."""

from __future__ import annotations

from nni_gconv.remote.fetch import FetchReport, fetch_machine
from nni_gconv.remote.links import MachineLinks
from nni_gconv.remote.machines import Machine, machines_of
from nni_gconv.remote.ssh import Connection, RemoteError, connect, known_host_keys

__all__ = [
    "Connection",
    "FetchReport",
    "Machine",
    "MachineLinks",
    "RemoteError",
    "connect",
    "fetch_machine",
    "known_host_keys",
    "machines_of",
]
