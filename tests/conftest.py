"""Shared set-up: the tests directory is importable, so that test files can share helpers."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
