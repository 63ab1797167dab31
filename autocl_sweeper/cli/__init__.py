"""The command `autocl`: sweeps, their reports and devices, documentation, search for scripts."""
# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from autocl_sweeper.errors import AutoCLError
from autocl_sweeper.made_with import own_version

COMMANDS = (  # each the name of a module here
    "status", "show", "best", "report", "plot", "watch", "serve", "compare", "export", "devices",
    "doctor", "docs",
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 for what cannot be read or done, said on stderr; 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="autocl",
        description="Look at sweeps and devices, and search for plain scripts.",
        epilog="Commands about one sweep take its folder last; without one, they take the newest.",
    )
    parser.add_argument("--version", action="version", version=f"autocl-sweeper {own_version()}")
    commands = parser.add_subparsers(metavar="command")
    for name in COMMANDS:
        module = import_module(f"{__name__}.{name}")
        command = commands.add_parser(name, help=module.HELP, description=module.DESCRIPTION)
        if name != "docs":
            command.add_argument("--json", action="store_true", help="the same for programs")
        module.add(command)
        command.set_defaults(run=module.run)
    commands.add_parser(
        "finetune",
        help="search hyper-parameters of a plain script, as AutoDL Finetuner did",
        add_help=False,
    )
    if "_ARGCOMPLETE" in os.environ:  # the shell asks how a line can go on
        import argcomplete

        argcomplete.autocomplete(parser)
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if words[:1] == ["finetune"]:  # its options stand before and behind the script
            from autocl_sweeper.finetune.command import main as finetune

            finetune(words[1:])
            code = 0
        else:
            given, rest = parser.parse_known_args(words)
            # argparse takes no optional folder that follows an option which follows a positional word.
            if rest and not rest[0].startswith("-") and getattr(given, "folder", ...) is None:
                given.folder = Path(rest.pop(0))
            if rest:
                parser.error(f"unrecognized arguments: {' '.join(rest)}")
            if "run" not in given:
                parser.print_help(sys.stderr)
                return 2
            code = given.run(given) or 0
        sys.stdout.flush()
    except AutoCLError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `autocl docs launcher | head`: what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return int(code)
