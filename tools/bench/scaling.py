"""Training on 1, 2, 4, 8 devices with the same batch on each: weak scaling.

On a CPU the devices are simulated and share its cores. There, splitting costs nothing where the images per second of
all devices together stay what they are on one; on real devices, where they grow as the devices do.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import statistics
from collections.abc import Iterator, Sequence

import jax

from pixart_jax.errors import InputError

from .options import check_peer, make_parser, numbers, parse_with_config
from .train import TrainProgram
from .turns import summary, take_turns


def run(argv: Sequence[str]) -> Iterator[dict]:
    """The figures of each number of devices. config.data.batch_size is one device's."""
    parser = make_parser(__name__, __doc__, calls=10)
    parser.add_argument("--devices", default="1,2,4,8", help="how many, ascending (default: %(default)s)")
    args, config, about = parse_with_config(parser, argv)
    check_peer(args, (), "devices are compared with one another, not with PyTorch")
    counts = numbers("--devices", args.devices)
    if counts != sorted(set(counts)):
        raise InputError(f"--devices={args.devices}: must be ascending")
    simulate(max(counts))
    devices = jax.devices()
    if max(counts) > len(devices):
        raise InputError(f"--devices={args.devices}: here are {len(devices)}")
    programs, per_device = {}, config.data.batch_size
    for count in counts:
        config_of_all = copy.deepcopy(config)
        config_of_all.data.batch_size = count * per_device
        programs[count] = TrainProgram(config_of_all, devices[:count])
    turns = {str(count): functools.partial(program.turn, args.steps) for count, program in programs.items()}
    results, _ = take_turns(turns, args.rounds)
    first = counts[0]
    for count in counts:
        pairs = zip(results[str(first)], results[str(count)], strict=True)
        speed_up = count / first * statistics.median(one["seconds"] / many["seconds"] for one, many in pairs)
        figures = summary(results[str(count)])
        yield {
            **about,
            "devices": count,
            "simulated": devices[0].platform == "cpu",
            "mesh": dict(programs[count].mesh.shape),
            "batch_size": count * per_device,
            "images_per_second": count * per_device / figures["seconds"],
            **figures,
            # Images per second as a multiple of those of the fewest devices; and that of what as many times the devices
            # could do, which says something where they are real.
            "ratio": speed_up,
            "efficiency": speed_up * first / count,
            "steps": args.steps,
        }


def simulate(devices: int) -> None:
    """Makes the CPU look like so many devices, where JAX has not looked for them yet."""
    with contextlib.suppress(RuntimeError):  # It has.
        jax.config.update("jax_num_cpu_devices", devices)
