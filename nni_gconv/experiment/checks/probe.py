"""Look at a tuner's or assessor's class in a process of its own, as NNI will load it.

Started by its path, knows nothing of this package, prints one line of JSON: ``problem`` (what will
not work, or null) and ``seconds`` that the import took. A module of the user's may take long, print
or exit; none of that reaches the caller.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import sys
import time
from typing import Any


def _problem(asked: dict[str, Any]) -> str | None:
    name, where = asked["className"], f"{asked['kind']}.className {asked['className']}"
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        return f"{where}: write MODULE.CLASS, such as nni_gconv.tuner.ParetoTuner"
    try:
        module = importlib.import_module(module_name)
        kind = getattr(module, class_name, None)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            folder = asked["codeDirectory"]
            return f"{where}: there is no module {error.name!r}, neither installed nor in {folder}"
        return f"{where}: it needs {error.name!r}, which is not installed{_extra(error.name)}"
    except BaseException as error:
        return f"{where}: its import raises {type(error).__name__}: {error}"
    if not inspect.isclass(kind):
        public = getattr(module, "__all__", None) or [n for n in vars(module) if n[0].isupper()]
        close = difflib.get_close_matches(class_name, public, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: {module_name} has no class {class_name!r}{hint}"
    return (
        _wrong_kind(kind, asked, where)
        or _wrong_arguments(kind, asked)
        or (_would_raise(kind, asked) if asked.get("name") else None)
    )


def _extra(module: str | None) -> str:
    extras = {"ConfigSpace": "bohb", "statsmodels": "bohb", "hyperopt": "anneal"}
    name = extras.get((module or "").partition(".")[0])
    return f": pip install 'nni-gconv[{name}]'" if name else ""


def _wrong_kind(kind: type, asked: dict[str, Any], where: str) -> str | None:
    from nni.assessor import Assessor
    from nni.runtime.msg_dispatcher_base import MsgDispatcherBase
    from nni.tuner import Tuner

    bases = (Tuner, MsgDispatcherBase) if asked["kind"] == "tuner" else (Assessor,)
    if issubclass(kind, bases):
        return None
    return f"{where}: is no subclass of nni.{asked['kind']}.{asked['kind'].capitalize()}"


def _wrong_arguments(kind: type, asked: dict[str, Any]) -> str | None:
    args, where = asked["classArgs"], f"{asked['kind']}.classArgs"
    parameters = inspect.signature(kind).parameters
    free = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    unknown = [] if free else [name for name in args if name not in names]
    if unknown:
        close = difflib.get_close_matches(unknown[0], names, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown argument {unknown[0]!r}{hint} (allowed: {', '.join(names)})"
    missing = [
        n for n in names if parameters[n].default is inspect.Parameter.empty and n not in args
    ]
    if missing:
        return f"{where}: {missing[0]!r} is needed"
    check = getattr(kind, "check_experiment", None)
    if check is None:
        return None
    try:
        check(asked["searchSpace"], **args)
    except Exception as error:  # whatever it raises would be raised in NNI's dispatcher
        return f"{asked['kind']}: {error}"
    return None


def _would_raise(kind: type, asked: dict[str, Any]) -> str | None:
    """Begin one of NNI's own as NNI will, which looks at nothing before."""
    where = f"{asked['kind']}.classArgs of {asked['name']}"
    try:
        made = kind(**asked["classArgs"])
    except Exception as error:
        return f"{where}: {type(error).__name__}: {error}"
    begin = getattr(made, "update_search_space", None)
    if begin is None:
        return None
    try:
        begin(asked["searchSpace"])
    except Exception as error:
        return f"search space: {asked['name']} does not take it: {type(error).__name__}: {error}"
    return None


def main() -> None:
    """Answer the question on the command line."""
    sys.path.pop(0)  # this file's own folder
    asked = json.loads(sys.argv[1])
    # As NNI does.
    sys.path.append(asked["codeDirectory"])
    os.chdir(asked["codeDirectory"])
    sys.argv[1:] = ["--exp_params", asked["expParams"]]
    answer = os.dup(1)
    os.dup2(2, 1)
    started = time.monotonic()
    problem = _problem(asked)
    words = " ".join(problem.split()) if problem else None
    text = json.dumps({"problem": words, "seconds": time.monotonic() - started})
    os.write(answer, text.encode())
    os._exit(0)


if __name__ == "__main__":
    main()
