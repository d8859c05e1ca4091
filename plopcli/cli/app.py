"""The program `plop`: its commands, and how errors are reported.

Nothing heavy is imported here; commands import what they need when they run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer

from plopcli import __version__
from plopcli.cli import (
    catalogue,
    compare,
    convert,
    doctor,
    download,
    env,
    evaluate,
    export,
    predict,
    prepare,
    report,
    run_scenario,
    train_step,
    visualize,
)
from plopcli.cli.help_pages import MAX_WIDTH, PlopCommand, PlopGroup
from plopcli.console.streams import lost_output, open_console, secure_streams
from plopcli.devices.host_memory import use_large_pages
from plopcli.errors import MachineError, PeerFailedError, StoppedError, accounted

INTERRUPTED = 130
_TRAINING = ("run-scenario", "train-step")
_EXAMPLES = """
plop download toy
plop run-scenario --dataset toy --task 15-1 --method plop
plop visualize runs/toy-15-1-overlapped-plop-s42
"""


@dataclass
class Session:
    """Values of the options before the command: whether to show tracebacks, and the command's name."""

    debug: bool = False
    command: str | None = None


app = typer.Typer(
    name="plop",
    cls=PlopGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": MAX_WIDTH},
    epilog=_EXAMPLES,
)

for _panel, _name, _command, _examples in (
    ("Data", "download", download.download, download.EXAMPLES),
    ("Data", "prepare", prepare.prepare, prepare.EXAMPLES),
    ("Training", "doctor", doctor.doctor, doctor.EXAMPLES),
    ("Training", "run-scenario", run_scenario.run_scenario, run_scenario.EXAMPLES),
    ("Training", "train-step", train_step.train_step, train_step.EXAMPLES),
    ("Training", "compare", compare.compare, compare.EXAMPLES),
    ("Results", "evaluate", evaluate.evaluate, evaluate.EXAMPLES),
    ("Results", "visualize", visualize.visualize, visualize.EXAMPLES),
    ("Results", "report", report.report, report.EXAMPLES),
    ("Results", "convert", convert.convert, convert.EXAMPLES),
    ("Use", "predict", predict.predict, predict.EXAMPLES),
    ("Use", "export", export.export, export.EXAMPLES),
    ("Look up", "methods", catalogue.methods, catalogue.METHODS_EXAMPLES),
    ("Look up", "tasks", catalogue.tasks, catalogue.TASKS_EXAMPLES),
    ("Look up", "datasets", catalogue.datasets, catalogue.DATASETS_EXAMPLES),
    ("Look up", "env", env.env, env.EXAMPLES),
):
    app.command(_name, cls=PlopCommand, epilog=_examples, rich_help_panel=_panel)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"plop {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="PLOP_DEBUG", help="Show tracebacks.", show_default=False)
    ] = False,
) -> None:
    """Continual semantic segmentation: learn classes step by step, measure what is kept, look at it."""
    session = ctx.ensure_object(Session)
    session.debug, session.command = debug, ctx.invoked_subcommand


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program with ``arguments``, by default those of the process.

    Returns:
        The exit code: 0 done, 1 the run failed, 2 usage or settings, 3 data, 4 machine, 128 + N stopped by signal N
        (130 Ctrl-C, 138 SIGUSR1, 143 SIGTERM).
    """
    session = Session()
    secure_streams()
    use_large_pages()
    code = _run(arguments, session)
    if (lost := lost_output()) is not None:
        _print_error(f"Standard output could not be written: {lost.strerror}.", "Part of what was asked for is lost.")
        # A training has left its results in the run's folder.
        return code if code or session.command in _TRAINING else MachineError.exit_code
    return code


def _run(arguments: Sequence[str] | None, session: Session) -> int:
    try:
        app(args=arguments, prog_name="plop", obj=session)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        # The library behind the commands makes it of Ctrl-C.
        return _report(KeyboardInterrupt(), session) if code == INTERRUPTED else code
    except (Exception, KeyboardInterrupt) as error:
        return _report(error, session)
    return 0


def _report(error: BaseException, session: Session) -> int:
    """Prints what happened, and gives the exit code."""
    if session.debug and not isinstance(error, KeyboardInterrupt):
        import traceback

        traceback.print_exception(error)
    account = accounted(error)
    if isinstance(account, StoppedError):
        _print((account.message, "bold yellow"), hint=account.hint or _way_on(session))
    elif not isinstance(account, PeerFailedError):
        _print_error(account.message, account.hint)
    return account.exit_code


def _way_on(session: Session) -> str | None:
    """How to go on with a command that was stopped."""
    if session.command in _TRAINING:
        return "The same command with --resume goes on from what was saved last."
    return None


def _print_error(message: str, hint: str | None) -> None:
    _print(("Error: ", "bold red"), (message, ""), hint=hint)


def _print(*parts: tuple[str, str], hint: str | None) -> None:
    from rich.text import Text

    console = open_console(highlight=False, soft_wrap=True)
    console.print(Text.assemble(*parts))
    if hint:
        console.print(Text("Hint: ", style="bold yellow") + Text(hint))
