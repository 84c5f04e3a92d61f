"""The `luciola` command: one file a group of commands.

Every command answers `--help` with an example, prints errors as one line that says what to do, exits 0 on success,
1 on an operating error, 2 on wrong usage, and speaks JSON with `--json`. Commands are imported when they are used,
so that `luciola ls` does not pay for the supervisor. Plugins add commands by the entry-point group
`luciola.commands`: the entry's name is the command's, its value a click command in a module that imports nothing heavy
before it runs.
"""

import sys
from importlib import import_module
from typing import Final, NoReturn

import click

from luciola import __version__

from .output import describe_error, fail

# command -> (module, attribute)
COMMANDS: Final = {
    "up": ("cluster", "up"),
    "down": ("cluster", "down"),
    "init": ("host", "init"),
    "invite": ("host", "invite"),
    "join": ("host", "join"),
    "serve": ("host", "serve"),
    "certificate": ("certificate", "certificate"),
    "status": ("cluster", "status"),
    "health": ("health_check", "health"),
    "mount": ("mount", "mount"),
    "umount": ("mount", "umount"),
    "ls": ("files", "ls"),
    "cp": ("copy", "cp"),
    "cat": ("files", "cat"),
    "rm": ("files", "rm"),
    "stat": ("files", "stat"),
    "info": ("info", "info"),
    "doctor": ("doctor", "doctor"),
    "mkdir": ("files", "mkdir"),
    "du": ("files", "du"),
    "watch": ("watch", "watch"),
    "layout": ("layout", "layout"),
    "fsck": ("fsck", "fsck"),
    "dump": ("dump", "dump"),
    "load": ("load", "load"),
    "backup": ("backup.command", "backup"),
    "restore": ("backup.command", "restore"),
    "bench": ("bench", "bench"),
    "chain": ("chain", "chain"),
    "node": ("node", "node"),
    "rebalance": ("rebalance", "rebalance"),
    "metadata": ("metadata", "metadata"),
    "clients": ("clients", "clients"),
    "top": ("top", "top"),
    "token": ("token", "token"),
    "audit": ("audit", "audit"),
    "config": ("config", "config"),
    "rdma": ("rdma", "rdma"),
    "plugins": ("plugins", "plugins"),
}


COMMANDS_OF_PLUGINS: Final = "luciola.commands"


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        from importlib.metadata import entry_points

        return [*COMMANDS, *sorted(entry_points(group=COMMANDS_OF_PLUGINS).names)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        place = COMMANDS.get(cmd_name)
        if place is not None:
            command = getattr(import_module(f".{place[0]}", __name__), place[1])
        else:
            from importlib.metadata import entry_points

            found = tuple(entry_points(group=COMMANDS_OF_PLUGINS, name=cmd_name))
            if not found:
                return None
            command = found[0].load()
        assert isinstance(command, click.Command), f"{place} is not a command"
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="luciola")
def cli() -> None:
    """Luciola, a distributed file system for AI training and inference.

    Start a cluster on this machine and use it:

    \b
      luciola up --data /var/lib/luciola --mount /mnt/luciola
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line, and turn operating errors into one line and an exit code."""
    try:
        code = cli.main(args=arguments, prog_name="luciola", standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        fail("interrupted", code=130)
    except BrokenPipeError:
        # The reader of our output is gone (as in `luciola ls | head`): nothing is left to say.
        sys.stdout = None
        code = 141
    except OSError as error:
        fail(describe_error(error), code=1)
    sys.exit(code if isinstance(code, int) else 0)


__all__ = ["COMMANDS", "LazyGroup", "cli", "main"]
