"""A process goes on in one that has loaded torch already; see the fixture ``warm``.

What cannot, since it is of another machine, and only loads NNI to see whether it does, loads it
without what it has no use for. Python imports this file when it starts, of a folder on PYTHONPATH.
"""

import os
import sys

#: The command, what starts its processes, NNI's dispatcher and what else its manager starts.
MODULES = (
    "nni_gconv", "nni_gconv.compat.torchrun", "nni",
    "nni.tools.nni_manager_scripts.collect_version_info",
)  # fmt: skip
#: What looks at a tuner, as ``create`` starts it; nnictl.
SCRIPTS = ("nni_gconv/experiment/checks/probe.py", "tests/helpers/patient_nnictl.py")

# torchrun says -u, the check of a tuner -W ignore.
asked = [word for word in sys.orig_argv[1:] if word not in ("-u", "-W", "ignore")]
first, second = [*asked, "", ""][:2]
module = second if first == "-m" else ""
forked = module in MODULES or first.endswith(SCRIPTS) or first == os.environ.get("WARM_SCRIPT", "-")
if os.environ.get("WARM_SOCKET") and forked:
    import signal

    from asking import stand_for

    stand_for(os.environ["WARM_SOCKET"], asked, signal.SIGINT, signal.SIGTERM)
if module.startswith("nni.tools.nni_manager_scripts.") or second.startswith("import nni"):
    import light_nni  # noqa: F401
