"""The public names: `evostep` imports them from here when the first of them is asked for."""

from evostep.acceptance import Always as Always
from evostep.acceptance import Improves as Improves
from evostep.acceptance import Ladder as Ladder
from evostep.acceptance import PairedTest as PairedTest
from evostep.evolution import Evolution as Evolution
from evostep.gradient_noise import GradientNoise as GradientNoise
from evostep.noise import LowRank as LowRank
from evostep.optimizer import Evolved as Evolved
from evostep.population.esgd import ESGD as ESGD
from evostep.population.species import Species as Species
from evostep.record import Record as Record
from evostep.record import Verdict as Verdict
from evostep.schedule import Alternate as Alternate
from evostep.scoring.fitness import Fitness as Fitness
from evostep.scoring.scores import Scores as Scores
from evostep.spaces.span import Span as Span
from evostep.spaces.weights import AllWeights as AllWeights
from evostep.spaces.weights import Only as Only
from evostep.strategies.cmaes import CMAES as CMAES
from evostep.strategies.guided_es import GuidedES as GuidedES
from evostep.strategies.openai_es import OpenAIES as OpenAIES
from evostep.strategies.random_mutation import RandomMutation as RandomMutation
from evostep.strategies.random_search import RandomSearch as RandomSearch
from evostep.strategies.safe import Safe as Safe
from evostep.strategies.snes import SNES as SNES
from evostep.suggest import suggest_sigma as suggest_sigma
