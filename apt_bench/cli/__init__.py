"""The command line. Each module of this package adds its verbs with `register(app)`."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import traceback
from importlib import import_module
from pkgutil import iter_modules
from typing import Annotated

import typer

from apt_bench.core.errors import INTERNAL_ERROR, UserError
from apt_bench.core.text import one_line, say

FIRST = ("run", "report", "compare", "ls", "validate", "doctor")
"""What the help shows first."""

SuiteName = Annotated[str, typer.Option(help="Name of a shipped suite, or path of a suite's YAML file.")]
PolicyName = Annotated[str, typer.Option(help="Name of a shipped policy, or my_module:MyPolicy.")]
CellList = Annotated[str | None, typer.Option(help="Comma list of cells. Default: the headline cells.")]
TaskList = Annotated[str | None, typer.Option(help="Comma list of tasks: part of a name, or an index.")]
TrackName = Annotated[str, typer.Option("--track", help="Send metrics to wandb or trackio; or none.")]
Episodes = Annotated[int | None, typer.Option(help="Initial states per task. Default: the suite's.")]
Seed = Annotated[int | None, typer.Option(help="Default: the suite's.")]
Limit = Annotated[int | None, typer.Option(help="Only the first so many episodes.")]
Workers = Annotated[str, typer.Option(help="auto, a number, or 0 for this process without Ray.")]
RayAddress = Annotated[
    str | None, typer.Option(help="Join this Ray cluster; folders must be on a disk that all of it sees.")
]
Unpinned = Annotated[
    bool, typer.Option("--unpinned", help="Run on other simulator versions than the suite's.")
]
PolicyArgs = Annotated[list[str] | None, typer.Option(help="key=value for the policy; may be repeated.")]


def build(verb: str | None = None) -> typer.Typer:
    """The application. Where a module bears the verb's name only that one is imported: some import torch."""
    app = typer.Typer(
        name="apt-bench",
        help="Does a robot policy follow the instruction, or only what it sees?",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(lambda: None)  # verbs stay verbs even where there is one alone
    found = {m.name for m in iter_modules(__path__) if not m.name.startswith("_")}
    names = [verb] if verb in found else [*(n for n in FIRST if n in found), *sorted(found - {*FIRST})]
    for name in names:
        import_module(f"{__name__}.{name}").register(app)
    return app


def main() -> None:
    """Entry point: a message on stderr and exit code 2 for bad input, 70 for an error of apt-bench itself, 130 when
    interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a locale that is not UTF-8 must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if os.getcwd() not in sys.path:  # --policy my_module:MyPolicy, env: my_module:MyEnv
        sys.path.insert(0, os.getcwd())
    try:
        build(sys.argv[1] if len(sys.argv) > 1 else None)()
    except UserError as error:
        say(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted. Rerun the same command to resume.")
        sys.exit(130)
    except BrokenPipeError:  # `apt-bench ls tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        say(crashed(error))
        sys.exit(INTERNAL_ERROR)


def crashed(error: BaseException) -> str:
    """One line about an error that apt-bench did not expect; the traceback goes to a file, which the line names."""
    text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
    try:
        handle, path = tempfile.mkstemp(prefix="apt-bench-error-", suffix=".txt")
        with open(handle, "wb") as file:
            file.write(text)
    except OSError as unwritten:
        path = f"nowhere ({unwritten.strerror})"
    return f"internal error: {one_line(f'{type(error).__name__}: {error}', 300)}. The traceback is in {path}."


def words(text: str | None) -> tuple[str, ...]:
    """A comma list of the command line; what is named twice is one."""
    return tuple(dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip()))
