"""Tables of rules between a reference's parameter names and ours: strict, and read in either direction. numpy only."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from pixart_jax.conversion.finite import check_finite
from pixart_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array changes between the reference and us; its values never do.

    Attributes:
      ours: the reference's array to ours.
      reference: ours and the model's patch size, which only the patch kernel needs, to the reference's.
      part, parts: the reference's array is this part of so many of ours, split along the last axis, which is the
        output features of kernels and biases alike.
    """

    ours: Callable[[np.ndarray], np.ndarray]
    reference: Callable[[np.ndarray, int], np.ndarray]
    part: int = 0
    parts: int = 1

    def __call__(self, array: np.ndarray) -> np.ndarray:
        return self.ours(array)

    def cut(self, ours: np.ndarray) -> np.ndarray:
        """The view of our array that this layout's part is."""
        if self.parts == 1:
            return ours
        width = ours.shape[-1] // self.parts
        return ours[..., self.part * width : (self.part + 1) * width]


COPY = Layout(lambda array: array, lambda array, _: array)
TRANSPOSE = Layout(lambda weight: weight.T, lambda kernel, _: kernel.T)


class Misfit(InputError):
    """A checkpoint does not fit the model: each of `problems` says where."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n  ".join(["the checkpoint does not fit the model:", *self.problems]))


# (the reference's name as a pattern, our path as a template, how the array changes), after the block's prefix where
# there is one. A rule whose layout is a plain function converts to ours only; to be read in both directions, its groups
# must all be plain (…) and in the template.
Rule = tuple[str, str, Layout | Callable[[np.ndarray], np.ndarray]]
TwoWayRule = tuple[str, str, Layout]
_GROUP = re.compile(r"\((?!\?)[^()]*\)")
_LOOKAHEAD = re.compile(r"\(\?[=!][^()]*\)")


def linear(source: str, target: str) -> list[TwoWayRule]:
    """Of a Linear."""
    return [(rf"{source}\.weight", f"{target}/kernel", TRANSPOSE), (rf"{source}\.bias", f"{target}/bias", COPY)]


def batch_norm(source: str, target: str) -> list[TwoWayRule]:
    """Of a BatchNorm with the statistics that it keeps."""
    names = (("weight", "scale"), ("bias", "bias"), ("running_mean", "mean"), ("running_var", "var"))
    return [(rf"{source}\.{theirs}", f"{target}/{ours}", COPY) for theirs, ours in names]


# Of a BatchNorm: how many batches there were in training, an integer that nothing at inference asks for.
BATCH_COUNTS = r".*\.num_batches_tracked"


def fused_linear(sources: Iterable[str], target: str) -> list[TwoWayRule]:
    """Of Linears of one size that are one Dense of ours, side by side."""
    sources = list(sources)
    return [
        (name, path, dataclasses.replace(layout, part=part, parts=len(sources)))
        for part, source in enumerate(sources)
        for name, path, layout in linear(source, target)
    ]


def norm(source: str, target: str) -> list[TwoWayRule]:
    """Of a LayerNorm with scale and bias."""
    return [(rf"{source}\.weight", f"{target}/scale", COPY), (rf"{source}\.bias", f"{target}/bias", COPY)]


def other_names(rules: Sequence[Rule]) -> list[Rule]:
    """The same rules, which then only convert to ours: for names that files have had and that we do not write."""
    return [(source, target, getattr(layout, "ours", layout)) for source, target, layout in rules]


def convert_flat(
    state_dict: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    expected: Mapping[str, tuple[int, ...]],
    dropped: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """`convert` of a network without stacks of equal blocks, f32 arrays."""
    return convert(state_dict, rules, "(?!)", [], {}, expected, dropped=dropped)


def convert(
    state_dict: Mapping[str, np.ndarray],
    rules: Sequence[Rule],
    block_pattern: str,
    block_rules: Sequence[Rule],
    stacks: Mapping[str, range],
    expected: Mapping[str, tuple[int, ...]],
    *,
    dropped: Collection[str] = (),
    dtype: np.dtype | type = np.float32,
) -> dict[str, np.ndarray]:
    """Our parameters from a reference's, with the arrays of equal blocks stacked.

    Each array is asked of `state_dict` once and copied to its place at once, so a mapping that reads when asked keeps
    no more than one of them in memory.

    Args:
      state_dict: the reference's names to arrays. One with `shapes` is not asked for arrays that do not fit.
      rules: for names outside the blocks; of several that match, the first.
      block_pattern: matches a name inside a block; its groups are the block's index and the name that `block_rules`
        take.
      block_rules: likewise for names inside the blocks.
      stacks: our name of each stack to the indices of its blocks.
      expected: '/'-joined path to shape of each parameter of the model.
      dropped: the reference's names that are left out on purpose.
      dtype: of our parameters.

    Returns:
      '/'-joined path to array of `dtype`.

    Raises:
      Misfit: lists every source key that no rule or parameter takes or that another has filled, every parameter left
        empty, and every wrong shape.
      InputError: names the first array that is not finite as `dtype`.
    """
    names = [name for name in state_dict if name not in dropped]
    slots, problems = _assign(names, rules, block_pattern, block_rules, stacks)
    params: dict[str, np.ndarray] = {}
    for path, sources in slots.items():
        blocks = stacks.get(path.split("/")[0], [None])
        parts = getattr(next(iter(sources.values()))[1], "parts", 1)
        wanted = [(block, part) for part in range(parts) for block in blocks]
        if path not in expected:
            name, layout = next(iter(sources.values()))
            found = _shape(state_dict, name, layout)
            shape = found if blocks == [None] else (len({block for block, _ in sources}), *found)
            problems.append(f"no parameter takes: {path} {shape}")
        elif missing := [key for key in wanted if key not in sources]:
            if parts == 1:
                where = f"is there only for blocks {sorted(block for block, _ in sources if block is not None)}"
            else:
                whole = _sources(path, rules, block_pattern, block_rules, stacks)
                where = f"lacks {', '.join(name for block, name, layout in whole if (block, layout.part) in missing)}"
            problems.append(f"incomplete: {path} {where}")
        else:
            params[path] = np.empty(expected[path], dtype)
            problems += _fill(params[path], path, state_dict, sources, blocks)
    problems += [f"not filled: {path} {tuple(expected[path])}" for path in sorted(expected.keys() - slots.keys())]
    if problems:
        raise Misfit(problems)
    return params


# Our path to what fills it: (block, part) to (the reference's name, layout).
_Slots = dict[str, dict[tuple[int | None, int], tuple[str, Callable]]]


def _assign(names, rules, block_pattern, block_rules, stacks) -> tuple[_Slots, list[str]]:
    slots: _Slots = {}
    problems = []
    for name in names:
        block = re.fullmatch(block_pattern, name)
        index = int(block[1]) if block else None
        stack = next((stack for stack, indices in stacks.items() if index in indices), None)
        rule = _apply(block_rules, block[2]) if block else _apply(rules, name)
        if rule is None or (block and stack is None):
            problems.append(f"no parameter takes: {name}")
            continue
        target, layout = rule
        sources = slots.setdefault(f"{stack}/{target}" if block else target, {})
        first, _ = sources.setdefault((index, getattr(layout, "part", 0)), (name, layout))
        if first != name:
            problems.append(f"no parameter takes: {name}, because {first} has filled it")
    return slots, problems


def _apply(rules: Sequence[Rule], name: str) -> tuple[str, Callable] | None:
    for pattern, target, layout in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(target), layout
    return None


def _ours(array, layout) -> np.ndarray:
    array = np.asarray(array)
    try:
        return layout(array)
    except ValueError:  # Too few axes; the comparison of shapes reports it.
        return array


def _shape(state_dict, name, layout) -> tuple[int, ...]:
    """Of what becomes of an array, which is not read where the mapping knows shapes."""
    shapes = getattr(state_dict, "shapes", None)
    if shapes is None:
        return _ours(state_dict[name], layout).shape
    try:
        return _ours(np.broadcast_to(np.float32(0), shapes[name]), layout).shape
    except ValueError:  # More numbers than numpy can count.
        return tuple(shapes[name])


def _fill(param, path, state_dict, sources, blocks) -> list[str]:
    """Copies the sources to their places in `param`; returns what does not fit."""
    shapes = {}
    wrong_parts = []
    for (block, part), (name, layout) in sources.items():
        place = param if block is None else param[blocks.index(block)]
        parts = getattr(layout, "parts", 1)
        if parts > 1:
            place = layout.cut(place)
        # A mapping that knows no shapes has to read, and only once.
        array = None if hasattr(state_dict, "shapes") else _ours(state_dict[name], layout)
        shape = _shape(state_dict, name, layout) if array is None else array.shape
        if shape == place.shape:
            with np.errstate(over="ignore"):
                place[...] = _ours(state_dict[name], layout) if array is None else array
            check_finite(place, name)
        elif parts > 1:
            wrong_parts.append(f"wrong shape: {name} is {shape} as part {part} of {path}, which takes {place.shape}")
        shapes[block] = shape
    if wrong_parts or parts > 1:
        return wrong_parts
    if len(set(shapes.values())) > 1:
        return [f"wrong shape: {path} differs between the blocks: {dict(sorted(shapes.items()))}"]
    found = shape if block is None else (len(shapes), *shape)
    return [] if found == param.shape else [f"wrong shape: {path} is {found}, the model has {param.shape}"]


def revert(
    paths: Iterable[str],
    read: Callable[[str], np.ndarray],
    rules: Sequence[Rule],
    block_pattern: str,
    block_rules: Sequence[Rule],
    stacks: Mapping[str, range],
    *,
    patch_size: int = 1,
) -> Iterator[tuple[str, np.ndarray]]:
    """The reference's parameters from ours: the rules of `convert`, read from right to left.

    Args:
      paths: '/'-joined path of each parameter.
      read: the parameter of a path. Called once for each, when its turn comes, so a `dict.pop` or a reader of files
        keeps little in memory.
      rules, block_pattern, block_rules, stacks: as in `convert`.
      patch_size: the model's, where one of the rules needs it.

    Returns:
      Pairs of the reference's name and array, C-contiguous, of the dtype that was read, blocks unstacked.

    Raises:
      InputError: before anything is read; lists every parameter that the reference has no name for.
    """
    plan = {path: _sources(path, rules, block_pattern, block_rules, stacks) for path in paths}
    if unnamed := sorted(path for path, names in plan.items() if not names):
        raise InputError("the format has no name for these parameters of the model:\n  " + "\n  ".join(unnamed))

    def generate():
        for path, names in plan.items():
            array = read(path)
            first = names[0][0] or 0
            for block, name, layout in names:
                ours = layout.cut(array if block is None else array[block - first])
                # Not ascontiguousarray, which gives a number an axis.
                yield name, np.asarray(layout.reference(ours, patch_size), order="C")

    return generate()


def _sources(path, rules, block_pattern, block_rules, stacks) -> list[tuple[int | None, str, Layout]]:
    """(block, the reference's name, layout) of all that fills a parameter, block by block; empty where nothing can."""
    stack, _, rest = path.partition("/")
    if stack not in stacks:
        return [(None, name, layout) for name, layout in _flip_all(rules, path)]
    found = _flip_all(block_rules, rest)
    return [
        (block, _substitute(block_pattern, [str(block), name]), layout)
        for block in stacks[stack]
        for name, layout in found
    ]


def _flip_all(rules: Sequence[Rule], path: str) -> list[tuple[str, Layout]]:
    found = [
        (name, layout)
        for source, target, layout in rules
        if isinstance(layout, Layout) and (name := _flip(source, target, path)) is not None
    ]
    # All parts of the parameter, each once.
    complete = found and sorted(layout.part for _, layout in found) == list(range(found[0][1].parts))
    return found if complete else []


def _flip(source: str, target: str, path: str) -> str | None:
    """The reference's name of our path by one rule, or None: pattern and template with their roles exchanged."""
    groups = _GROUP.findall(source)
    # Literal text and numbers of groups take turns.
    literals, numbers = (re.split(r"\\(\d)", target)[i::2] for i in (0, 1))
    patterns = (groups[int(number) - 1] for number in numbers)
    pattern = "".join(a + b for a, b in itertools.zip_longest(map(re.escape, literals), patterns, fillvalue=""))
    match = re.fullmatch(pattern, path)
    if match is None:
        return None
    values = dict(zip(map(int, numbers), match.groups(), strict=True))
    return _substitute(source, [values[number] for number in range(1, len(groups) + 1)])


def _substitute(pattern: str, values: list[str]) -> str:
    """The one name that a pattern matches with these values for its groups."""
    remaining = iter(values)
    return _GROUP.sub(lambda _: next(remaining), _LOOKAHEAD.sub("", pattern)).replace("\\.", ".")
