"""The one exception for mistakes that the user can fix, and what every entry point does with it."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

STDOUT = 1  # its file descriptor
UNREAD = 128 + signal.SIGPIPE  # status of a process whose output nobody reads any more, as a shell knows it


class UserError(Exception):
    """A mistake in input, configuration or environment.

    The message says what is wrong, where, and how to fix it. The command line prints it in one line without a traceback
    and exits with status 2.
    """


def entry_point(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """Decorate the `main(argv)` of a program: argv defaults to that of the process, and what ends it is one line.

    Returns exit status 2 for a UserError, also where the output cannot be written, 130 for Ctrl-C, and 141 for output
    that nobody reads any more, as after `| head -1`.
    """

    @functools.wraps(main)
    def entered(argv: list[str] | None = None) -> int:
        print_every_character()
        try:
            with _output_written():
                return main(sys.argv[1:] if argv is None else argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ninterrupted; the same command continues", file=sys.stderr)
            return 130
        except BrokenPipeError:
            if not _unread():
                raise
            _discard_output()
            return UNREAD

    return entered


@contextlib.contextmanager
def _output_written() -> Iterator[None]:
    """Write out what a block has printed, unless an error ends it; raises UserError where that is not possible."""
    stop: SystemExit | None = None
    try:
        yield
    except SystemExit as end:
        stop = end
    try:
        if sys.stdout is not None:  # it is where the process was started without one
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_output()
        raise UserError(f"the output of this command cannot be written: {error.strerror}") from None
    if stop is not None:
        raise stop


def _unread() -> bool:
    """Return whether the output goes into a pipe that nobody reads any more."""
    poll = select.poll()
    poll.register(STDOUT, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _discard_output() -> None:
    """Let what is still to be written go nowhere: Python would try once more at the end, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDOUT)
    os.close(nowhere)


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
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(ended[0])


def print_every_character() -> None:
    """Let the output of this process escape what its encoding does not have, such as an umlaut in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError):  # it is closed
                stream.reconfigure(errors="backslashreplace")
