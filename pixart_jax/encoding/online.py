"""Pictures and captions -> batches in token space, encoded as they are needed: training without feature shards.

Items stand in one endless order, a new shuffle of all of them each epoch, which depends on the seed only. An item that
cannot be used is left out, and the next in the order takes its place. Batch after batch of P processes takes the P·B
usable items that come next, process p the B from p·B on; so the order is the same for any number of processes, and a
position in it is a single integer. To agree on who takes what, each process also looks whether the items of the
others can be used, once each: reading, decoding and cropping them, but not encoding.

The autoencoder is compiled once for each bucket, when the first picture of that bucket comes.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import logging

from pixart_jax.data.examples import BatchSpec, MakeExample, pack, pad_text
from pixart_jax.data.shards.records import Sample
from pixart_jax.encoding.engine import ONLY
from pixart_jax.encoding.pictures import EncodedPictures, Prepared, bounded_map
from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import Skipped

# Batches that are made ahead: one that waits, and one that is being made while the device trains.
_READ_AHEAD = 2
# Items left out that the log names one by one; of more it says how many there are.
_NAMED = 10
# Which of the seed's random numbers: a shuffle's, or those of one visit of one item.
_ORDER, _VISIT = 0, 1


class OnlineItems:
    """The items of a source as samples, encoded whenever they are asked for; remembers which cannot be used.

    Args:
      encoder: of one resolution.

    Attributes:
      manifest: of the samples.
      fingerprint: see `data.pictures.Pictures.fingerprint`.
    """

    def __init__(self, encoder: EncodedPictures):
        self._encoder = encoder
        self.manifest = encoder.manifests[ONLY]
        self.fingerprint: str = encoder.recipe["fingerprint"]
        self._good: set[int] = set()
        self._left_out: dict[int, str] = {}

    def __len__(self) -> int:
        """Number of items, those that cannot be used included."""
        return self._encoder.num_items

    def is_good(self, index: int) -> bool:
        """Whether the item was found to be usable."""
        return index in self._good

    def is_left_out(self, index: int) -> bool:
        """Whether the item was found to be of no use."""
        return index in self._left_out

    def prepare(self, index: int) -> Prepared | Skipped:
        """Reads, decodes and crops one item; threads may call it."""
        return self._encoder.prepare(index)

    def kept(self, index: int, result: Prepared | Skipped) -> Prepared | None:
        """What `prepare` gave where it can be used; else None, and notes and logs why not.

        Raises:
          InputError: so it is with all items.
        """
        if not isinstance(result, Skipped):
            self._good.add(index)
            return result
        if index not in self._left_out:
            self._left_out[index] = result.reason
            count = len(self._left_out)
            if count <= _NAMED:
                logging.warning("left out: %s: %s: %s", result.key, result.reason, result.message)
            elif count.bit_count() == 1:  # A long list of bad items takes few lines.
                logging.warning("left out so far: %d of %d items: %s", count, len(self), self._reasons())
        self.check_any()
        return None

    def check_any(self) -> None:
        """Raises InputError once all items are left out."""
        if len(self._left_out) >= len(self):
            raise InputError(
                f"config.data.source: not one of {len(self)} items could be used: {self._reasons()}; the log says more"
            )

    def encode(self, prepared: Iterable[Prepared]) -> list[Sample]:
        """Samples in the order of what `prepare` gave."""
        return self._encoder.encode(prepared)[0][ONLY]

    def spread(self, count: int) -> list[Sample]:
        """Up to `count` samples spread over the source.

        Raises:
          InputError: no item can be used.
        """
        self.check_any()
        wanted = np.unique(np.linspace(0, len(self) - 1, count).astype(int)).tolist()
        found: dict[int, Prepared] = {}
        # Those spread evenly, and in the place of bad ones whatever comes first.
        for index in itertools.chain(wanted, (i for i in range(len(self)) if i not in set(wanted))):
            if len(found) == len(wanted):
                break
            if (prepared := self.kept(index, self.prepare(index))) is not None:
                found[index] = prepared
        return self.encode(found[index] for index in sorted(found))

    def _reasons(self) -> str:
        return ", ".join(f"{n} {reason}" for reason, n in collections.Counter(self._left_out.values()).most_common())


class SpreadSamples:
    """`OnlineItems.spread`, encoded when the first of them is asked for."""

    def __init__(self, items: OnlineItems, count: int):
        self._items, self._count = items, count

    @functools.cached_property
    def _samples(self) -> list[Sample]:
        return self._items.spread(self._count)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]


class OnlineBatches(Iterator[dict[str, np.ndarray]]):
    """Endless iterator over the batches of `data.pipeline.make_iterator`, encoded in a thread of its own.

    Every usable item is visited once an epoch, each time with a new posterior sample, caption and text drop, drawn from
    the seed and the visit's place in the order: a run that was resumed gets the batches of one never interrupted.

    `get_state()` is a small JSON-able dict of the position after the batches given out, whatever was read ahead; it
    also restores into another number of processes. An error of the thread is raised by `next`. Call `close()` when
    done, which waits for the batch that is being made.

    Args:
      items: the source, with its encoders.
      spec: the batch.
      seed: of the order and of the visits' random numbers.
      process_index, process_count: this process among those training together.

    Raises:
      InputError: from `next`: no item can be used, or a sample does not fit the batch.
    """

    def __init__(
        self, items: OnlineItems, spec: BatchSpec, *, seed: int, process_index: int = 0, process_count: int = 1
    ):
        self._items, self._spec, self._seed = items, spec, seed
        self._process_index, self._process_count = process_index, process_count
        self._identity = {"seed": seed, "items": len(items), "fingerprint": items.fingerprint}
        self._next_place = 0  # In the order, after the batches given out.
        self._ahead: collections.deque[Future] = collections.deque()
        self._num_threads = os.cpu_count() or 1
        self._decoders = ThreadPoolExecutor(self._num_threads, thread_name_prefix="decode")
        # One thread, so that batches are made in turn and everything below that it touches is its own.
        self._maker = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._turns: Iterator[tuple[int, Prepared | None]] | None = None
        self._making_from = 0

    def __next__(self) -> dict[str, np.ndarray]:
        self._start_making()
        batch, self._next_place = self._ahead.popleft().result()
        self._start_making()
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"next_place": self._next_place, **self._identity}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on behind the last batch that was given out before `get_state` gave `state`.

        Raises:
          InputError: it is of another seed or source; names both.
        """
        for field, value in self._identity.items():
            if state.get(field) != value:
                raise InputError(
                    f"the input pipeline's saved state has {field} {state.get(field)!r}, this run {value!r}, so it "
                    "cannot continue in the same order; restore the pictures (config.data.source) and the seed of the "
                    "saved run, or name another workdir"
                )
        self._stop_making()
        self._next_place = self._making_from = state["next_place"]
        self._turns = None

    def close(self) -> None:
        """Ends the threads."""
        self._stop_making()
        self._maker.shutdown()
        self._decoders.shutdown(cancel_futures=True)

    def _start_making(self) -> None:
        while len(self._ahead) < _READ_AHEAD:
            self._ahead.append(self._maker.submit(self._make))

    def _stop_making(self) -> None:
        for future in self._ahead:
            future.cancel()
        # What is being made cannot be cancelled; behind it nothing is left.
        for future in self._ahead:
            if not future.cancelled():
                future.exception()
        self._ahead.clear()

    def _make(self) -> tuple[dict[str, np.ndarray], int]:
        """The next batch, and the place in the order behind it."""
        if self._turns is None:
            self._turns = self._take_turns(self._making_from)
        turns = self._turns
        places, after = [], self._making_from

        def mine() -> Iterator[Prepared]:
            nonlocal after
            for place, prepared in itertools.islice(turns, self._spec.batch_size * self._process_count):
                after = place + 1
                if prepared is not None:
                    places.append(place)
                    yield prepared

        try:
            samples = self._items.encode(mine())
            make = MakeExample(self._items.manifest, self._spec)
            examples = [
                make.random_map(sample, self._random(_VISIT, place))
                for place, sample in zip(places, samples, strict=True)
            ]
        except BaseException:
            self._turns = None  # Whoever asks again gets the same error, not the batch behind it.
            raise
        self._making_from = after
        return pad_text(pack(examples, self._spec), self._spec), after

    def _take_turns(self, start: int) -> Iterator[tuple[int, Prepared | None]]:
        """(place, what is to be encoded here, or None where it is another process's turn) of every usable item."""
        items, count, sent = self._items, 0, 0
        items.check_any()

        def is_mine(turn: int) -> bool:
            return turn // self._spec.batch_size % self._process_count == self._process_index

        def todo() -> Iterator[tuple[int, int, bool]]:
            nonlocal sent
            for place in itertools.count(start):
                if not items.is_left_out(index := self._item(place)):
                    yield place, index, is_mine(sent) or not items.is_good(index)
                    sent += 1

        def look(task: tuple[int, int, bool]) -> tuple[int, int, Prepared | Skipped | None]:
            place, index, prepare = task
            return place, index, items.prepare(index) if prepare else None

        for place, index, result in bounded_map(self._decoders, look, todo(), ahead=2 * self._num_threads):
            if is_mine(count) and result is None:
                # Something left out before it has moved the turns.
                result = items.prepare(index)
            prepared = None if result is None else items.kept(index, result)
            if result is not None and prepared is None:
                sent -= 1
                continue
            yield place, prepared if is_mine(count) else None
            count += 1

    def _item(self, place: int) -> int:
        epoch, position = divmod(place, len(self._items))
        return int(self._epoch(epoch)[position])

    @functools.lru_cache(maxsize=2)  # noqa: B019 - two epochs meet where one ends; goes with the iterator, at the end
    def _epoch(self, epoch: int) -> np.ndarray:
        return self._random(_ORDER, epoch).permutation(len(self._items))

    def _random(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, stream, number])
