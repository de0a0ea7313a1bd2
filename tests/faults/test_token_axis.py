"""Tokens and pixels: where the classes are, and whose outputs are about the next token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Evolution, Fitness, OpenAIES, PairedTest, RandomMutation

V = 7


def tagger() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, V))


def ids(tokens: int, n: int = 16) -> Tensor:
    return torch.randint(0, 30, (n, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("tokens", [12, 1])
@torch.no_grad()
def test_tokens(tokens: int) -> None:
    model, x = tagger(), ids(tokens)
    y = x % V
    right = float((model(x).argmax(-1) == y).double().mean())
    assert Fitness(model, [(x, y)])() == pytest.approx(right)
    loss = float(F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
    for given in (F.cross_entropy, nn.CrossEntropyLoss()):
        fitness = Fitness(model, [(x, y)], "neg-loss", loss=given)
        assert fitness() == pytest.approx(-loss, rel=1e-6)


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "neg-loss"])
def test_as_many_tokens_as_classes_are_ambiguous(metric: str) -> None:
    model, x = tagger(), ids(V)
    with pytest.raises(ValueError, match=r"\(16, 7, 7\).*pass class_dim=1 .*or class_dim=-1"):
        Fitness(model, [(x, x % V)], metric)()


@torch.no_grad()
def test_class_dim_tells() -> None:
    model, x = tagger(), ids(V)
    y = x % V
    for dim, outputs in ((-1, model(x)), (2, model(x)), (1, model(x).movedim(1, 2))):
        expected = float((outputs.argmax(-1) == y).double().mean())
        assert Fitness(model, [(x, y)], class_dim=dim)() == pytest.approx(expected)
        loss = float(F.cross_entropy(outputs.flatten(0, 1), y.flatten()))
        fitness = Fitness(model, [(x, y)], "neg-loss", class_dim=dim)
        assert fitness() == pytest.approx(-loss, rel=1e-6)


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class TinyForTokenClassification(nn.Module):
    def __init__(self, outputs: int = V) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(30, 16), nn.Linear(16, outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        return Output(self.head(self.embedding(input_ids)))


class TinyForCausalLM(TinyForTokenClassification):
    pass


class PeftModel(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.ModuleDict({"model": model})
        self.base_model.model = model

    def forward(self, **inputs: Any) -> Any:
        return self.base_model.model(**inputs)


@pytest.mark.parametrize("tokens", [V, 5])
@torch.no_grad()
def test_a_token_model_of_hugging_face_as_it_is(tokens: int) -> None:
    model, x = TinyForTokenClassification(), ids(tokens)
    y = (x % V).masked_fill(x < 6, -100)
    logits = model(x).logits
    expected = float((logits.argmax(-1) == y)[y != -100].double().mean())
    batch = {"input_ids": x, "labels": y}
    assert Fitness(model, [batch])() == pytest.approx(expected)
    loss = float(F.cross_entropy(logits.flatten(0, 1), y.flatten()))
    assert Fitness(model, [batch], "neg-loss")() == pytest.approx(-loss, rel=1e-6)


@pytest.mark.parametrize("wrap", [lambda m: m, PeftModel, torch.nn.DataParallel])
@pytest.mark.parametrize("tokens", [30, 9])
@torch.no_grad()
def test_a_causal_model_of_hugging_face_as_it_is(tokens: int, wrap: Any) -> None:
    model, x = TinyForCausalLM(30), ids(tokens)
    y = x.masked_fill(x < 4, -100)
    logits = model(x).logits[:, :-1].flatten(0, 1)
    labels = y[:, 1:].flatten()
    guess, counted = logits.argmax(-1), labels != -100
    batches = [{"input_ids": a, "labels": b} for a, b in zip(x.split(5), y.split(5), strict=True)]
    model = wrap(model)
    assert Fitness(model, batches)() == pytest.approx(
        sk.accuracy_score(labels[counted], guess[counted])
    )
    assert Fitness(model, batches, "neg-loss")() == pytest.approx(
        -float(F.cross_entropy(logits, labels)), rel=1e-6
    )


@torch.no_grad()
def test_under_a_forward_of_ones_own_nothing_is_shifted() -> None:
    model, x = TinyForCausalLM(30), ids(9)
    logits = model(x).logits
    fitness = Fitness(model, [x], forward=lambda m, b: (m(b).logits, b))
    assert fitness() == pytest.approx(float((logits.argmax(-1) == x).double().mean()))


@torch.no_grad()
def test_metrics_of_ones_own_see_outputs_as_they_are() -> None:
    model, x = TinyForCausalLM(30), ids(9)
    seen: list[tuple[int, ...]] = []
    metric = lambda o, t: seen.append((*o.shape, *t.shape)) or 0.5  # noqa: E731
    Fitness(model, [{"input_ids": x, "labels": x}], metric)()
    assert seen == [(16, 9, 30, 16, 9)]


@pytest.mark.parametrize("engine", ["vmap", "racing", "prefix", "lowrank"])
@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "neg-loss"])
def test_every_engine_reads_them_alike(engine: str, metric: str) -> None:
    model, x = TinyForCausalLM(30), ids(9)
    from evostep import LowRank

    noise: Any = LowRank(1) if engine == "lowrank" else "normal"
    y = x.masked_fill(x < 4, -100)
    fitness = Fitness(model, [{"input_ids": x, "labels": y}], metric)
    strategy: Any = OpenAIES(0.1, lr=1e-12, population=4, noise=noise)
    if engine == "racing":
        strategy = RandomMutation(1e-7, population=4)
    scores = {}
    for name in ("inplace", engine):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # racing does not race examples that weigh otherwise
            scores[name] = Evolution(model, strategy, engine=name).evolve(fitness)[0].scores
    assert scores[engine] == pytest.approx(scores["inplace"], rel=1e-4)


def test_a_paired_test_of_tokens() -> None:
    model, x = tagger(), ids(12, n=200)
    y = x % V
    y[:, 6:].masked_fill_(x[:, 6:] > 20, -100)
    fitness = Fitness(model, [(x, y)])
    parent = fitness.score(fitness.examples())
    with torch.no_grad():
        for token in range(30):
            model[0].weight[token] = 0
            model[0].weight[token, token % V] = 9
        model[1].weight.zero_()[:, :V] = torch.eye(V)
    candidate = fitness.score(fitness.examples())
    assert candidate.value == pytest.approx(1.0)
    assert float(candidate.per_example.mean()) == candidate.value  # type: ignore[union-attr]
    assert PairedTest(kind="t").p_value(parent, candidate) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "tokens"])
@torch.no_grad()
def test_models_of_hugging_face(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 30, "n_positions": 16}
    config = transformers.GPT2Config(**sizes, num_labels=V)
    causal = kind == "causal"
    named = "GPT2LMHeadModel" if causal else "GPT2ForTokenClassification"
    model = getattr(transformers, named)(config).eval()
    x = ids(V)
    y = (x if causal else x % V).masked_fill(x < 4, -100)
    found = model(input_ids=x, labels=y)
    batch = {"input_ids": x, "labels": y}
    assert Fitness(model, [batch], "neg-loss")() == pytest.approx(-float(found.loss), rel=1e-5)
    logits, labels = (found.logits[:, :-1], y[:, 1:]) if causal else (found.logits, y)
    counted = labels != -100
    expected = float((logits.argmax(-1) == labels)[counted].double().mean())
    assert Fitness(model, [batch])() == pytest.approx(expected)
