"""Evolution in the Trainer of Hugging Face, on the number that metric_for_best_model names.

python examples/with_transformers.py
"""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from digits import parts, tell
from sklearn.metrics import f1_score
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EvalPrediction,
    Trainer,
    TrainingArguments,
)

import evostep
from evostep.integrations.transformers import Evolve, evolve_optimizer, metric_fitness


def as_tokens(part: TensorDataset) -> list[dict[str, Any]]:
    """Return examples as the Trainer takes them: 16 tokens, each the ink of 2 x 2 pixels."""
    pixels, labels = part.tensors
    ink = F.avg_pool2d(pixels.reshape(-1, 1, 8, 8), 2).flatten(1)
    tokens = (16 * ink).round().long()
    return [{"input_ids": x, "labels": y} for x, y in zip(tokens, labels, strict=True)]


def network() -> BertForSequenceClassification:
    """Return a BERT of 20,000 weights."""
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    settings = {"vocab_size": 17, "hidden_size": 32, "max_position_embeddings": 16, **layers}
    return BertForSequenceClassification(BertConfig(num_labels=10, **settings))


def compute_metrics(found: EvalPrediction) -> dict[str, float]:
    """Return the macro-averaged F1."""
    decided = found.predictions.argmax(1)
    return {"macro_f1": f1_score(found.label_ids, decided, average="macro", zero_division=0)}


def main() -> None:
    """Train, evolve after each epoch, evaluate, save; load the best."""
    train, for_evolution, valid = (as_tokens(part) for part in parts())
    args = TrainingArguments(
        tempfile.mkdtemp(),
        num_train_epochs=3,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=640,
        learning_rate=0.005,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="macro_f1",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        network(),
        args,
        train_dataset=train,
        eval_dataset=valid,
        compute_metrics=compute_metrics,
    )
    evolve_optimizer(trainer, evostep.OpenAIES(sigma=0.05, lr=0.03, population=8))
    trainer.add_callback(Evolve(lambda _: metric_fitness(trainer, for_evolution), generations=4))
    trainer.train()
    best, now = trainer.state.best_metric, trainer.evaluate()["eval_macro_f1"]
    print(f"best macro-F1 {best:.4f} was told, the model that was loaded has {now:.4f}")
    tell(trainer.optimizer.optimizer.history, "macro-F1")


if __name__ == "__main__":
    main()
