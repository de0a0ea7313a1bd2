"""evostep: gradient steps and evolution steps on the metric that you report.

Wrap an optimizer in `Evolved`, score with a `Fitness`, and call `optimizer.evolve` between epochs;
or evolve a checkpoint without any optimizer by `Evolution`.
"""

from evostep._version import __version__
from evostep.acceptance import Always, Improves, Ladder, PairedTest
from evostep.evolution import Evolution
from evostep.gradient_noise import GradientNoise
from evostep.noise import LowRank
from evostep.optimizer import Evolved
from evostep.population.esgd import ESGD
from evostep.population.species import Species
from evostep.record import Record, Verdict
from evostep.schedule import Alternate
from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Scores
from evostep.spaces.span import Span
from evostep.spaces.weights import AllWeights, Only
from evostep.strategies.cmaes import CMAES
from evostep.strategies.guided_es import GuidedES
from evostep.strategies.openai_es import OpenAIES
from evostep.strategies.random_mutation import RandomMutation
from evostep.strategies.random_search import RandomSearch
from evostep.strategies.safe import Safe
from evostep.strategies.snes import SNES
from evostep.suggest import suggest_sigma

__all__ = [
    "CMAES",
    "ESGD",
    "SNES",
    "AllWeights",
    "Alternate",
    "Always",
    "Evolution",
    "Evolved",
    "Fitness",
    "GradientNoise",
    "GuidedES",
    "Improves",
    "Ladder",
    "LowRank",
    "Only",
    "OpenAIES",
    "PairedTest",
    "RandomMutation",
    "RandomSearch",
    "Record",
    "Safe",
    "Scores",
    "Span",
    "Species",
    "Verdict",
    "__version__",
    "suggest_sigma",
]
