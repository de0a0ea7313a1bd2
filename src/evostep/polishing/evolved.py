"""Polishing in spaces of weights: from the settings to a network that was changed, or was not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from evostep.polishing.budget import Cost, evaluations_in, generations_for, parse_budget, timed
from evostep.polishing.decision import Moved
from evostep.polishing.judging import judge
from evostep.polishing.nested import Found, Plan, evolve_networks
from evostep.polishing.network import outputs_of
from evostep.polishing.problem import Problem
from evostep.polishing.procedure import count_sets
from evostep.polishing.result import IMPROVED, Polished
from evostep.polishing.search import center_on_plateau
from evostep.polishing.settings import GENERATIONS, Settings
from evostep.polishing.spaces import AUTO, spaces_of
from evostep.polishing.starts import subset
from evostep.polishing.store import Store, number_in
from evostep.polishing.weights import Network
from evostep.scoring.batches import Forward


def polish_weights(
    model: nn.Module,
    examples: Iterable[Any],
    forward: Forward | None,
    problem: Problem,
    layer: nn.Module | None,
    folds: Tensor,
    settings: Settings,
    prior: Tensor | None,
    store: Store,
) -> Polished:
    """Evolve the weights of a network on the metric, judge, and change it where that is confirmed.

    Args:
        model: the network.
        examples: as `evostep.polish` takes them.
        forward: as `evostep.polish` takes it.
        problem: its outputs for the examples, and after these for those of ``confirm=``.
        layer: that makes the outputs; None: none does.
        folds: (n,) of each example; -1: held out.
        settings: what is asked for.
        prior: class frequencies in training.
        store: of what is finished.
    """
    objective = settings.objective
    spaces = spaces_of(settings.space, model)
    searched, held = problem, None
    if not isinstance(settings.confirm, str):
        rows = folds >= 0
        searched, held = subset(problem, rows), (settings.confirm, subset(problem, ~rows))
    networks = {
        name: Network(
            model,
            examples,
            forward,
            space,
            searched,
            objective,
            settings.population,
            settings.seed,
            held,
        )
        for name, space in spaces.items()
    }
    sets = count_sets(settings.folds, once=settings.once)
    start = torch.zeros(problem.biases, dtype=torch.float64)
    settings = _planned(settings, networks, sets, folds >= 0, start, store)
    plan = Plan(
        settings.search if settings.watch is None else replace(settings.search, watch=None),
        settings.space == AUTO,
        settings.generations or GENERATIONS,
        prior,
        layer is not None,
        store,
        settings.watch,
    )
    found = evolve_networks(problem, objective, folds, networks, plan)
    judged = subset(problem, folds < 0) if settings.once else problem
    result = judge(judged, objective, found.fit, settings)
    result.sample_forwards = len(problem) + found.sample_forwards
    if result.verdict == IMPROVED and found.network is not None:
        _put_in(result, found, searched, layer, model, examples, forward)
    return result


def _planned(
    settings: Settings,
    networks: Mapping[str, Network],
    sets: int,
    rows: Tensor,
    start: Tensor,
    store: Store,
) -> Settings:
    """Return the settings with the generations of each evolution, and the budget as a number."""
    asked = parse_budget(settings.budget)
    if asked is None:
        return replace(settings, generations=GENERATIONS)
    costs = [network.cost for network in networks.values()]
    cost = Cost(sets * sum(c.once for c in costs), sets * sum(c.generation for c in costs))
    if isinstance(asked, float):
        seconds = asked

        def probe() -> int:
            once = generation = 0.0
            for network in networks.values():
                one = timed(lambda network=network: network.evolve(rows, start, 1))  # type: ignore[misc]
                three = timed(lambda network=network: network.evolve(rows, start, 3))  # type: ignore[misc]
                each = max(three - one, 1e-6) / 2
                looked = timed(lambda network=network: network.outputs(network.before))  # type: ignore[misc]
                generation += each
                once += max(one - each, 0.0) + looked * network.cost.once / network.examples
            return evaluations_in(seconds, cost, Cost(sets * once, sets * generation))

        asked = number_in(store, "budget", probe)
    return replace(settings, budget=int(asked), generations=generations_for(int(asked), cost))


def _put_in(
    result: Polished,
    found: Found,
    problem: Problem,
    layer: nn.Module | None,
    model: nn.Module,
    examples: Iterable[Any],
    forward: Forward | None,
) -> None:
    """Put the evolved weights and the start's biases in, if the network then decides so."""
    network = found.network
    assert network is not None, "the caller looked"
    plain = Moved(network.live, network.before, found.weights)
    plain.apply()
    try:
        raw = problem.of(outputs_of(model, examples, forward)[0])
    finally:
        plain.revert()
    wanted, bias = raw.decide(found.bias), found.bias
    if layer is not None:
        bias = center_on_plateau(raw, bias)
    moved = Moved(network.live, network.before, found.weights, layer, bias)
    moved.apply()
    own = problem.of(outputs_of(model, examples, forward)[0])
    differ = int((own.decide(torch.zeros(problem.biases)) != wanted).sum())
    result.sample_forwards += 2 * len(problem)
    if differ:
        moved.revert()
        result.notes += (
            f"nothing was changed: with the biases in the last layer the network would decide "
            f"{differ} examples otherwise",
        )
        return
    result.folded = moved
