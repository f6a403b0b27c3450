"""configs/ and tools/ are installed as pixart_jax.configs and pixart_jax.tools; all else stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["pixart_jax*"]),
        *(f"pixart_jax.{name}" for name in find_packages(include=["configs*", "tools*"])),
    ],
    package_dir={"pixart_jax.configs": "configs", "pixart_jax.tools": "tools"},
)
