"""The one exception for mistakes that the user can mend."""


class UserError(Exception):
    """A mistake of input, configuration or environment.

    The message says what was wrong, where, and what mends it. The command line prints it in one
    line without a traceback and exits with status 2.
    """
