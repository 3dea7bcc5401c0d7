"""The one exception for mistakes that the user can fix, and what every entry point does with it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake in input, configuration or environment.

    The message says what is wrong, where, and how to fix it. The command line prints it in one line without a traceback
    and exits with status 2.
    """


def entry_point(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """Decorate the `main(argv)` of a program: argv defaults to that of the process, and what ends it is one line.

    Returns exit status 2 for a UserError and 130 for Ctrl-C.
    """

    @functools.wraps(main)
    def entered(argv: list[str] | None = None) -> int:
        print_every_character()
        try:
            return main(sys.argv[1:] if argv is None else argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted; the same command continues", file=sys.stderr)
            return 130

    return entered


def run_process(main: Callable[[], int]) -> NoReturn:
    """Call the entry point of this process and end the process with its status, without clearing its memory.

    Python would search all that torch and diffusers brought for garbage: more than a second of processor time. Threads
    are waited for, and what is registered with atexit after this call is called. An exception ends it as ever.
    """
    ended: list[int] = []
    # Registered before all others, so called after them.
    atexit.register(_leave, ended)
    ended.append(main())
    sys.exit(ended[0])


def _leave(ended: list[int]) -> None:
    """Leave at once with the status in `ended`; without one an exception is on its way, and Python goes on."""
    if ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended[0])


def print_every_character() -> None:
    """Let the output of this process escape what its encoding does not have, such as an umlaut in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")
