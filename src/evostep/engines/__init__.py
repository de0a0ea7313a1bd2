"""Engines (being rebuilt)."""

from evostep.engines.base import Engine
from evostep.engines.inplace import InPlace
from evostep.engines.prefix import Prefix
from evostep.engines.vmap import Vmap

ENGINES: dict[str, type[Engine]] = {kind.name: kind for kind in (InPlace, Vmap, Prefix)}
