"""The web studio, see `command`."""
