"""The command group, and what becomes of whatever a command raises: one line and an exit code."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

import click

from dynamo.cli.showing import one_line

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

COMMANDS = ("serve", "ls", "call", "doctor", "bench", "manifests")

EPILOG = """\b
Examples:
  dynamo serve hello:Frontend -f config.yaml    a service and what it needs
  dynamo ls                                     what is served, and where
  dynamo call demo.backend.generate '{"prompt": "hi"}'
  dynamo doctor                                 what is set, and what is wrong
  dynamo bench demo.backend.generate '{"prompt": "hi"}' -c 64 -n 10000
  dynamo manifests kubernetes ...               what a cluster needs to run it

\b
Exit codes:
  0    done
  1    the call, the check or the backend failed
  2    a mistake in the command line, a variable or an option
  130  interrupted by Ctrl-C

Where it looks is what the environment says (DYN_DISCOVERY_BACKEND, DYN_REQUEST_PLANE, ...: see
`dynamo doctor`), or --discovery and --request-plane. Colours are for terminals; NO_COLOR=1 turns
them off.

\b
Completion of commands, options and endpoints:
  ~/.bashrc         eval "$(_DYNAMO_COMPLETE=bash_source dynamo)"
  ~/.zshrc          eval "$(_DYNAMO_COMPLETE=zsh_source dynamo)"
  config.fish       _DYNAMO_COMPLETE=fish_source dynamo | source
"""


class LazyGroup(click.Group):
    """Each command is a module of its own, imported when it is run or listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        close = difflib.get_close_matches(args[0], COMMANDS, n=1)
        if args[0] not in COMMANDS and close:
            ctx.fail(f"no command {args[0]!r}; did you mean {close[0]!r}?")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = importlib.import_module(f"dynamo.cli.{cmd_name}").command
        assert isinstance(found, click.Command)
        return found


@click.group(
    cls=LazyGroup,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="dynamo-runtime-py", prog_name="dynamo", message="%(prog)s %(version)s")
def dynamo() -> None:
    """See, call and check the services of a deployment."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; nothing but an exit code comes out of a user's mistake."""
    try:
        code = dynamo.main(list(arguments), prog_name="dynamo", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else OK
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx is not None else "dynamo"
        return _complain(f"{path}: {error.format_message()} (see '{path} --help')", USAGE)
    except click.ClickException as error:
        return _complain(f"dynamo: {error.format_message()}", USAGE)
    except (KeyboardInterrupt, click.Abort):
        return _complain("dynamo: interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Who read us is gone, as `| head` goes: no complaint, and none when Python flushes at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        return _refuse(error)


def _refuse(error: Exception) -> int:
    from dynamo.core.errors import ConfigError, DynamoError, RemoteError

    if not isinstance(error, DynamoError):
        raise error
    name = f"{type(error).__name__}: "
    if isinstance(error, RemoteError):
        name = (
            "the handler raised "
            if error.type_name in str(error)
            else f"the handler raised {error.type_name}: "
        )
    elif error.remote:
        name = f"the handler raised {name}"
    if isinstance(error, ConfigError) and not error.remote:
        return _complain(f"dynamo: {error}", USAGE)
    return _complain(f"dynamo: {name}{error}", FAILED)


def _complain(message: str, code: int) -> int:
    click.echo(one_line(message), err=True)
    return code
