"""Blocks of tasks that come into being, between a run and its store: see `BlockRow` for what is stored of each.

What the data of a block says depends on its kind: of elements of maps which maps (their elements' numbers, by stage) and by what
keys they are known, as JSON; of a graph its description; of a merge the elements that it merges.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from flowlane.core.elements import CHAIN, GRAPH
from flowlane.errors import StoreError
from flowlane.storage.port import BlockRow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from flowlane.core.elements import Block
    from flowlane.storage.blob import Payload

__all__ = ["WORK_MAX", "ChainData", "Describes", "Grown", "grown", "owners", "read_chain"]

#: Bytes of returned work that is stored: it is beside its block, so that all of a run's are not read with them. The task that
#: returned more runs again, to say it again.
WORK_MAX: Final = 1 << 20


class Describes(Protocol):
    """What a graph looks like, for its block: a ``flowlane.description.Description``."""

    def packed(self) -> bytes:
        """As it is stored."""
        ...


class Grown(NamedTuple):
    """A block on its way to the store: packed and sealed there, on the thread that writes."""

    row: BlockRow
    description: Describes | None = None
    work: Payload | None = None


class ChainData(NamedTuple):
    """What elements of maps are of.

    stages  their maps, by stage
    keys    stage → the keys of the block's indices, where they have any
    """

    stages: Sequence[int]
    keys: Mapping[int, Sequence[str]]


def grown(
    block: Block,
    keys_of: Callable[[int], Sequence[Any] | None],
    merges: Callable[[int], Sequence[int]],
    described: tuple[Describes, Payload | None] | None,
) -> Grown:
    """A block that the scheduler has added. `keys_of` tells the keys of a map's elements by index, None where they have none;
    `merges` the elements that a merge reads; `described` what a graph looks like, and the work that it was made of.
    """
    if block.kind == CHAIN:
        assert block.chain is not None
        stages = [stage.container for stage in block.chain.stages]
        keys: dict[str, list[str]] = {}
        for position, container in enumerate(stages):
            if (found := keys_of(container)) is not None:
                keys[str(position)] = [str(key) for key in found[block.first : block.first + len(block.left)]]
        data = json.dumps({"stages": stages, "keys": keys}, separators=(",", ":")).encode()
        return Grown(BlockRow(block.start, block.count, block.kind, block.owner, block.first, 0, data))
    if block.kind == GRAPH:
        row = BlockRow(block.start, block.count, block.kind, block.owner, 0, 0, b"")
        return Grown(row, *described) if described is not None else Grown(row)
    level, number = block.where
    data = json.dumps(list(merges(block.start)), separators=(",", ":")).encode()
    return Grown(BlockRow(block.start, block.count, block.kind, block.owner, number, level, data))


def read_chain(data: bytes) -> ChainData:
    """The data of elements of maps. Raises StoreError when it is not what `grown` made."""
    try:
        found: Any = json.loads(data)
        return ChainData(found["stages"], {int(stage): keys for stage, keys in found["keys"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"the record of a map's elements is damaged: {error}", hint="flow store check") from error


def owners(kind: int, owner: int, data: bytes) -> Sequence[int]:
    """The tasks that have become what is in a block, of which these fields are stored: several where maps are chained.

    Raises StoreError as `read_chain` does.
    """
    return read_chain(data).stages if kind == CHAIN else (owner,)
