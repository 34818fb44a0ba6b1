"""Other machines: logging in, tunnels back, checks beforehand, fetching results.

Begin with :func:`machines_of`, the machines of an experiment file, and :func:`connect`. `probe`
asks a machine what it has and `check` judges it, :class:`MachineLinks` keeps tunnels open,
:func:`fetch_machine` copies results. Knows of files, compat and paramiko.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from nni_gconv.remote.check import ERROR, OK, PACKAGES, WARNING, Finding, Wanted, check_machine
    from nni_gconv.remote.code_size import MAX_BYTES, MAX_FILES, code_size
    from nni_gconv.remote.fetch import FetchReport, fetch_machine
    from nni_gconv.remote.install import bring
    from nni_gconv.remote.links import MachineLinks
    from nni_gconv.remote.machines import Machine, machines_of
    from nni_gconv.remote.probe import MachineFacts
    from nni_gconv.remote.ssh import Connection, RemoteError, connect, known_host_keys
    from nni_gconv.remote.ssh_config import way_to, with_ssh_config
    from nni_gconv.remote.yaml_lines import line_of, plain_key

__all__ = [
    "ERROR",
    "MAX_BYTES",
    "MAX_FILES",
    "OK",
    "PACKAGES",
    "WARNING",
    "Connection",
    "FetchReport",
    "Finding",
    "Machine",
    "MachineFacts",
    "MachineLinks",
    "RemoteError",
    "Wanted",
    "bring",
    "check_machine",
    "code_size",
    "connect",
    "fetch_machine",
    "known_host_keys",
    "line_of",
    "machines_of",
    "plain_key",
    "way_to",
    "with_ssh_config",
]

# Lazy: a help page loads no torch.
__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "check": ["ERROR", "Finding", "OK", "PACKAGES", "WARNING", "Wanted", "check_machine"],
        "code_size": ["MAX_BYTES", "MAX_FILES", "code_size"],
        "fetch": ["FetchReport", "fetch_machine"],
        "install": ["bring"],
        "links": ["MachineLinks"],
        "machines": ["Machine", "machines_of"],
        "probe": ["MachineFacts"],
        "ssh": ["Connection", "RemoteError", "connect", "known_host_keys"],
        "ssh_config": ["way_to", "with_ssh_config"],
        "yaml_lines": ["line_of", "plain_key"],
    },
)
