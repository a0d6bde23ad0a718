"""`python -m mailqueue.embedded run` starts everything; `exec -- COMMAND` one command among its services."""

import argparse
import sys

from mailqueue.embedded import demo, services, stack
from mailqueue.embedded.process import CannotStartError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m mailqueue.embedded", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run", help="the whole stack, in the foreground, until Ctrl-C")
    execute = commands.add_parser("exec", help="run a command with PostgreSQL and Redis behind it")
    execute.add_argument("--temporary", action="store_true", help="new and empty ones, gone afterwards")
    execute.add_argument("argv", nargs="+", metavar="COMMAND")
    commands.add_parser(
        "demo", help="`manage.py demo` against the running stack, or one started for it", add_help=False
    )
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "demo":
        parser.error(f"unknown: {' '.join(rest)}")
    try:
        if arguments.command == "run":
            return stack.run()
        if arguments.command == "demo":
            return demo.run(rest)
        return services.execute(arguments.argv, temporary=arguments.temporary)
    except CannotStartError as error:
        sys.stderr.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
