"""ESGD: models, each with an optimizer of its own, that train, breed and compete.

Cui, Zhang, Tüske, Picheny 2018, "Evolutionary Stochastic Gradient Descent for Optimization of Deep
Neural Networks" (https://arxiv.org/abs/1810.06773). Generation k: each of mu individuals trains for
some epochs by its own optimizer and backs off from each epoch that made it worse; then, some times,
lambda offspring are the mean of rho parents plus N(0, (sigma / k)^2), and of all mu + lambda the
best m survive, with mu - m others drawn at random. So the best fitness never falls.

What differs: the roulette wheel goes by rank (`evostep.population.selection`); an individual keeps
its species for life instead of drawing one in each generation, and an offspring takes that of its
first parent, with the optimizer's state; noise never reaches buffers.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from evostep.compatibility import check_processes
from evostep.errors import InputError
from evostep.interrupts import Undoing, finish
from evostep.noise import derive_seed, make_generator
from evostep.population.breeding import Inherit, Litter
from evostep.population.founding import found, revive
from evostep.population.individual import Individual, Snapshot, transplant
from evostep.population.records import Descent, PopulationRecord
from evostep.population.scoring import FitnessOfModel, Scorer
from evostep.population.selection import draw_parents, survivors
from evostep.population.species import Species
from evostep.ranks import group_size
from evostep.record import FEW, warn_of_no_difference
from evostep.scoring.calibration import Calibration
from evostep.scoring.isolation import preserved_rng, seed_everything
from evostep.scoring.scores import Scores
from evostep.strategies.base import SCALE_KINDS, ScaleKind

TrainEpoch = Callable[[nn.Module, Optimizer], int]

FORMAT = 1  # of what `ESGD.state_dict` returns; states from before have no number


class ESGD:
    """Trains a population by gradient descent and evolution in turns; the best never gets worse.

    `descend` is the gradient step, `evolve` the evolution step, so that `Alternate` drives them::

        for epoch in range(epochs):
            population.descend(train_epoch)
            population.evolve(schedule.generations(epoch))

    Models are evolved in place, one never becoming another object. An optimizer is replaced when an
    offspring takes the place of its individual, so take both from `individuals` or `best()`.

    One copy of the weights is held while offspring are scored, however many, and one for each that
    survives while they are written; an epoch holds one of the individual that trains. Offspring
    are recipes: numbers of parents, and noise that is a pure function of (seed, round, number,
    name). The phase, k, advances with the first `descend` after an `evolve`, and everybody is
    scored on the same examples within it: on those the best fitness never falls.

    Args:
        individuals: pairs of a model and its optimizer, or a `Species` from which the optimizer is
            drawn. Models have one architecture, and share nothing; optimizers may differ.
        fitness: higher is better: a `Fitness` (scores every model, whichever it was made with), or
            a callable on a model that returns a number, or a `Fitness`. One that is not finite
            ranks last.
        offspring: lambda, how many a round has, at least 1.
        parents: rho, how many are averaged into an offspring; they are drawn without replacement.
        elite: m, how many of the best survive for sure, from 1 to the population's size.
        sigma: standard deviation of the noise at k = 1, in units of `scale`.
        scale: ``"absolute"``: in units of the weights, as in the paper. ``"rms"``: relative to each
            tensor's root mean square, at least 0.01.
        inherit: ``"state"``: an offspring's optimizer is its first parent's, momentum included;
            ``"fresh"``: the same species and hyper-parameters, without a state.
        calibration: batches on which BatchNorm statistics of each offspring are estimated again
            before it is scored; it keeps those. None: the fitness's own `calibration`, and without
            one they are the mean of the parents'. Buffers that are no
            floating-point numbers are the first parent's. Noise reaches neither buffers nor
            parameters that need no gradient.
        seed: determines all noise, draws, and the random streams that training and scoring see.

    Attributes:
        individuals: the population as it is now.
        scores: fitness of each, from the last `descend` or `evolve`; empty before the first.
        history: a `PopulationRecord` for each round.
        descents: a `Descent` for each epoch.
        sample_forwards: examples that went forward, in training (three for each, the backward
            included), scoring and calibration; calls, where the fitness is a bare callable.

    Raises:
        ValueError: fewer individuals than parents or elite; models of different architecture; a
            fitness that is not callable; numbers out of range. Weights are untouched.

    Example:
        >>> inputs = torch.randn(64, 2)
        >>> targets = (inputs.sum(1) > 0).long()
        >>> def train_epoch(model, optimizer):
        ...     optimizer.zero_grad()
        ...     torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        ...     optimizer.step()
        ...     return len(inputs)
        >>> species = [
        ...     Species(torch.optim.SGD, lr=(0.01, 1.0, "log"), momentum=(0, 0.99)),
        ...     Species(torch.optim.Adam, lr=(1e-3, 1e-1, "log")),
        ... ]
        >>> models = [torch.nn.Linear(2, 2) for _ in range(4)]
        >>> population = ESGD(
        ...     [(model, species[i % 2]) for i, model in enumerate(models)],
        ...     lambda model: -float(torch.nn.functional.cross_entropy(model(inputs), targets)),
        ...     offspring=8,
        ...     parents=2,
        ...     elite=2,
        ... )
        >>> for _ in range(5):
        ...     descents = population.descend(train_epoch)
        ...     rounds = population.evolve(2)
        >>> max(population.scores) > max(population.descents[0].before)
        True
        >>> model, optimizer = population.best().model, population.best().optimizer
    """

    def __init__(
        self,
        individuals: Sequence[tuple[nn.Module, Optimizer | Species]],
        fitness: FitnessOfModel,
        offspring: int,
        parents: int,
        elite: int,
        sigma: float = 0.01,
        *,
        scale: ScaleKind = "absolute",
        inherit: Inherit = "state",
        calibration: Iterable[Any] | None = None,
        seed: int = 0,
    ) -> None:
        individuals = list(individuals)
        _check_settings(len(individuals), offspring, parents, elite, sigma, scale, inherit)
        self._scorer = Scorer(fitness, int(seed))
        self.individuals: list[Individual] = found(individuals, int(seed))
        if calibration is not None:
            self._scorer.calibration = Calibration(self.individuals[0].model, calibration)
        self.offspring, self.parents, self.elite = offspring, parents, elite
        self.sigma, self.scale, self.inherit = float(sigma), scale, inherit
        self.seed = int(seed)
        # without a state: what a resumed run makes optimizers of, whose species died out or moved
        self._founders = [
            transplant(one.optimizer, one.model, one.model, keep_state=False)
            for one in self.individuals
        ]
        self.scores: list[float] = []
        self.history: list[PopulationRecord] = []
        self.descents: list[Descent] = []
        self.epoch = 0
        self.generation = 0
        self.phase = 1
        self._evolved = False

    def __repr__(self) -> str:
        return (
            f"ESGD({len(self.individuals)} individuals, offspring={self.offspring}, "
            f"parents={self.parents}, elite={self.elite}, sigma={self.sigma})"
        )

    def best(self) -> Individual:
        """Return the individual with the best fitness, as last scored.

        Raises:
            ValueError: nothing was scored yet.
        """
        if not self.scores:
            raise ValueError("no individual was scored yet: call descend() or evolve() first")
        ranks = [s if math.isfinite(s) else -math.inf for s in self.scores]
        return self.individuals[ranks.index(max(ranks))]

    # The gradient step.

    def descend(
        self, train_epoch: TrainEpoch, epochs: int = 1, *, max_forwards: int | None = None
    ) -> list[Descent]:
        """Train each individual for some epochs, and undo each epoch that made its fitness fall.

        Args:
            train_epoch: ``train_epoch(model, optimizer)`` trains for one epoch and returns how many
                examples it trained on. It sees random streams that depend on (seed, epoch,
                individual) alone, so that a resumed run shuffles as the first one did.
            epochs: how many, at least 0.
            max_forwards: stop after the first individual's epoch with which the sample-forwards of
                this call reach this number.

        Returns:
            One record for each epoch; they are appended to `descents`, too.

        Raises:
            ValueError: `train_epoch` does not return a number of examples.
            Exception: whatever training raises; that individual is then as before the epoch.
        """
        if not callable(train_epoch):
            raise ValueError(
                "train_epoch must be a callable on (model, optimizer), got "
                f"{type(train_epoch).__name__}"
            )
        if epochs < 0:
            raise ValueError(f"epochs must be >= 0, got {epochs}")
        if epochs == 0:
            return []
        if self._evolved:
            self.phase, self._evolved = self.phase + 1, False
        end = None if max_forwards is None else self.sample_forwards + max_forwards
        records: list[Descent] = []
        with Undoing(), preserved_rng():
            spent = self.sample_forwards
            self._score_everybody()
            for _ in range(epochs):
                records.append(self._descend_epoch(train_epoch, spent, end))
                self.descents.append(records[-1])
                spent = self.sample_forwards
                if end is not None and spent >= end:
                    break
        return records

    def _descend_epoch(self, train_epoch: TrainEpoch, spent: int, end: int | None) -> Descent:
        began = time.perf_counter()
        before = list(self.scores)
        outcomes: list[Scores] = []
        kept: list[bool] = []
        for i, individual in enumerate(self.individuals):
            with Undoing(Snapshot(individual).restore) as undoing:
                self._train(train_epoch, i)
                outcome = self._scorer.attempt(individual.model, self.phase)
                value = outcome.value
                # one that was not finite before has nothing to back off to
                better = not outcome.failed and not value < before[i]
                if better:
                    finish(partial(self._keep, i, value, undoing))
            outcomes.append(outcome)
            kept.append(better)
            if end is not None and self.sample_forwards >= end:
                break
        self.epoch += 1
        return Descent(
            epoch=self.epoch - 1,
            alternation=self.phase,
            before=before,
            tried=[outcome.value for outcome in outcomes],
            kept=kept,
            failed=sum(outcome.failed for outcome in outcomes),
            error=_first_error(outcomes),
            sample_forwards=self.sample_forwards - spent,
            seconds=time.perf_counter() - began,
        )

    def _keep(self, i: int, score: float, undoing: Undoing) -> None:
        self.scores[i] = score
        undoing.leave_it()

    def _train(self, train_epoch: TrainEpoch, i: int) -> None:
        seed_everything(derive_seed(self.seed, self.epoch, "train", i))
        with torch.enable_grad():
            examples = train_epoch(self.individuals[i].model, self.individuals[i].optimizer)
        if not isinstance(examples, int) or isinstance(examples, bool) or examples < 0:
            raise ValueError(
                "train_epoch must return the number of examples that it trained on, got "
                f"{examples!r}"
            )
        self._scorer.sample_forwards += 3 * examples  # a backward counts as two more

    # The evolution step.

    def evolve(
        self,
        generations: int = 1,
        *,
        max_forwards: int | None = None,
        max_seconds: float | None = None,
        on_generation: Callable[[PopulationRecord], object] | None = None,
    ) -> list[PopulationRecord]:
        """Breed and select for some rounds; calls without `descend` between them are one phase.

        Args:
            generations: how many rounds, at least 0.
            max_forwards: stop after the first round with which the sample-forwards of this call
                reach this number.
            max_seconds: stop after the first round with which this call has lasted so long.
            on_generation: called with each record as soon as its round is done; True stops.

        Returns:
            One record for each round; they are appended to `history`, too.

        Raises:
            ValueError: a negative number of rounds.
            Exception: whatever the fitness raises for an individual as it stands (for an offspring
                it is counted instead). The population is then that of the last round, as after
                Ctrl-C.
        """
        if generations < 0:
            raise ValueError(f"generations must be >= 0, got {generations}")
        check_processes(self.individuals[0].parameters())
        if (size := group_size()) > 1:
            raise InputError(
                f"ESGD in a group of {size} processes would drift apart, as its individuals do not "
                "go over ranks: evolve in one process, outside the group"
            )
        if generations == 0:
            return []
        began = time.perf_counter()
        start = spent = self.sample_forwards
        records: list[PopulationRecord] = []
        self._evolved = True
        told = False
        with Undoing(), preserved_rng():
            self._score_everybody()
            for _ in range(generations):
                standing = list(self.scores)
                record = self._round(spent)
                records.append(record)
                record.warn_of_failures()
                told = told or self._tell_if_flat(record, standing)
                if on_generation is not None and on_generation(record) is True:
                    break
                spent = self.sample_forwards
                if max_forwards is not None and spent - start >= max_forwards:
                    break
                if max_seconds is not None and time.perf_counter() - began >= max_seconds:
                    break
        return records

    def _round(self, spent: int) -> PopulationRecord:
        began = time.perf_counter()
        mu, before = len(self.individuals), list(self.scores)
        litter = self._breed()
        outcomes = litter.score(self._scorer, self.phase)
        scores = before + [outcome.value for outcome in outcomes]
        chosen = survivors(scores, mu, self.elite, self._generator("survival"))
        # parents that survive keep their places, offspring take those of the others
        free = [place for place in range(mu) if place not in chosen]
        places = dict(zip(free, [c for c in chosen if c >= mu], strict=True))
        born = [litter.bear(c - mu, place, self.inherit) for place, c in places.items()]
        after = [scores[places.get(place, place)] for place in range(mu)]
        record = PopulationRecord(
            generation=self.generation,
            scores=scores[mu:],
            parent=_best(before),
            candidate=_best(after),
            judged_parent=_best(before),
            accepted=bool(born),
            failed=sum(outcome.failed for outcome in outcomes),
            error=_first_error(outcomes),
            sample_forwards=self.sample_forwards - spent,
            seconds=time.perf_counter() - began,
            alternation=self.phase,
            population=after,
            survivors=chosen,
            moved=bool(born),
        )
        rounds = len(self.history)

        def settle() -> None:
            for newborn in born:
                newborn.write()
                self.individuals[newborn.place] = newborn.individual
            self.scores, self.generation = list(after), record.generation + 1
            self.history[rounds:] = [record]

        finish(settle)  # an interrupt finds the round finished
        return record

    def _tell_if_flat(self, record: PopulationRecord, standing: list[float]) -> bool:
        """Warn, and return True, where offspring and population score the same to the last bit."""
        scores = [*standing, *record.scores]
        if len(record.scores) < FEW or len(set(scores)) > 1 or not math.isfinite(scores[0]):
            return False
        if self._scorer.at_its_best(scores[0]):
            return False
        everybody = f"all {len(standing)} individuals and {len(record.scores)} offspring score"
        warn_of_no_difference(everybody, scores[0], "so no one is selected", copied=True)
        return True

    def _breed(self) -> Litter:
        drawn = [
            draw_parents(self.scores, self.parents, self._generator("parents", i))
            for i in range(self.offspring)
        ]
        return Litter(
            self.individuals,
            [parents for parents in drawn if parents],  # none, where nobody is sound
            sigma=self.sigma / self.phase,
            scale=self.scale,
            seed=self.seed,
            generation=self.generation,
        )

    def _generator(self, purpose: str, *parts: int) -> torch.Generator:
        return make_generator(derive_seed(self.seed, self.generation, purpose, *parts))

    def _score_everybody(self) -> None:
        """Score the population as it stands; what the fitness raises here propagates."""
        self.scores = [self._scorer.score(one.model, self.phase) for one in self.individuals]

    @property
    def sample_forwards(self) -> int:
        """Examples that went forward so far: trained on (three times each), scored, calibrated."""
        return self._scorer.sample_forwards

    # Saving and loading.

    def state_dict(self) -> dict[str, Any]:
        """Return all that a later run needs to go on with the same bits, weights included.

        Plain tensors, numbers, lists and dictionaries: loads with ``weights_only=True``. As in
        torch the tensors are the live ones: save or deepcopy it before going on. No history in it.
        """
        return {
            "format": FORMAT,
            "seed": self.seed,
            "epoch": self.epoch,
            "generation": self.generation,
            "phase": self.phase,
            "evolved": self._evolved,
            "sample_forwards": self.sample_forwards,
            "scores": list(self.scores),
            "individuals": [
                {
                    "founder": one.founder,
                    "optimizer_type": type(one.optimizer).__name__,
                    "model": one.model.state_dict(),
                    "optimizer": one.optimizer.state_dict(),
                }
                for one in self.individuals
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, in a population made as that one was.

        An optimizer whose species is another one in the saved population is replaced.

        Raises:
            ValueError: a later format; a key that is missing; a population of another size,
                architecture or other species. Everything is untouched then.
        """
        if state.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"the state of an ESGD has the format {state['format']!r}, this version of evostep "
                f"reads {FORMAT}: load it with the version that saved it"
            )
        keys = ("seed", "epoch", "generation", "phase", "evolved", "sample_forwards", "scores")
        missing = {*keys, "individuals"} - set(state)
        if missing:
            raise ValueError(f"the state of an ESGD lacks {', '.join(sorted(missing))}")
        saved = state["individuals"]
        if len(saved) != len(self.individuals):
            raise ValueError(
                f"the state has {len(saved)} individuals, this population "
                f"{len(self.individuals)}: load it into one made as that was"
            )
        loaded = [revive(i, one, self.individuals, self._founders) for i, one in enumerate(saved)]
        for individual, one in zip(loaded, saved, strict=True):
            individual.model.load_state_dict(one["model"])
            individual.optimizer.load_state_dict(copy.deepcopy(one["optimizer"]))
        self.individuals = loaded
        self.seed, self.epoch = int(state["seed"]), int(state["epoch"])
        self._scorer.seed = self.seed
        self.generation, self.phase = int(state["generation"]), int(state["phase"])
        self._evolved = bool(state["evolved"])
        self._scorer.sample_forwards = int(state["sample_forwards"])
        self.scores = [float(score) for score in state["scores"]]


def _check_settings(
    mu: int,
    offspring: int,
    parents: int,
    elite: int,
    sigma: float,
    scale: str,
    inherit: str,
) -> None:
    for name, value in (("offspring", offspring), ("parents", parents), ("elite", elite)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    for name, value in (("parents", parents), ("elite", elite)):
        if mu < value:
            raise ValueError(
                f"{name} is {value}, but there are only {mu} individuals: give more of them, or "
                f"{name} <= {mu}"
            )
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma must be a finite number > 0, got {sigma}")
    if scale not in SCALE_KINDS:
        raise ValueError(f"scale must be one of {', '.join(SCALE_KINDS)}, got {scale!r}")
    if inherit not in ("state", "fresh"):
        raise ValueError(f"inherit must be 'state' or 'fresh', got {inherit!r}")


def _best(scores: Iterable[float]) -> float:
    return max((score for score in scores if math.isfinite(score)), default=math.nan)


def _first_error(outcomes: Sequence[Scores]) -> str | None:
    return next((outcome.error for outcome in outcomes if outcome.error is not None), None)
