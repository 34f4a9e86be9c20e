"""Where modules are looked for: the standard library, then installed packages, then the user's own folders.

The user's own folders are the working directory and those of PYTHONPATH. Python puts them first, so that a `random.py`
or an old `numpy/` lying there breaks whatever imports the real one. Here they come last.
"""

import os
import sys  # nothing else: whatever is imported before `installed_first` may be the user's

RAY_PYTHONPATH = "APT_BENCH_PYTHONPATH"
"""In Ray's processes: the user's PYTHONPATH, which Ray itself must not see."""


def installed_first(folder: str = "") -> None:
    """Let modules of `folder` (default: the working directory) and of PYTHONPATH be imported, but never in the place
    of the standard library's or an installed package's."""
    own = user_folders(folder)
    real = {_real(path) for path in own} - {os.path.dirname(os.path.realpath(os.__file__))}
    sys.path[:] = [p for p in sys.path if _real(p or os.curdir) not in real]
    sys.path += [p for p in own if p not in sys.path]


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except OSError:  # the working directory is gone
        return path


def user_folders(folder: str = "") -> list[str]:
    """`folder` (default: the working directory, where there is one) and those of PYTHONPATH."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    try:
        found = [folder or os.getcwd(), *map(os.path.abspath, filter(None, entries))]
    except OSError:  # the working directory is gone
        found = [p for p in entries if os.path.isabs(p)]
    return list(dict.fromkeys(found))


def hidden(module: str) -> str | None:
    """The user's own file or folder of this module's name that is not imported, because an installed module, or the
    standard library's, has its name."""
    top = module.partition(".")[0]
    if top not in sys.modules:
        return None
    used = sys.modules[top]
    places = [*getattr(used, "__path__", ()), getattr(used, "__file__", None) or ""]
    for folder in user_folders():
        mine = [os.path.join(folder, top + ".py"), os.path.join(folder, top)]
        if any(os.path.realpath(place) in map(os.path.realpath, mine) for place in places if place):
            return None  # it is what was imported
        for path in filter(os.path.exists, mine):
            return path
    return None
