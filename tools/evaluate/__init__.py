"""Measuring of pictures, see `command`."""
