"""The command line, ``nni-gconv``.

Each command is one small module here, which imports what it needs when it is called: help and
mistakes answer at once, without loading torch.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from nni_gconv.cli.completion import join_at_colons
from nni_gconv.cli.docs import docs
from nni_gconv.cli.doctor.command import doctor
from nni_gconv.cli.examples import epilog
from nni_gconv.cli.experiments.create import create
from nni_gconv.cli.experiments.fetch import fetch
from nni_gconv.cli.experiments.quickstart import quickstart
from nni_gconv.cli.experiments.report import report
from nni_gconv.cli.experiments.resume import resume
from nni_gconv.cli.experiments.search_space import search_space
from nni_gconv.cli.networks.compare import compare
from nni_gconv.cli.networks.export import export
from nni_gconv.cli.networks.init import init
from nni_gconv.cli.networks.inspect import inspect
from nni_gconv.cli.networks.optimize import optimize
from nni_gconv.cli.networks.profile import profile
from nni_gconv.cli.networks.search_groups import search_groups
from nni_gconv.cli.networks.sensitivity import sensitivity
from nni_gconv.cli.networks.shrink import shrink
from nni_gconv.cli.run import run
from nni_gconv.cli.signals import Terminated, interruptible, interruptible_command
from nni_gconv.errors import NniGconvError

__all__ = ["app", "main"]

# Errors of click and of the click that newer typers carry inside share only this base's name.
_UsageError: type[Exception] = next(
    cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException"
)

_INTERRUPTED = 130
#: Without them next to nothing works: the doctor says why they are not there.
_INSTALLED_WITH_US = ("torch", "torchvision", "nni", "numpy", "scipy", "pydantic", "safetensors")

app = typer.Typer(
    name="nni-gconv",
    help="Structured pruning and group convolution for NNI: smaller, equal, reloadable networks.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    epilog="Exit codes: 0 success, 1 a bug, 2 a mistake in the input, 3 trials failed, "
    "4 the experiment broke, 5 it was stopped from outside, 130 Ctrl-C.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        from nni_gconv._version import __version__

        parts = []
        for package in ("torch", "nni"):
            try:
                parts.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                parts.append(f"{package} not installed")
        python = ".".join(map(str, sys.version_info[:3]))
        typer.echo(f"nni-gconv {__version__} ({', '.join(parts)}, Python {python})")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


for _command in (
    shrink,
    init,
    run,
    quickstart,
    create,
    resume,
    fetch,
    report,
    compare,
    profile,
    doctor,
    docs,
    inspect,
    search_groups,
    search_space,
    sensitivity,
    export,
    optimize,
):
    _name = _command.__name__.replace("_", "-")
    app.command(_name, epilog=epilog(_name))(interruptible_command(_command))


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and leave with its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; default: those of the process.

    Raises
    ------
    SystemExit
        Always. 0 only on success; 2 with one line ``error: ...`` on standard error for what a
        user can fix; 130 after Ctrl-C. Any other exception is a bug and shows its traceback.

    Examples
    --------
    >>> main(["--version"])  # doctest: +SKIP
    nni-gconv 0.2.0 (torch 2.15.0, nni 3.0, Python 3.11.2)
    """
    try:
        # What is heavy is imported later, when a command says how to go on.
        with interruptible("nothing was begun"):
            join_at_colons()
            command = typer.main.get_command(app)
        code = command.main(
            args=None if argv is None else list(argv), prog_name="nni-gconv", standalone_mode=False
        )
    except NniGconvError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        _not_installed(error)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # the message is the help page
            typer.echo(error.format_message())  # type: ignore[attr-defined]
            sys.exit(2)
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "nni-gconv"
        _fail(f"{error.format_message()} (see {path} --help)")  # type: ignore[attr-defined]
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED  # newer typers return it, older ones raise
    except Terminated:
        code = _INTERRUPTED
        _end_by(signal.SIGTERM)
    except BrokenPipeError:
        # `nni-gconv report ... | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(_os_words(error))
    except MemoryError:
        _fail(_NO_MEMORY)
    except RuntimeError as error:
        if not re.search(r"out of memory|can't allocate memory|not enough memory", str(error)):
            raise
        _fail(_NO_MEMORY)
    if code == _INTERRUPTED and "NNI_TRIAL_JOB_ID" in os.environ:
        # NNI interrupts a trial to stop it early, and counts one that then exits with a code as
        # failed; one that the signal itself ends is stopped or cancelled.
        _end_by(signal.SIGINT)
    sys.exit(code if isinstance(code, int) else 0)


def _not_installed(error: ModuleNotFoundError) -> NoReturn:
    """Send a person to the doctor for what has to be there; anything else is a bug."""
    package = (error.name or "").partition(".")[0]
    if package not in _INSTALLED_WITH_US:
        raise error
    _fail(f"{package} is not installed; `nni-gconv doctor` says what is missing and how to fix it")


def _end_by(number: signal.Signals) -> None:
    """End as one that this signal ended; whoever started the process can tell."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


_NO_MEMORY = "not enough memory: take a smaller batch, image or network"


def _os_words(error: OSError) -> str:
    """Say what the system refused, on which file, and what to do."""
    what = error.strerror or str(error) or type(error).__name__
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    place = f"{' -> '.join(names)}: " if names else ""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = (
        "; what was finished is kept: make room and run it again" if error.errno in full else ""
    )
    return f"{place}{what}{remedy}"


def _fail(message: str) -> NoReturn:
    typer.echo("error: " + " ".join(message.split()), err=True)
    sys.exit(2)
