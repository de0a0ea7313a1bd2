"""Engines: members and a fitness in, a score for each out. Chosen for the user by `auto`.

`ENGINES` is the table: a new engine is one file and one row. After the plain one, the order is that
in which the automatic choice tries them.
"""

from evostep.engines.base import Engine
from evostep.engines.inplace import InPlace
from evostep.engines.lowrank import SharedProduct
from evostep.engines.prefix import Prefix
from evostep.engines.racing import Racing
from evostep.engines.vmap import Vmap
from evostep.engines.workers import Workers

ENGINES: dict[str, type[Engine]] = {
    kind.name: kind for kind in (InPlace, SharedProduct, Vmap, Prefix, Racing, Workers)
}
