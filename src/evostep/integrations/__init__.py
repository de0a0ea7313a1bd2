"""Evolution in the training loops of others: what every framework's adapter is made of.

`evostep.integrations.lightning`, `.transformers` and `.skorch` each hold a callback `Evolve`; where
a loop is one's own (plain, Accelerate, Fabric, timm), `evolve` is called in it. See
docs/frameworks.md.
"""

from evostep.integrations.processes import evolve as evolve
from evostep.integrations.trackers import Jsonl as Jsonl
from evostep.integrations.trackers import TensorBoard as TensorBoard
from evostep.integrations.trackers import Tracker as Tracker
from evostep.integrations.trackers import WandB as WandB
from evostep.integrations.wrappers import evolved as evolved
from evostep.integrations.wrappers import find_evolved as find_evolved
from evostep.integrations.wrappers import unwrapped as unwrapped
