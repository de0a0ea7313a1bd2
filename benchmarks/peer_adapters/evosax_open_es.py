"""evosax: `Open_ES`, ask, eval and tell compiled as one function, as its examples do.

https://github.com/RobertTLange/evosax/blob/main/examples/03_vision.ipynb
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from evosax.algorithms import Open_ES
from torch import nn

from peer_adapters.task import Task

PACKAGES = ("evosax", "jax", "jaxlib")
CALLED = "jax.jit of Open_ES.ask, jax.vmap of the network, Open_ES.tell; block_until_ready"
NOTES = (
    "antithetic, centered ranks, optax.sgd; compiled and warm, compile time not counted, but the "
    "compiler's memory is"
)
SCORES_PARENT = False


def prepare(task: Task) -> Callable[[], None]:
    (batch,) = task.batches
    inputs, targets = (jnp.asarray(tensor.numpy()) for tensor in batch)
    center = [
        (jnp.asarray(layer.weight.detach().numpy().T), jnp.asarray(layer.bias.detach().numpy()))
        for layer in task.model
        if isinstance(layer, nn.Linear)
    ]

    def loss(weights: list[tuple[jax.Array, jax.Array]]) -> jax.Array:
        hidden = inputs
        for weight, bias in weights[:-1]:
            hidden = jax.nn.relu(hidden @ weight + bias)
        weight, bias = weights[-1]
        outputs = hidden @ weight + bias
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

    strategy = Open_ES(
        population_size=task.population,
        solution=center,
        use_antithetic_sampling=True,
        optimizer=optax.sgd(task.lr),
        std_schedule=optax.constant_schedule(task.sigma),
    )
    params = strategy.default_params
    key = jax.random.key(0)
    state = strategy.init(key, center, params)

    @jax.jit
    def step(key, state):
        key, asking, telling = jax.random.split(key, 3)
        population, state = strategy.ask(asking, state, params)
        fitness = jax.vmap(loss)(population)  # evosax minimises
        state, _ = strategy.tell(telling, population, fitness, state, params)
        return key, state

    def generation() -> None:
        nonlocal key, state
        key, state = jax.block_until_ready(step(key, state))

    return generation
