"""The command line. Each module of this package adds its verbs with `register(app)`.

The console script imports this module before `main` can catch Ctrl-C, so it imports next to nothing itself.
"""

from __future__ import annotations

# isort: off
import apt_bench.cli._first  # noqa: F401  # before anything that a file in the working directory may shadow

# isort: on
import os
import sys

TYPE_CHECKING = False  # importing typing takes time; type checkers accept this name
if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import typer

VERBS = {
    "run": "run",
    "report": "report",
    "view": "view",
    "play": "play",
    "watch": "watch",
    "compare": "compare",
    "check": "compare",
    "power": "compare",
    "ls": "ls",
    "validate": "validate",
    "doctor": "doctor",
    "collect": "collect",
    "replay": "replay",
    "train": "train",
    "serve": "serve",
    "probe": "probe",
    "import": "import_run",
    "export": "import_run",
    "trials": "trials",
}
"""Verb -> module of this package that defines it, in the order of the help."""

WITHOUT_VERB = ("--version", "--install-completion", "--show-completion")
"""Options that need no verb's module."""

INTERRUPTED, PIPE_CLOSED = 130, 141
"""Exit codes after Ctrl-C and after a closed pipe (`apt-bench ls tasks | head`): the numbers that shells use."""


def build(verb: str | None = None, names_only: bool = False) -> typer.Typer:
    """Make the application.

    Args:
        verb: The first word of the command line. If it is a verb, only that verb's module is imported, because some
            modules import torch; if it is one of `WITHOUT_VERB`, none is.
        names_only: Import no module and leave the verbs without options. This is enough to complete a verb's name.
    """
    from importlib import import_module

    import typer

    def show(version: bool) -> None:
        if version:
            from apt_bench import __version__

            print(f"apt-bench {__version__}")
            raise typer.Exit

    def options(
        version: bool = typer.Option(
            False, "--version", callback=show, is_eager=True, help="Show the version and exit."
        ),
    ) -> None:
        """Does a robot policy follow the instruction, or only what it sees?"""

    app = typer.Typer(
        name="apt-bench",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)  # also makes Typer expect a verb where only one is registered
    if names_only:
        for name in VERBS:
            app.command(name)(lambda: None)
    elif verb not in WITHOUT_VERB:
        for module in [VERBS[verb]] if verb in VERBS else dict.fromkeys(VERBS.values()):
            import_module(f"{__name__}.{module}").register(app)
    return app


def main() -> None:
    """Entry point. Exit codes: the verb's own; 2 for bad input, with a message on stderr; 70 for an error of apt-bench
    itself, with one line on stderr and the traceback in a file; 130 when interrupted."""
    _use_utf8()
    _open_streams()
    try:
        with _ends_at_once():
            _prepare()
            app = _completing() or _built()
        code = _interruptible(app)
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = _interrupted()
    except BrokenPipeError:
        code = PIPE_CLOSED
    except Exception as error:
        code = _failed(error)
    _leave(code)


def _use_utf8() -> None:
    """Make Python read names of files and the command line as UTF-8 under every locale.

    If Python was started with another encoding, start it again. PYTHONIOENCODING still applies to its streams."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})


def _open_streams() -> None:
    """Open the null device for streams that were closed before the start (`>&-`).

    Otherwise the next file that is opened would get a stream's number, and libraries would print into that file."""
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)  # as a stream is
            setattr(sys, name, stream)


def _prepare() -> None:
    """Let the streams accept any text, and put the working directory last on the search path for modules, so that
    `--policy my_module:MyPolicy` and `env: my_module:MyEnv` are found there."""
    import io

    from apt_bench.core.module_search_path import installed_first

    for stream in (sys.stdout, sys.stderr):  # a locale that is not UTF-8 must not end a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    installed_first()


def _built() -> typer.Typer:
    from apt_bench.core.status import status

    with status("Loading apt-bench"):
        return build(sys.argv[1] if len(sys.argv) > 1 else None)


def _completing() -> typer.Typer | None:
    """The application for a shell that completes a command line; None in an ordinary call."""
    if "_APT_BENCH_COMPLETE" not in os.environ:
        return None
    from apt_bench.cli._completion import words

    verb = next(iter(words()), None)
    return build(verb, names_only=verb not in VERBS)


def _interruptible(app: typer.Typer) -> int:
    """`_call`. An exception that is raised after Ctrl-C was pressed is replaced by KeyboardInterrupt."""
    from apt_bench.core.signals import interrupt_on_signals

    with interrupt_on_signals() as pressed:
        try:
            return _call(app)
        except Exception:
            if pressed():
                raise KeyboardInterrupt from None
            raise


def _call(app: typer.Typer) -> int:
    """Parse the command line, run its verb and return the exit code.

    Click's own loop would turn Ctrl-C and a closed pipe into exit code 1, which is a verdict."""
    import io

    import typer

    from apt_bench.core.text import message

    command = typer.main.get_command(app)
    if "_APT_BENCH_COMPLETE" in os.environ:
        command.main(prog_name="apt-bench")  # prints the completions and exits
    try:
        with command.make_context("apt-bench", sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    except typer.Abort:
        raise KeyboardInterrupt from None
    except Exception as error:
        if not callable(getattr(error, "show", None)):
            raise
        said = io.StringIO()
        error.show(file=said)  # type: ignore[attr-defined]  # Click's usage errors, in whichever Click typer brings
        sys.stderr.write(message(said.getvalue().replace(": Value error, ", ": ")))  # pydantic's words
        return 2
    return 0


def _failed(error: Exception) -> int:
    from apt_bench.core.errors import INTERNAL_ERROR, UserError
    from apt_bench.core.files import NOT_OURS, reason
    from apt_bench.core.text import one_line, say

    if isinstance(error, UserError):
        say(error)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in NOT_OURS:
        say(f"{reason(error)}{one_line(f': {error.filename}', 300) if error.filename else ''}.")
        return UserError.exit_code
    say(crashed(error))
    return INTERNAL_ERROR


def crashed(error: BaseException) -> str:
    """One line about an unexpected error. The traceback is written to a file, and the line names the file."""
    import tempfile
    import traceback

    from apt_bench.core.errors import describe_error
    from apt_bench.core.text import one_line

    text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
    try:
        handle, path = tempfile.mkstemp(prefix="apt-bench-error-", suffix=".txt")
        with open(handle, "wb") as file:
            file.write(text)
    except OSError as unwritten:
        path = f"nowhere ({unwritten.strerror})"
    return f"internal error: {one_line(describe_error(error), 300)}. The traceback is in {path}."


def _interrupted() -> int:
    sys.stderr.write("apt-bench: interrupted. Rerun the same command to resume.\n")
    return INTERRUPTED


def _ends_at_once() -> AbstractContextManager[None]:
    """Let Ctrl-C end the program with one line while modules are imported.

    There is nothing to save yet. A module that is being imported could swallow an exception or report it as its own."""
    import signal
    from contextlib import contextmanager

    from apt_bench.core.status import hide

    def end(number: int, frame: object) -> None:
        hide()
        os.write(2, b"apt-bench: interrupted. Rerun the same command to resume.\n")
        os._exit(INTERRUPTED)

    @contextmanager
    def block() -> Iterator[None]:
        import threading

        ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if ours:
            signal.signal(signal.SIGINT, end)
        try:
            yield
        finally:
            if ours and signal.getsignal(signal.SIGINT) is end:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    return block()


def _leave(code: int) -> None:
    """End with this code, also where the rest of the output cannot be written to stdout (Python would end with 120)."""
    from contextlib import suppress

    exec("")  # without this, a caught Ctrl-C in another `exec` makes Python end by a signal
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):  # a stream of a test, without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)
