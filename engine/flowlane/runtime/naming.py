"""Names of runs: an id that is unique, and a name that a person can say on the phone."""

from __future__ import annotations

import hashlib
import os
from typing import Final

__all__ = ["id_of_key", "new_id", "new_name"]

_ADJECTIVES: Final = (
    "able agile amber apt azure bold brave breezy bright brisk calm candid clear clever cosy crisp curious daring deft "
    "eager early easy fair fleet fond frank free fresh gentle glad golden grand happy hardy honest humble jolly keen kind "
    "light lively lucid lucky mellow merry mild neat nimble noble patient placid polite prime proud quick quiet rapid "
    "ready serene sharp silent silver smooth snug solid spry steady still sunny sure swift tidy tranquil vivid warm wise "
    "witty zesty"
).split()
_NOUNS: Final = (
    "alder ant badger beaver birch bison brook cedar clover comet condor coral crane cricket dolphin dove eagle egret elk "
    "elm falcon fern finch fjord fox gecko glacier gull harbour hare hawk hazel heron ibis iris jay kestrel kite koala "
    "lagoon larch lark linden lynx magpie maple marten meadow mole moss moth newt oak orca osprey otter owl panda pebble "
    "pine plover poplar puffin quail raven reef river robin rowan salmon seal shore sparrow spruce stork swallow swan "
    "tern thrush tiger trout tulip walrus willow wren yak zebra"
).split()


def new_id() -> str:
    """12 random hex digits: two of a million runs share one with a chance of 0.2 %."""
    return os.urandom(6).hex()


def id_of_key(key: str) -> str:
    """32 hex digits, the same for the same text always and everywhere: two texts that share them are not to be found."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16, person=b"flowlane.key").hexdigest()


def new_name() -> str:
    """A pair like brisk-otter; about 8,000 of them, so not unique; the id is."""
    first, second = os.urandom(2), os.urandom(2)
    return (
        f"{_ADJECTIVES[int.from_bytes(first, 'big') % len(_ADJECTIVES)]}"
        f"-{_NOUNS[int.from_bytes(second, 'big') % len(_NOUNS)]}"
    )
