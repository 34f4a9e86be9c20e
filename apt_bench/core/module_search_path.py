"""The order in which modules are searched: standard library, installed packages, then the user's own folders.

The user's own folders are the working directory and those of PYTHONPATH. Python searches them first, so a `random.py`
or an old `numpy/` in one of them breaks every import of the real module. apt-bench searches them last.
"""

import os
import sys  # import nothing else here: before `installed_first` runs, an import may load the user's file

RAY_PYTHONPATH = "APT_BENCH_PYTHONPATH"
"""Environment variable that passes the user's PYTHONPATH to Ray's processes; Ray itself must not see it."""


def installed_first(folder: str = "") -> None:
    """Move the user's own folders to the end of `sys.path`, so that they never replace an installed module.

    Args:
        folder: The folder to add; by default the working directory.
    """
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
    """`folder` (default: the working directory, if it exists) and the folders of PYTHONPATH, as absolute paths."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    try:
        found = [folder or os.getcwd(), *map(os.path.abspath, filter(None, entries))]
    except OSError:  # the working directory is gone
        found = [p for p in entries if os.path.isabs(p)]
    return list(dict.fromkeys(found))


def shadowed_file(module: str) -> str | None:
    """The user's own file or folder that is not imported because an installed or standard module has the same name."""
    top = module.partition(".")[0]
    if top not in sys.modules:
        return None
    imported = sys.modules[top]
    places = [*getattr(imported, "__path__", ()), getattr(imported, "__file__", None) or ""]
    for folder in user_folders():
        mine = [os.path.join(folder, top + ".py"), os.path.join(folder, top)]
        if any(os.path.realpath(place) in map(os.path.realpath, mine) for place in places if place):
            return None  # this one was imported
        for path in filter(os.path.exists, mine):
            return path
    return None
