"""The one exception for mistakes that the user can fix."""


class UserError(Exception):
    """A mistake in input, configuration or environment.

    The message says what is wrong, where, and how to fix it. The command line prints it in one line without a traceback
    and exits with status 2.
    """
