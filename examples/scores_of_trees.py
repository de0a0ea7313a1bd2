"""Probabilities of gradient-boosted trees for examples that they have not seen, as a CSV file.

    python examples/scores_of_trees.py --out examples/scores.csv

Real digits, cut so that the rarest class has a sixth of the examples of the most frequent one; half
of them train the trees, the others are scored. `evostep polish --scores` reads the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    pixels, labels = load_digits(return_X_y=True)
    kept = np.random.default_rng(0).random(len(labels)) < 6.0 ** (-labels / 9)
    train_x, x, train_y, y = train_test_split(
        pixels[kept], labels[kept], test_size=0.5, stratify=labels[kept], random_state=0
    )
    trees = HistGradientBoostingClassifier(max_iter=20, random_state=0).fit(train_x, train_y)
    scores = pd.DataFrame(trees.predict_proba(x), columns=[f"score_{c}" for c in trees.classes_])
    scores.assign(label=y).to_csv(args.out, index=False, float_format="%.5f")


if __name__ == "__main__":
    main()
