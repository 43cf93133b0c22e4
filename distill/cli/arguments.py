"""What the commands' parsers share."""

from __future__ import annotations

import argparse


def add_command(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    summary: str,
    epilog: str,
    *,
    description: str = "",
) -> argparse.ArgumentParser:
    """A command or action whose help shows its examples (`epilog`) as they are written.

    Args:
        summary: its line in the list of commands, which also describes it where there is no `description`.
    """
    return subparsers.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
