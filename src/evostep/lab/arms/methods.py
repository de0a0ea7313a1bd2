"""Methods: every way to train that can be an arm, by name, with its defaults and its source."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

from evostep.errors import InputError
from evostep.lab.arms.procedures import PROCEDURES
from evostep.noise import LowRank
from evostep.strategies.base import Strategy
from evostep.strategies.cmaes import CMAES
from evostep.strategies.guided_es import GuidedES
from evostep.strategies.openai_es import OpenAIES
from evostep.strategies.random_mutation import RandomMutation
from evostep.strategies.random_search import RandomSearch
from evostep.strategies.safe import Safe
from evostep.strategies.snes import SNES
from evostep.strategies.spsa import SPSA


@dataclass(frozen=True)
class Method:
    """A way to train, by name.

    Attributes:
        summary: one line.
        source: where it is from.
        control: whether other arms are measured against it.
        procedure: how a run trains: a name in `evostep.lab.arms.procedures.PROCEDURES`.
        strategy: the strategy with its defaults; None where there is none.
        space: which weights evolve, as ``--space`` says it; None: what ``--space`` says.
        accept: when a new center replaces its parent, unless ``--accept`` says otherwise.
        phases: ``"schedule"``: evolution as ``--every`` says; ``"end"``: one phase, after the last
            epoch, with as many generations.
        all_data: whether it trains on the fitness and accept examples, too.
        gradient_noise: eta of the noise on gradients; 0: none.
        schedule: how the learning rate goes; None: as ``--schedule`` says.
        sharp: whether it is sharpness-aware (SAM).
    """

    summary: str
    source: str
    _: KW_ONLY
    control: bool = False
    procedure: str = "plain"
    strategy: Strategy | None = None
    space: str | None = None
    accept: str = "improves"
    phases: Literal["schedule", "end"] = "schedule"
    all_data: bool = False
    gradient_noise: float = 0.0
    schedule: str | None = None
    sharp: bool = False

    @property
    def evolves(self) -> bool:
        """Whether it has generations, and so needs fitness examples."""
        return PROCEDURES[self.procedure].evolves

    @property
    def populates(self) -> bool:
        """Whether it trains a population of models: see `Procedure`."""
        return PROCEDURES[self.procedure].populates

    @property
    def needs_fitness(self) -> bool:
        """Whether it needs fitness examples."""
        return self.evolves or PROCEDURES[self.procedure].needs_fitness


_ARTICLE = "Spartan neural network training, 2020"

METHODS: dict[str, Method] = {
    "sgd": Method("the base optimizer alone", "control", control=True),
    "sgd-all": Method(
        "the base optimizer alone, trained on the fitness and accept examples, too",
        "control for the data that evolution sees",
        control=True,
        all_data=True,
    ),
    "sgd-cosine": Method(
        "the base optimizer alone, its rate falling to 0 along a cosine",
        "arXiv 1608.03983; control",
        control=True,
        schedule="cosine",
    ),
    "sgd-all-cosine": Method(
        "sgd-cosine, trained on the fitness and accept examples, too",
        "arXiv 1608.03983; control for the data that evolution sees",
        control=True,
        all_data=True,
        schedule="cosine",
    ),
    "swa": Method(
        "mean of the weights of the epochs from --evolve-from on, BatchNorm estimated again",
        "arXiv 1803.05407; control for mixing",
        control=True,
        procedure="averaging",
    ),
    "ema": Method(
        "moving average of the weights of all steps from --evolve-from on, BatchNorm estimated "
        "again",
        "Polyak, Juditsky 1992, doi 10.1137/0330046; control for mixing",
        control=True,
        procedure="moving-average",
    ),
    "sam": Method(
        "sharpness-aware minimization: the gradient where the loss nearby is highest",
        "arXiv 2010.01412; control (package pytorch-optimizer)",
        control=True,
        sharp=True,
    ),
    "uniform-soup": Method(
        "mean of the run's checkpoints, BatchNorm estimated again",
        "arXiv 2203.05482; control for mixing",
        control=True,
        procedure="uniform-soup",
    ),
    "greedy-soup": Method(
        "mean of those of the run's checkpoints that help on the fitness examples",
        "arXiv 2203.05482; control for mixing by evolution",
        control=True,
        procedure="greedy-soup",
    ),
    "untouched": Method(
        "the model as it is",
        "control",
        control=True,
        procedure="untouched",
    ),
    "calibrated": Method(
        "the model as it is, its BatchNorm statistics estimated again on all training examples",
        "control",
        control=True,
        procedure="calibrated",
        all_data=True,
    ),
    "tuned-by-hand": Method(
        "the best of the settings that the model offers (text-reader: usual filters; merged-cnn: "
        "task arithmetic)",
        "control for searching",
        control=True,
        procedure="tuning",
    ),
    "experts": Method(
        "networks fine-tuned apart from one start, each on its own classes, averaged (merged-cnn)",
        "arXiv 2203.05482, 2305.03053; control for merging",
        control=True,
        procedure="experts",
    ),
    "gradient-noise": Method(
        "annealed noise on the gradients", "arXiv 1511.06807", gradient_noise=0.01
    ),
    "mutation": Method(
        "random mutations of all weights, the best one kept if it is better",
        f"{_ARTICLE}, method 1",
        procedure="alternating",
        strategy=RandomMutation(sigma=0.02, population=16),
    ),
    "mutation-safe": Method(
        "mutations scaled by the sensitivity of the outputs (SM-G-SUM)",
        "arXiv 1712.06563",
        procedure="alternating",
        strategy=RandomMutation(sigma=0.03, population=16, scale="safe"),
    ),
    "openai-es": Method(
        "OpenAI-ES on all weights",
        f"arXiv 1703.03864; {_ARTICLE}, method 2",
        procedure="alternating",
        strategy=OpenAIES(sigma=0.02, lr=0.004, population=16),
    ),
    "openai-es-adam": Method(
        "OpenAI-ES whose steps go through Adam",
        "arXiv 1703.03864, section 2",
        procedure="alternating",
        strategy=OpenAIES(sigma=0.02, lr=0.01, population=16, optimizer="Adam"),
    ),
    "low-rank-es": Method(
        "OpenAI-ES with noise of rank 1",
        "arXiv 2511.16652",
        procedure="alternating",
        strategy=OpenAIES(sigma=0.02, lr=0.004, population=16, noise=LowRank(1)),
    ),
    "guided-es": Method(
        "evolution along the base optimizer's gradients and momentum, and around them",
        "arXiv 1806.10230",
        procedure="alternating",
        strategy=GuidedES(sigma=0.01, lr=0.001, population=16),
    ),
    "snes-head": Method(
        "separable natural evolution strategy on the last layer",
        "Schaul, Glasmachers, Schmidhuber 2011, doi 10.1145/2001576.2001692",
        procedure="alternating",
        strategy=SNES(sigma=0.1, population=16),
        space="head",
    ),
    "snes-norm": Method(
        "separable natural evolution strategy on the normalisation layers",
        "Schaul, Glasmachers, Schmidhuber 2011, doi 10.1145/2001576.2001692",
        procedure="alternating",
        strategy=SNES(sigma=0.05, population=16),
        space="norm",
    ),
    "cma-es": Method(
        "CMA-ES on the last layer, or another space of at most 2,000 numbers",
        "Hansen 2016, arXiv 1604.00772 (package cma)",
        procedure="alternating",
        strategy=CMAES(sigma=0.1, population=16, scale="absolute"),
        space="head",
        accept="improves-phase",  # single steps of CMA-ES are small
    ),
    "spsa": Method(
        "a gradient from two scores at a time, in random directions",
        "Spall 1992, doi 10.1109/9.119632",
        procedure="alternating",
        strategy=SPSA(sigma=0.01, lr=0.01, population=2),
        accept="improves-phase",
    ),
    "soup-cmaes": Method(
        "mixing of the run's checkpoints by CMA-ES, once, after the last epoch",
        "arXiv 2203.05482 with CMA-ES (package cma)",
        procedure="alternating",
        strategy=CMAES(sigma=0.1, population=16, scale="absolute"),
        space="span",
        accept="improves-phase",  # single steps of CMA-ES are small
        phases="end",
    ),
    "soup-cycle": Method(
        "mixing of the run's checkpoints by CMA-ES in every phase, training goes on from there",
        f"{_ARTICLE}: its loop, in the space of checkpoints",
        procedure="alternating",
        strategy=CMAES(sigma=0.1, population=16, scale="absolute"),
        space="span",
        accept="improves-phase",
    ),
    "random-search": Method(
        "random mixtures of the run's checkpoints, the best one kept if it is better",
        "control for every space (--space)",
        procedure="alternating",
        strategy=RandomSearch(sigma=0.1, population=16, scale="absolute"),
        space="span",
    ),
    "esgd": Method(
        "a population of models, each with an optimizer of its own, that train, breed and compete",
        "arXiv 1810.06773",
        procedure="population",
    ),
}


def setting_kinds(strategy: Strategy) -> dict[str, Any]:
    """Return the type of each setting of an arm's strategy, objects included.

    Example:
        >>> setting_kinds(CMAES(sigma=0.1))["population"]  # budgets need it: None will not do
        <class 'int'>
    """
    kinds = {**typing.get_type_hints(type(strategy)), "population": int}
    return {f.name: kinds[f.name] for f in dataclasses.fields(strategy)}  # type: ignore[arg-type]


def strategy_settings(strategy: Strategy) -> dict[str, tuple[Any, Any]]:
    """Return each setting of a strategy, as an option has it: name -> (type, default).

    Settings that may be objects are text: see `read_setting`.

    Example:
        >>> strategy_settings(RandomMutation(sigma=0.02))["population"]
        (<class 'int'>, 16)
    """
    kinds = setting_kinds(strategy)
    settings = {}
    for field in dataclasses.fields(strategy):  # type: ignore[arg-type]
        kind, default = kinds[field.name], getattr(strategy, field.name)
        if not _is_plain(kind):
            kind, default = str | None, write_setting(default)
        settings[field.name] = (kind, default)
    return settings


def read_setting(name: str, value: Any) -> Any:
    """Read the settings that are objects: ``noise: low-rank-4``, ``scale: safe-abs``.

    Raises:
        InputError: a rank that is none.

    Example:
        >>> read_setting("noise", "low-rank-4")
        LowRank(rank=4)
    """
    if isinstance(value, str) and name == "noise" and value.startswith("low-rank"):
        if not (found := re.fullmatch(r"low-rank-([1-9]\d{0,8})", value)):
            raise InputError(f"noise {value!r} has no rank of 1 or more: write low-rank-4")
        return LowRank(int(found[1]))
    if isinstance(value, str) and name == "scale" and value in ("safe-sum", "safe-abs"):
        return Safe("sum" if value == "safe-sum" else "abs")
    return value


def write_setting(value: Any) -> str | None:
    """Write what `read_setting` reads.

    Example:
        >>> write_setting(LowRank(4))
        'low-rank-4'
    """
    if isinstance(value, LowRank):
        return f"low-rank-{value.rank}"
    return None if value is None else str(value)


def _is_plain(kind: Any) -> bool:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return all(_is_plain(part) for part in typing.get_args(kind))
    return kind in (int, float, bool, str, type(None)) or typing.get_origin(kind) is Literal
