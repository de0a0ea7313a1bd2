"""Polishing in spaces of weights: from the settings to a network that was changed, or was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from evostep.polishing.budget import Cost, evaluations_in, generations_for, parse_budget, timed
from evostep.polishing.decision import Moved, make_decision
from evostep.polishing.judging import judge
from evostep.polishing.nested import Found, Plan, evolve_networks
from evostep.polishing.network import Subject, outputs_now, takes_decisions
from evostep.polishing.problem import Problem
from evostep.polishing.procedure import count_sets
from evostep.polishing.reach import with_scale
from evostep.polishing.result import IMPROVED, NO_GAIN, Polished
from evostep.polishing.search import center_on_plateau
from evostep.polishing.settings import GENERATIONS, Settings
from evostep.polishing.spaces import AUTO, spaces_of
from evostep.polishing.starts import check_prior, subset
from evostep.polishing.store import Store, number_in
from evostep.polishing.weights import Network


def polish_weights(
    subject: Subject, problem: Problem, folds: Tensor, settings: Settings, store: Store
) -> Polished:
    """Evolve the weights of a network on the metric, judge, and change it where that is confirmed.

    Args:
        subject: the network.
        problem: its outputs for the examples, and after these for those that are held out beside.
        folds: (n,) of each example; -1: held out.
        settings: what is asked for.
        store: of what is finished.
    """
    objective = settings.objective
    problem = with_scale(problem, objective)
    searched = problem if subject.held is None else subset(problem, folds >= 0)
    if not takes_decisions(subject, searched):
        subject = replace(subject, given=replace(subject.given, layer=None))
    examples = [(subject.examples, subject.given, searched)]
    if subject.held is not None:
        examples.append((*subject.held, subset(problem, folds < 0)))
    networks = {
        name: Network(
            subject.model,
            examples,
            subject.forward,
            space,
            objective,
            settings.population,
            settings.seed,
        )
        for name, space in spaces_of(settings.space, subject.model).items()
    }
    sets = count_sets(settings.folds, once=settings.once)
    settings = _planned(settings, networks, sets, folds >= 0, problem.unchanged, store)
    plan = Plan(
        replace(settings.search, watch=None),
        settings.space == AUTO,
        settings.generations or GENERATIONS,
        check_prior(settings.prior, problem),
        subject.given.layer is not None,
        store,
        settings.watch,
    )
    found = evolve_networks(problem, objective, folds, networks, plan)
    judged = subset(problem, folds < 0) if settings.once else problem
    result = judge(judged, objective, found.fit, settings)
    result.sample_forwards = found.sample_forwards
    if result.verdict == IMPROVED and found.network is not None:
        _put_in(result, found, searched, subject, exactly=objective.of_outputs)
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
    result: Polished, found: Found, problem: Problem, subject: Subject, *, exactly: bool
) -> None:
    """Put the evolved weights and the start's decision in, if the network then decides so."""
    network, layer = found.network, subject.given.layer
    assert network is not None, "the caller looked"
    raw = problem.of(network.outputs(found.weights))
    decision = make_decision(problem, found.start, result.metric)
    wanted = problem.decided(decision.adjusted(raw.outputs))
    if not exactly and layer is not None:
        decision = replace(decision, bias=center_on_plateau(raw, decision.bias))
    moved = Moved(network.live, network.before, found.weights, layer, decision)
    subject.changes.append(moved)
    moved.apply()
    again = problem.of(outputs_now(subject)).outputs
    differ = int((problem.decided(again) != wanted).sum())
    result.sample_forwards += network.examples
    if differ:
        moved.revert()
        result.verdict = NO_GAIN  # there is nothing else that it could be of
        result.notes += (
            "nothing was changed: with the start in its last layer the network would decide "
            f"{differ} examples otherwise",
        )
        return
    result.folded = moved
