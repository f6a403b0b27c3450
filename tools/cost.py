"""What a stage or a whole chain of stages costs: FLOPs, device-days, money and CO2, with every assumption printed.

python -m tools.cost --config=configs/stage2_256.py --hardware=h200 --utilisation=0.4 --price=3
python -m tools.cost --hardware=v5e --num-devices=256 --utilisation=0.4 --config=A.py --images=1e9 --config=B.py
python -m tools.cost --hardware=a100 --config=A.py --device-days=40     # what utilisation was that?

A --config starts a stage. --config.key=value, --images, --pictures, --images-per-second and --device-days belong to the
stage before them, everything else to the chain. FLOPs are counted by XLA on the abstract step: no accelerator is used
and nothing is allocated. Money is left out without --price, energy and CO2 without a power.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax

from pixart_jax.commands import BEGINS_AGAIN, command, tool, with_commands
from pixart_jax.config import ConfigDict, check_config, phases, read_config_file
from pixart_jax.devices.hardware import HARDWARE, Hardware, find_hardware
from pixart_jax.errors import InputError
from pixart_jax.models.t5 import XXL
from pixart_jax.training.program import Program

from .bench.train import training_batch
from .encoder_costs import VAE, align_flops, check_align, require_count, t5_flops, vae_flops

DAY = 86400
# Averages, for want of better: of data centres in 2023 (Uptime Institute), of the world's grids in 2023 (Ember).
PUE, GRID = 1.58, 0.481
USUAL = {"pue": PUE, "grid": GRID}


@dataclasses.dataclass(frozen=True)
class Cost:
    """One line of the table. What cannot be known from what was given is None.

    flops_per_image: None for a sum of unlike parts. device_days: of all devices together, days: by the clock.
    utilisation: the FLOPs' share of the peak. images_per_second: of one device.
    """

    name: str
    images: float
    flops_per_image: float | None
    flops: float
    device_days: float
    days: float
    utilisation: float | None
    images_per_second: float | None
    money: float | None
    kwh: float | None
    co2_kg: float | None


@tool(BEGINS_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_arguments(argv)
    if args.hardware is None:
        args.hardware = this_hardware()
    # All that can be refused is refused before anything is counted.
    check_heeded(args)
    chain = [(stage, stage_config(stage, args)) for stage in args.stages]
    costs = [cost for stage, config in chain for cost in stage_costs(stage, config, args)]
    total = sum_costs(costs, HARDWARE.get(args.hardware))
    notes = list(assumptions(args))
    if args.json:
        rows = {"stages": [dataclasses.asdict(cost) for cost in costs], "total": dataclasses.asdict(total)}
        print(json.dumps(rows | {"assumptions": notes}, indent=2))
    else:
        print("\n".join([*table(costs, total), "", "Assumptions", *(f"  {note}" for note in notes)]))
    return 0


# --- counting


def check_heeded(args: argparse.Namespace) -> None:
    """Raises InputError for an option of the chain that no figure would depend on, as the table would say it did."""
    if args.utilisation and not any(_needs_utilisation(stage) for stage in args.stages):
        raise InputError(
            f"--utilisation={args.utilisation:g}: every stage's time is given by --images-per-second or --device-days, "
            "from which its utilisation follows; leave one of the two out, or add --pictures, whose encoding takes it"
        )
    if power(args) is None and (given := [name for name, usual in USUAL.items() if getattr(args, name) != usual]):
        raise InputError(f"--{', --'.join(given)}: of energy, and no power is known; give --power, or leave it out")


def _needs_utilisation(stage: argparse.Namespace) -> bool:
    return bool(stage.pictures) or not (stage.images_per_second or stage.device_days)


def stage_config(stage: argparse.Namespace, args: argparse.Namespace) -> ConfigDict:
    """The stage's config.

    Raises:
      InputError: the config cannot work, or its time or the FLOPs of encoding its data cannot be known.
    """
    config = read_config_file(stage.config, stage.settings)
    check_config(config)
    if _needs_utilisation(stage):
        what = "encoding --pictures" if stage.images_per_second or stage.device_days else "it"
        if args.utilisation is None:
            raise InputError(
                f"{stage.config}: how long does {what} take? Give --utilisation (of the peak, such as 0.4); for "
                "training --images-per-second as measured or --device-days as known does as well"
            )
        if args.hardware is None:
            raise InputError(f"--utilisation of what? Give --hardware, one of {', '.join(HARDWARE)}")
    text = not config.model.num_classes
    if stage.pictures and (
        config.model.latent_channels != VAE["latent_channels"] or (text and config.model.text_dim != XXL["d_model"])
    ):
        raise InputError(f"--pictures: {stage.config} trains on other features than T5-XXL's and the 4-channel VAE's")
    if stage.pictures and config.align.weight:
        check_align(config.align.dim)
    return config


def stage_costs(stage: argparse.Namespace, config: ConfigDict, args: argparse.Namespace) -> Iterator[Cost]:
    """The training of a stage and, with --pictures, the encoding of its data."""
    name = pathlib.Path(stage.config).stem
    images = stage.images or float(config.train.num_steps * config.data.batch_size)
    flops_per_image = image_flops(config)
    if stage.images_per_second:
        device_days = images / stage.images_per_second * args.num_devices / DAY
    elif stage.device_days:
        device_days = stage.device_days
    else:
        device_days = days_at_stated_utilisation(images * flops_per_image, args)
    yield priced(name, images, flops_per_image, device_days, args)
    if stage.pictures:
        flops_per_picture = vae_flops(config.model.resolution)
        if not config.model.num_classes:
            flops_per_picture += t5_flops(config.model.max_text_tokens)
        if config.align.weight:
            flops_per_picture += align_flops(config.align.dim, config.model.resolution)
        device_days = days_at_stated_utilisation(stage.pictures * flops_per_picture, args)
        yield priced(f"{name}: encoding", stage.pictures, flops_per_picture, device_days, args)


def image_flops(config: ConfigDict) -> float:
    """Forward and backward pass of one picture of the square's size, the mean over the run's parts."""
    # A step's FLOPs are proportional to its batch; large batches of large pictures need not be made up.
    config.data.batch_size = 1
    parts, total = phases(config), 0.0
    for (done, own), end in zip(parts, [*(done for done, _ in parts[1:]), config.train.num_steps], strict=True):
        total += (end - done) * require_count(Program(own, None).flops(training_batch(own)))
    return total / config.train.num_steps


# --- from FLOPs to days, money and CO2


def this_hardware() -> str | None:
    """The key of HARDWARE of this machine's devices, if there is one."""
    known = find_hardware(jax.devices()[0].device_kind)
    return next((name for name, hardware in HARDWARE.items() if hardware is known), None)


def days_at_stated_utilisation(flops: float, args: argparse.Namespace) -> float:
    return flops / (HARDWARE[args.hardware].peak_flops * args.utilisation) / DAY


def priced(name: str, images: float, flops_per_image: float, device_days: float, args: argparse.Namespace) -> Cost:
    hardware, flops, hours = HARDWARE.get(args.hardware), images * flops_per_image, device_days * 24
    watts = power(args)
    kwh = None if watts is None else hours * watts / 1000 * args.pue
    return Cost(
        name=name,
        images=images,
        flops_per_image=flops_per_image,
        flops=flops,
        device_days=device_days,
        days=device_days / args.num_devices,
        utilisation=implied_utilisation(flops, device_days, hardware),
        images_per_second=images / (device_days * DAY),
        money=None if args.price is None else hours * args.price,
        kwh=kwh,
        co2_kg=None if kwh is None else kwh * args.grid,
    )


def power(args: argparse.Namespace) -> float | None:
    """Watts per device: as stated, else the most that the hardware draws."""
    hardware = HARDWARE.get(args.hardware)
    return args.power or (hardware.watts if hardware else None)


def implied_utilisation(flops: float, device_days: float, hardware: Hardware | None) -> float | None:
    return hardware.utilisation(flops / (device_days * DAY), 1) if hardware else None


def sum_costs(costs: Sequence[Cost], hardware: Hardware | None) -> Cost:
    def add_known(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return math.fsum(known) if len(known) == len(values) else None

    flops, device_days = math.fsum(cost.flops for cost in costs), math.fsum(cost.device_days for cost in costs)
    return Cost(
        name="total",
        images=math.fsum(cost.images for cost in costs),
        flops_per_image=None,
        flops=flops,
        device_days=device_days,
        days=math.fsum(cost.days for cost in costs),
        utilisation=implied_utilisation(flops, device_days, hardware),
        images_per_second=None,
        money=add_known([cost.money for cost in costs]),
        kwh=add_known([cost.kwh for cost in costs]),
        co2_kg=add_known([cost.co2_kg for cost in costs]),
    )


# --- words


def table(costs: Sequence[Cost], total: Cost) -> Iterator[str]:
    columns = {
        "images": lambda cost: f"{cost.images:,.0f}",
        "FLOPs/image": lambda cost: scientific(cost.flops_per_image),
        "FLOPs": lambda cost: scientific(cost.flops),
        "of peak": lambda cost: "" if cost.utilisation is None else f"{cost.utilisation:.1%}",
        "images/s/device": lambda cost: quantity(cost.images_per_second),
        "device-days": lambda cost: quantity(cost.device_days),
        "days": lambda cost: "" if cost.days == cost.device_days else quantity(cost.days),
        "money": lambda cost: quantity(cost.money),
        "kWh": lambda cost: quantity(cost.kwh),
        "kg CO2": lambda cost: quantity(cost.co2_kg),
    }
    rows = [[cost.name, *(show(cost) for show in columns.values())] for cost in (*costs, total)]
    used = [0, *(i for i in range(1, len(columns) + 1) if any(row[i] for row in rows))]
    rows = [["stage", *columns], *rows]
    widths = [max(len(row[i]) for row in rows) for i in used]
    for row in rows:
        cells = [row[i] for i in used]
        yield "  ".join([cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))])


def quantity(value: float | None) -> str:
    """Three digits, or all before the point."""
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def scientific(value: float | None) -> str:
    return "" if value is None else f"{value:.3e}".replace("e+", "e")


def assumptions(args: argparse.Namespace) -> Iterator[str]:
    """Everything that the table rests on, one sentence a line."""
    yield (
        "FLOPs: one forward and one backward pass per image as XLA counts them before optimisation, a multiply-add as "
        "two; every picture as large as the square, every caption as long as the model takes."
    )
    yield "Not counted: optimizer, recomputation, evaluation, sample grids, runs that failed."
    for stage in args.stages:
        parts = [stage.config, *stage.settings]
        parts += ["images as stated" if stage.images else "images = train.num_steps x data.batch_size"]
        if stage.pictures:
            parts += [
                "each picture (and its caption) encoded once, by the 4-channel VAE and T5-XXL in bfloat16, and where "
                "it is aligned looked at once, by DINOv2 or EfficientNet-lite0 as the features' width says"
            ]
        if stage.device_days:
            parts += ["device-days as stated, the utilisation follows from them"]
        if stage.images_per_second:
            parts += [f"{stage.images_per_second:g} images/s over {args.num_devices} device(s) as stated"]
        yield "Stage: " + ", ".join(parts) + "."
    if args.hardware:
        device = HARDWARE[args.hardware]
        memory = f"{device.memory_bytes / 1e9:g} GB at {device.bandwidth / 1e12:g} TB/s"
        yield (
            f"Hardware: {args.hardware}, published as {device.peak_flops / 1e12:g} TFLOP/s dense in 16 bits, {memory}; "
            "whether the batch fits is not checked."
        )
    if args.utilisation:
        yield f"Utilisation: {args.utilisation:.1%} of the peak, as stated; it is not a measurement."
    yield f"Devices: {args.num_devices}; device-days are theirs together, and scaling loss is part of the utilisation."
    if args.price is None:
        yield "Money: left out; give --price per device-hour."
    else:
        yield f"Money: {args.price:g} per device-hour, as stated; storage, network and idle time are not in it."
    if power(args) is None:
        yield "Energy and CO2: left out; no power is known, give --power."
    else:
        drawn = "as stated" if args.power else "the most it draws (TDP)"
        pue = "as stated" if args.pue != PUE else "the average of data centres in 2023"
        grid = "as stated" if args.grid != GRID else "the world average of 2023"
        yield f"Energy: {power(args):g} W per device, {drawn}, its host left out; PUE {args.pue:g}, {pue}."
        yield f"CO2: {args.grid:g} kg/kWh, {grid}; making the devices is not in it."


# --- command line


class NewStage(argparse.Action):
    """--config begins a stage."""

    def __call__(self, parser, namespace, value, option_string=None):
        stage = argparse.Namespace(
            config=value, settings=[], images=None, pictures=None, images_per_second=None, device_days=None
        )
        namespace.stages = [*namespace.stages, stage]


class OfStage(argparse.Action):
    """An option of the stage that came last."""

    def __call__(self, parser, namespace, value, option_string=None):
        if not namespace.stages:
            parser.error(f"{option_string} belongs to the --config before it, and there is none")
        stage = namespace.stages[-1]
        if self.dest == "settings":
            stage.settings.append(value)
        elif getattr(stage, self.dest) is not None:
            parser.error(f"{option_string} is given twice for {stage.config}")
        else:
            setattr(stage, self.dest, value)
        if stage.images_per_second and stage.device_days:
            parser.error(f"{stage.config}: --images-per-second and --device-days say the same; give one")


def positive(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} must be positive")
    return value


def share(text: str) -> float:
    value = positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} must be at most 1, the peak")
    return value


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=command("cost"),
        description=with_commands(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    stage = parser.add_argument_group("of a stage")
    stage.add_argument("--config", action=NewStage, dest="stages", default=[], required=True, help="begins a stage")
    stage.add_argument("--setting", action=OfStage, dest="settings", help=argparse.SUPPRESS)
    options = {
        "--images": "trained on, repetitions included (default: the config's steps times its batch)",
        "--pictures": "in its data: adds the cost of encoding them once",
        "--images-per-second": "measured on all devices together, in place of --utilisation",
        "--device-days": "known, in place of --utilisation: the table says what utilisation that was",
    }
    for name, meaning in options.items():
        stage.add_argument(name, action=OfStage, type=positive, metavar="N", default=argparse.SUPPRESS, help=meaning)
    chain = parser.add_argument_group("of the chain")
    chain.add_argument("--hardware", choices=HARDWARE, help="(default: this machine's, if known)")
    chain.add_argument("--num-devices", type=int, default=1, help="that run together (default: %(default)s)")
    chain.add_argument(
        "--utilisation", type=share, help="stated share of the peak, 0 to 1, of all whose time is not given otherwise"
    )
    chain.add_argument("--price", type=positive, help="per device-hour, in any currency")
    chain.add_argument("--power", type=positive, help="watts per device (default: the hardware's TDP)")
    chain.add_argument("--pue", type=positive, default=PUE, help="power of the building over power of the devices")
    chain.add_argument("--grid", type=positive, default=GRID, help="kg of CO2 per kWh (default: %(default)s)")
    chain.add_argument("--json", action="store_true", help="the same figures as JSON")
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([f"--setting={a}" if a.startswith("--config.") else a for a in argv])
    if args.num_devices < 1:
        parser.error(f"--num-devices {args.num_devices} must be at least 1")
    return args


if __name__ == "__main__":
    sys.exit(main())
