"""The errors that end a run with a message in place of a traceback."""


class InputError(ValueError):
    """Bad configuration, data or checkpoint.

    The message names the file, key or field and the cure. `main` and the tools print it without a traceback and exit
    with status 2; library callers may catch it like any ValueError.
    """


class NotFinite(InputError):
    """What is drawn holds NaN or infinity, and so is no picture. The message says where it was first, and the cure."""


class TrainingDiverged(RuntimeError):
    """A loss or a gradient was not finite. The message names the step and the last good checkpoint."""


class SaveFailed(RuntimeError):
    """A checkpoint could not be written. The message names the cause, the last good checkpoint and the cure."""
