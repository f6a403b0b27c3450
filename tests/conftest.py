"""Shared set-up: the tests directory is importable, so that test files can share helpers; nothing compiles twice."""

import gc
import logging
import os
import pathlib
import re
import sys
import tempfile

import pytest

# Set before JAX is imported, and inherited by pytest-xdist's workers and by the processes that tests start: what one of
# them has compiled, the others load.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _compiled = tempfile.TemporaryDirectory(prefix="pixart-jax-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Compiling is most of what the tests wait for, and their arrays are tiny: LLVM need not make the code fast. XLA's own
# passes, which decide what is fused, sharded, donated or kept, run as ever.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Nor need it come by way of MLIR, which alone takes three quarters of the time to compile a training step.
os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}"

# libtpu is installed for its compiler (tests/test_aot.py); JAX would look for its chips in every process.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from absl import logging as absl_logging
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import transfers
from made_once import made_once

from pixart_jax.commands import SELDOM

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Files that take longest, in that order: those that start, kill and resume whole runs.
LONGEST = (
    "test_kills.py", "test_resume.py", "test_cluster_ends.py", "test_extract_features.py", "test_install.py",
    "test_notebooks.py", "test_publish.py",
    "test_online.py", "test_small_runs.py", "test_text_to_image.py", "test_seams.py", "test_cluster.py",
    "test_train.py", "test_full_size_steps.py", "test_app.py", "test_photographs.py", "test_sharding.py",
    "test_init_from.py", "test_recipe.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest first: `make test` gives whole files to its workers, which so end at about the same time."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(LONGEST)))


def pytest_collection_finish():
    """A fifth of some files' time went into looking for garbage, in all that is imported and in what JAX keeps."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*SELDOM)


def pytest_terminal_summary(terminalreporter):
    """Leaves the seconds of every test of this run in build/, the longest first."""
    reports = [report for kind in terminalreporter.stats.values() for report in kind if hasattr(report, "duration")]
    lines = [f"{report.duration:8.2f} {report.when:8} {report.nodeid}\n" for report in reports]
    path = terminalreporter.config.rootpath / "build" / "test_durations.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(sorted(lines, reverse=True)))


@pytest.fixture(autouse=True)
def logging_as_before():
    """`main` of training and tools sets for the whole process what is logged, and where: not for the tests after it."""
    logger, handler = absl_logging.get_absl_logger(), absl_logging.get_absl_handler()
    verbosity, level, filters = absl_logging.get_verbosity(), logging.root.level, list(logger.filters)
    logging.root.removeHandler(handler)  # What a fixture of a whole module has left.
    absl_logging.set_verbosity(verbosity)
    yield
    logging.root.removeHandler(handler)
    absl_logging.set_verbosity(verbosity)
    logging.root.setLevel(level)
    logger.filters[:] = filters


@pytest.fixture
def compilations():
    """Names of the programs that XLA compiles during a test."""
    names = []

    class Handler(logging.Handler):
        def emit(self, record):
            if match := re.match(r"Finished XLA compilation of (\S+)", record.getMessage()):
                names.append(match[1])

    handler = Handler()
    logger = logging.getLogger("jax._src")
    logger.addHandler(handler)
    with jax.log_compiles():
        yield names
    logger.removeHandler(handler)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """A converted tiny Σ, one for all workers: to be read, never changed. Its diffusers pipeline lies beside it."""
    from tiny_pipeline import make_sigma  # Not for the sake of every test: it brings PyTorch along.

    return made_once(tmp_path_factory, "sigma", make_sigma) / "weights"


@pytest.fixture
def guarded_reads():
    """See `transfers.guard_reads`."""
    transfers.guard_reads()
    yield
    transfers.unguard_reads()
