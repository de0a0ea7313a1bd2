"""Engines (being rebuilt)."""
from evostep.engines.base import Engine
from evostep.engines.inplace import InPlace
from evostep.engines.vmap import Vmap
from evostep.engines.prefix import Prefix

ENGINES: dict[str, type[Engine]] = {kind.name: kind for kind in (InPlace, Vmap, Prefix)}
