"""Cross-fitting of evolved weights: what decides about an example has not seen it.

As `evostep.polishing.procedure`, with networks in the place of biases. For each set of folds that
is left out (none, one, two) and each space the weights are evolved from the checkpoint on, the
outputs under the tuned logit adjustment that was fitted without the same folds; once for each
sigma, stopped at four times. For the fold that judges, everything is chosen on the other K - 1:
start, space, sigma and stop by outputs for folds that neither start nor evolution had seen, and the
judging fold took part in none of it. What was evolved has to beat the best simple start there by
more than a standard error. On all examples it is chosen in the same way, and evolved once more.

Where a part is held out there is one choice, on the folds of the rest; the network that is judged
is the one that is applied.

How far folds flatter (`evostep.polishing.optimism`) is measured by refitting on 20 halves, which
for networks would take too long: what a decision with as many outputs is flattered by is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from evostep.polishing.crossfit import CrossFit
from evostep.polishing.objective import Objective
from evostep.polishing.optimism import optimism
from evostep.polishing.problem import Problem
from evostep.polishing.procedure import PULLS, Fitter, count_sets, pick, without
from evostep.polishing.search import Search, center_on_plateau
from evostep.polishing.starts import fit_starts, starts_of, subset
from evostep.polishing.store import Nowhere, Store
from evostep.polishing.weights import Network, Stop, Weights, generations_of, stops_of


@dataclass(frozen=True)
class Plan:
    """How weights are evolved.

    Attributes:
        search: of decisions, which are candidates, too, where `decides`.
        decides: whether they are.
        generations: of each evolution.
        prior: class frequencies in training; None: those of the examples.
        adjusts: whether the network has a last layer that takes the start's biases.
        store: of what is finished.
        watch: hears of the share that is done, and of the gain where it searches.
    """

    search: Search
    decides: bool
    generations: int
    prior: Tensor | None = None
    adjusts: bool = True
    store: Store = field(default_factory=Nowhere)
    watch: Callable[[float, float], None] | None = None


@dataclass(frozen=True)
class Found:
    """What was found on all examples.

    Attributes:
        fit: for the judge.
        network: in whose space; None: a start or a decision was chosen.
        weights: there.
        start: (P,) the decision that belongs to them, in the last layer.
        sample_forwards: that it took.
    """

    fit: CrossFit
    network: Network | None
    weights: Weights
    start: Tensor
    sample_forwards: int


@dataclass(frozen=True)
class _Candidate:
    """One that may be chosen; without a network, a start or a decision of the fitter's."""

    label: str
    network: Network | None
    number: int


@dataclass(frozen=True)
class _Chosen:
    best: int
    simple: int


class _Nested:
    """Fits candidates on sets of examples, each set once, and chooses among them."""

    def __init__(
        self,
        problem: Problem,
        objective: Objective,
        folds: Tensor,
        networks: Mapping[str, Network],
        plan: Plan,
        sets: int,
    ) -> None:
        self._problem, self._objective, self._folds, self._plan = problem, objective, folds, plan
        self._networks = networks
        starts = starts_of(problem)
        self.simple = len(starts)
        self._fitter = Fitter(objective, folds, plan.search, plan.prior, starts)
        # in the order of their simplicity
        labels = list(map(str, self._fitter.choices)) if plan.decides else list(starts)
        self.candidates = [_Candidate(label, None, i) for i, label in enumerate(labels)]
        stops = stops_of(plan.generations)
        for name, network in networks.items():
            self.candidates += [
                _Candidate(_label(name, stop), network, i) for i, stop in enumerate(stops)
            ]
        self._runs: dict[tuple[str, tuple[int, ...]], dict[str, Tensor]] = {}
        self._outputs: dict[tuple[int, ...], Tensor] = {}
        self.spent = 0
        self._to_do = sets * len(networks) * generations_of(plan.generations)
        self._done = 0

    def without(self, gone: tuple[int, ...]) -> Tensor:
        return without(self._folds, gone)

    def biases(self, gone: tuple[int, ...]) -> Tensor:
        """Return those of starts and decisions fitted without the folds `gone`, (N, P)."""
        if self._plan.decides:
            return self._fitter.candidates(self._problem, gone)
        rows = self.without(gone).double()[None]
        return fit_starts(self._problem, self._objective, rows, self._plan.prior)[:, 0]

    def start(self, gone: tuple[int, ...]) -> Tensor:
        """Return the decision under which weights evolve, (P,)."""
        bias = self.biases(gone)[self.simple - 1]
        return bias if self._plan.adjusts else torch.zeros_like(bias)

    def run(self, name: str, gone: tuple[int, ...]) -> dict[str, Tensor]:
        """Return what was evolved in a space without the folds `gone`, and its outputs there."""
        if (name, gone) in self._runs:
            return self._runs[name, gone]
        plan, network = self._plan, self._networks[name]
        key = "-".join(["evolved", str(list(self._networks).index(name)), *map(str, gone)])
        found = plan.store.load(key)
        # with another number of generations it is of another run
        if found is None or int(found["generations"]) != plan.generations:
            rows, start = self.without(gone), self.start(gone)
            weights, spent = network.evolve(rows, start, plan.generations, self._told)
            judged = ~rows if gone else torch.ones_like(rows)
            outputs = [network.outputs(one, everything=not gone) for one in weights]
            spent += len(weights) * network.forwards(everything=not gone)
            problem = self._problem
            found = {
                "outputs": torch.stack(
                    [
                        replace(problem, outputs=one).adjusted(start)[judged[: len(one)]]
                        for one in outputs
                    ]
                ),
                "forwards": torch.tensor(spent),
                "generations": torch.tensor(plan.generations),
            }
            if not gone:
                found |= {
                    f"weights {i} {tensor}": value
                    for i, one in enumerate(weights)
                    for tensor, value in one.items()
                }
            plan.store.save(key, found)
        else:
            self._done += generations_of(plan.generations)
        self.spent += int(found["forwards"])
        self._runs[name, gone] = dict(found)
        return self._runs[name, gone]

    def _told(self, forwards: int, gain: float) -> None:
        self._done += 1
        if self._plan.watch is not None:
            self._plan.watch(min(1.0, self._done / self._to_do), gain)

    def outputs(self, gone: tuple[int, ...]) -> Tensor:
        """Return the outputs of all candidates for the examples left out (all, without any).

        (N, n, C); zero where an example was seen, or held out as long as folds are left out.
        """
        if gone not in self._outputs:
            problem = self._problem
            parts = [problem.adjusted(self.biases(gone)[:, None])]
            for name in self._networks:
                own = self.run(name, gone)["outputs"]
                whole = own.new_zeros(len(own), len(problem), problem.biases)
                judged = ~self.without(gone) if gone else torch.ones(len(problem), dtype=torch.bool)
                judged = judged.nonzero().flatten()[: own.shape[1]]
                whole[:, judged] = own
                parts.append(whole)
            self._outputs[gone] = torch.cat(parts)
        return self._outputs[gone]

    def choose(self, judging: int | None) -> _Chosen:
        """Choose on all folds but `judging`."""
        own = () if judging is None else (judging,)
        rows = self.without(own)
        part, folds = subset(self._problem, rows), self._folds[rows]
        outputs = torch.empty(len(self.candidates), len(part), part.biases)
        for fold in folds.unique().tolist():
            here = folds == fold
            outputs[:, here] = self.outputs(tuple(sorted((*own, fold))))[:, rows][:, here].float()
        broken = ~outputs.isfinite().flatten(1).all(1)
        outputs[broken] = part.outputs.float()  # a network that failed is no better than none
        return _Chosen(*pick(part, self._objective, outputs.__getitem__, len(outputs), self.simple))

    def decided(self, which: int, gone: tuple[int, ...], rows: Tensor) -> Tensor:
        """Return the outputs of a candidate fitted without `gone` for some examples, (m, C)."""
        problem, candidate = self._problem, self.candidates[which]
        if candidate.network is None:
            bias = self.bias(which, gone)
            return subset(problem, rows).adjusted(bias)
        outputs = self.outputs(gone)[which, rows]
        return outputs if bool(outputs.isfinite().all()) else problem.outputs[rows]

    def bias(self, which: int, gone: tuple[int, ...]) -> Tensor:
        """Return the biases of a start or a decision, in the middle of the plateau of the last."""
        bias = self.biases(gone)[which]
        if which >= self.simple and not self._objective.of_outputs:
            bias = center_on_plateau(self._problem, bias, self.without(gone))
        return bias

    @property
    def evaluations(self) -> int:
        """How many decisions were scored."""
        return self._fitter.evaluations


def _label(name: str, stop: Stop) -> str:
    return f"evolution of {name}, {stop.generations} generations, sigma {stop.sigma:g}"


def evolve_networks(
    problem: Problem,
    objective: Objective,
    folds: Tensor,
    networks: Mapping[str, Network],
    plan: Plan,
) -> Found:
    """Run the procedure.

    Args:
        problem: the checkpoint's outputs for all examples, and what is true.
        objective: what is maximised.
        folds: (n,) integers in [0, K); -1: held out.
        networks: by the name of the space that they evolve in.
        plan: how.
    """
    k, held = int(folds.max()) + 1, folds < 0
    once = bool(held.any())
    nested = _Nested(problem, objective, folds, networks, plan, count_sets(k, once=once))
    everything = torch.ones(len(problem), dtype=torch.bool)
    judged: list[str] = []
    outputs = torch.stack([problem.outputs.double()] * 3)
    for fold in () if once else range(k):
        chosen = nested.choose(fold)
        here = folds == fold
        for i, which in ((1, chosen.simple), (2, chosen.best)):
            outputs[i, here] = nested.decided(which, (fold,), here).double()
        judged.append(nested.candidates[chosen.best].label)
    chosen = nested.choose(None)
    final = torch.stack(
        [nested.decided(which, (), everything).double() for which in (chosen.simple, chosen.best)]
    )
    if once:
        outputs, final = torch.cat([outputs[:1], final])[:, held], final[:, held]
    best, simple = nested.candidates[chosen.best], nested.candidates[chosen.simple]
    weights: Weights = {}
    bias = problem.unchanged
    of_decision = bias if best.network is not None else nested.bias(chosen.best, ())
    if best.network is not None:
        name = next(name for name, network in networks.items() if network is best.network)
        run, prefix = nested.run(name, ()), f"weights {best.number} "
        weights = {
            key.removeprefix(prefix): value for key, value in run.items() if key.startswith(prefix)
        }
        bias = nested.start(())
    fit = CrossFit(
        outputs=outputs,
        final=final,
        start=simple.label,
        chosen=best.label,
        chosen_by_fold=tuple(judged),
        evaluations=nested.evaluations,
        biases=torch.stack([nested.bias(chosen.simple, ()), of_decision]),
    )
    if not once:
        evolved = chosen.best >= nested.simple
        search = replace(plan.search, watch=None)
        overstated = optimism(
            problem,
            objective,
            k,
            simple.label,
            PULLS[1] if evolved else None,
            search,
            prior=plan.prior,
        )
        fit = replace(fit, overstated=overstated)
    return Found(fit, best.network, weights, bias, nested.spent)
