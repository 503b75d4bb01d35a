"""The command line: `offramp VERB ...`. Each verb is one file of this folder.

A verb file offers HELP (one line), configure(parser) and execute(arguments) -> exit status, and
imports at its top nothing that is slow to load. Files whose name starts with `_` are no verbs.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from types import ModuleType
from typing import Any, NoReturn

from offramp import __version__
from offramp.errors import OfframpError, UnknownNameError, UsageError

FINE, FINDINGS, MISUSE = 0, 1, 2
INTERRUPTED = 130
BROKEN_PIPE = 141


class _Help(argparse.HelpFormatter):
    """Leaves room for the longest verb beside what it does."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog)
        self._action_max_length = 14  # argparse does not count how far verbs are indented


class Parser(argparse.ArgumentParser):
    """An argument parser that reports misuse in one line.

    Options among `takes_flags` have the next word as their value even where it begins with `-`.
    """

    takes_flags: frozenset[str] = frozenset()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's, whose own classes call it for verbs."""
        words = list(sys.argv[1:] if args is None else args)
        for at in range(len(words) - 2, -1, -1):
            if words[at] in self.takes_flags:
                words[at : at + 2] = [f"{words[at]}={words[at + 1]}"]
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see: {self.prog} --help")


def verbs() -> tuple[str, ...]:
    """The names of all verbs."""
    files = os.listdir(os.path.dirname(__file__))
    return tuple(sorted(f[:-3] for f in files if f.endswith(".py") and not f.startswith("_")))


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit status: 0 fine, 1 findings, 2 misuse, or the verb's own."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        return _main(argv)
    except OfframpError as error:
        sys.stdout.flush()
        print(f"offramp: {error}", file=sys.stderr)
        return MISUSE if isinstance(error, UsageError) else FINDINGS
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _main(argv: list[str]) -> int:
    verb = argv[0] if argv and not argv[0].startswith("-") else None
    if verb is None:
        parser = _parser(verbs())
        parser.parse_args(argv)
        parser.print_help(sys.stderr)
        return MISUSE
    if verb not in verbs():
        raise UnknownNameError("verb", verb, verbs(), hint="see: offramp --help")
    # What follows `--` belongs to the command that is run, and is not for this parser to read.
    split = argv.index("--") if "--" in argv else len(argv)
    arguments = _parser((verb,)).parse_args(argv[:split])
    tail = argv[split + 1 :]
    if hasattr(arguments, "command"):
        arguments.command = [*arguments.command, *tail]
    elif tail:
        raise UsageError(f"offramp {verb} takes nothing after '--', got {tail[0]!r}")
    module: ModuleType = arguments.verb
    status = module.execute(arguments)
    sys.stdout.flush()
    return int(status)


def _parser(names: tuple[str, ...]) -> Parser:
    parser = Parser(
        prog="offramp",
        description="Run PyTorch programs written for CUDA on the chips you can get, "
        "or on virtual ones.",
        allow_abbrev=False,
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"offramp {__version__}")
    choices = parser.add_subparsers(title="verbs", metavar="VERB", parser_class=Parser)
    for name in names:
        module = importlib.import_module(f"offramp.cli.{name}")
        one = choices.add_parser(
            name, help=module.HELP, description=module.HELP, allow_abbrev=False
        )
        module.configure(one)
        one.set_defaults(verb=module)
    return parser
