"""Strategies: how members are drawn, and where the center is proposed to go.

`STRATEGIES` is the table: a new strategy is one file and one row.
"""

from evostep.strategies.base import Strategy
from evostep.strategies.cmaes import CMAES
from evostep.strategies.guided_es import GuidedES
from evostep.strategies.openai_es import OpenAIES
from evostep.strategies.random_mutation import RandomMutation
from evostep.strategies.random_search import RandomSearch
from evostep.strategies.snes import SNES
from evostep.strategies.spsa import SPSA

STRATEGIES: dict[str, type[Strategy]] = {
    kind.__name__: kind
    for kind in (RandomMutation, OpenAIES, SNES, CMAES, GuidedES, RandomSearch, SPSA)
}
