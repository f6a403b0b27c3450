"""Files of a folder that another process is writing."""

import os
import pathlib


def files_below(folder, suffix: str = "") -> list[pathlib.Path]:
    """Files in a folder and below it whose names end so, sorted; folders may come and go meanwhile.

    `Path.glob` raises where a folder is removed between being listed and being opened; `os.walk` passes over it.
    """
    found = [pathlib.Path(root, name) for root, _, names in os.walk(folder) for name in names]
    return sorted(path for path in found if path.name.endswith(suffix))
