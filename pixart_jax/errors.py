"""The one exception that means "your input is at fault"."""


class InputError(ValueError):
    """Bad configuration, data or checkpoint.

    The message names the file, key or field and the cure. `main` and the tools print it without a traceback and exit
    with status 2; library callers may catch it like any ValueError.
    """
