"""What polishing found: values, contrasts, verdict, and the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from evostep.polishing.bootstrap import Interval
from evostep.polishing.decision import Decision, Folded, Moved
from evostep.scoring.metrics import METRICS

IMPROVED = "improved"
BY_START = "improved by the start"
NO_GAIN = "no confirmed gain"
_AT_MOST = 100  # times as many examples
_SHOWN = 3  # metrics, and classes, that fell

_PLAIN = (
    *("verdict", "metric", "higher_is_better", "n", "groups", "start", "prior", "chosen"),
    *("agreement", "optimism", "evaluations", "sample_forwards", "needed"),
)


@dataclass
class Polished:
    """The result of `evostep.polish`.

    Values, contrasts and tables are of decisions that have not seen the examples that they are
    judged on. They belong to the procedure on (K - 1) / K of the examples; the decision itself was
    fitted on all of them, and `agreement` tells how far both agree.

    Attributes:
        verdict: ``"improved"``, ``"improved by the start"`` or ``"no confirmed gain"``.
        metric: what was maximised.
        higher_is_better: its direction.
        fraction: whether it is told in percent.
        n: examples.
        groups: groups of examples that are drawn together; None where each stands alone.
        values: the metric of the ``"checkpoint"``, of the ``"start"`` and ``"polished"``.
        gain: polished - checkpoint, in the metric's good direction.
        gain_of_start: start - checkpoint.
        gain_over_start: polished - start.
        start: the best simple start, by name.
        prior: where its class frequencies are from.
        chosen: what was chosen on all examples.
        chosen_by_fold: what was chosen for each judging fold.
        agreement: share of the examples that the final decision decides as the folds' did.
        optimism: what was taken off the values of start and polished, because pooled folds flatter
            them (`evostep.polishing.optimism`).
        decisions: (3, n), or (3, n, L): of checkpoint, start and procedure about each example, by
            what has not seen it.
        metrics: every metric of decisions and the calibration error, (checkpoint, start, polished),
            pooled over folds and, unlike `values`, not corrected for optimism.
        classes: recall of every class (or label), likewise.
        decision: what holds by the verdict; zero where no gain is confirmed.
        proposed: (C,) biases that the procedure finds on all examples, confirmed or not, and the
            logarithm of the scale where there is one.
        evaluations: how many decisions were scored.
        sample_forwards: forwards through the network, an example at a time; but for the one of a
            batch that tells which layer makes the outputs.
        settings: what it was asked for.
        notes: what the reader should know besides, a sentence each.
        class_names: of classes (labels), where they are known: `fell` tells these.
        folded: how it stands in the network, which `apply` and `revert` change; None without one.

    Example:
        >>> import evostep, torch
        >>> labels = torch.arange(400) % 2
        >>> outputs = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> outputs[labels == 1, 1] += 2.0
        >>> outputs[:, 0] += 3.0  # a network that prefers class 0
        >>> result = evostep.polish(None, (outputs, labels), "balanced-accuracy")
        >>> result.gain.low > 0, result.values["polished"] > result.values["checkpoint"]
        (True, True)
    """

    verdict: str
    metric: str
    higher_is_better: bool
    fraction: bool
    n: int
    groups: int | None
    values: Mapping[str, float]
    gain: Interval
    gain_of_start: Interval
    gain_over_start: Interval
    start: str
    prior: str
    chosen: str
    chosen_by_fold: tuple[str, ...]
    agreement: float
    optimism: tuple[float, ...]
    metrics: Mapping[str, tuple[float, float, float]]
    classes: tuple[tuple[float, float, float], ...]
    decision: Decision
    proposed: Tensor
    evaluations: int
    sample_forwards: int
    settings: Mapping[str, Any]
    decisions: Tensor = field(repr=False)
    notes: tuple[str, ...] = ()
    folded: Folded | Moved | None = field(default=None, repr=False)
    class_names: tuple[str, ...] = ()

    @property
    def applied(self) -> bool:
        """Whether the decision is in the network."""
        return self.folded is not None and self.folded.applied

    @property
    def evolved(self) -> bool:
        """Whether it changes weights of the network, beyond the bias of its last layer."""
        return isinstance(self.folded, Moved)

    def apply(self) -> None:
        """Put the decision into the network's last layer, or the evolved weights into the network.

        Raises:
            ValueError: there is no network, or no layer to put it in.
        """
        if self.folded is None:
            raise ValueError("the decision is not in a network: use result.decision")
        self.folded.apply()

    def revert(self) -> None:
        """Take it out of the network again, bit for bit."""
        if self.folded is not None:
            self.folded.revert()

    @property
    def needed(self) -> int | None:
        """How many examples would confirm a gain of this size; None where there is none to confirm.

        The interval shrinks by the square root of the number of examples. More than a hundred
        times as many are not told: a gain so small is as good as none.
        """
        gain = self.gain if not self.gain.confirmed else self.gain_over_start
        if gain.confirmed or gain.value <= 0:
            return None
        times = ((gain.value - gain.low) / gain.value) ** 2
        # an interval that ends at zero is confirmed by none of its own size
        return max(self.n + 1, math.ceil(self.n * times)) if times <= _AT_MOST else None

    @property
    def fell(self) -> tuple[tuple[str, str, str], ...]:
        """What got worse by what was applied: (name, before, after) of metrics, then of classes.

        At most three of each, the worst first; all are in `metrics` and `classes`. Where nothing
        was applied, nothing fell.
        """
        if self.verdict == NO_GAIN:
            return ()
        after = 1 if self.verdict == BY_START else 2
        names = self.class_names or [f"class {c}" for c in range(len(self.classes))]
        recalls = {f"recall of {names[c]}": row for c, row in enumerate(self.classes)}
        found: list[tuple[str, str, str]] = []
        for rows in (self.metrics, recalls):
            worse = []
            for name, row in rows.items():
                known = METRICS.get(name, METRICS["accuracy"])  # a recall is one
                lost = (row[0] - row[after]) * (1 if known.higher_is_better else -1)
                texts = tuple(f"{100 * x:.1f}%" if known.fraction else f"{x:.3f}" for x in row)
                # sums in another order differ, and no reader sees it
                if lost > 0 and name != self.metric and texts[0] != texts[after]:
                    worse.append((lost, name, texts))
            worst = sorted(worse, reverse=True)[:_SHOWN]
            found += [(name, texts[0], texts[after]) for _, name, texts in worst]
        return tuple(found)

    def __str__(self) -> str:
        values = self.values
        ended = values["start"] if self.verdict == BY_START else values["polished"]
        lead = {IMPROVED: "improved", BY_START: f"improved by {self.start}", NO_GAIN: NO_GAIN}
        gain = self.gain_of_start if self.verdict == BY_START else self.gain
        text = (
            f"{lead[self.verdict]}: {self.metric} {self._number(values['checkpoint'])} -> "
            f"{self._number(ended)} ({self._change(gain, ', 95% CI ')})"
        )
        over = self._change(self.gain_over_start, " (") + ")"
        if self.verdict == BY_START:
            text += f"; evolution added nothing confirmed: {over}"
        elif self.start != "checkpoint":
            text += f"; of these {over} over {self.start}"
        if fell := self.fell:
            told = ", ".join(f"{name} {before} -> {after}" for name, before, after in fell)
            text += f"; fell (folds pooled, not corrected for optimism): {told}"
        if self.needed is not None:
            what = "this gain" if not self.gain.confirmed else "evolution's part"
            text += f"; about {self.needed:,} examples would be needed to confirm {what}"
        return "; ".join([text, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """Return the result as plain values, for JSON."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        contrasts = {
            "polished - checkpoint": self.gain,
            "polished - start": self.gain_over_start,
            "start - checkpoint": self.gain_of_start,
        }
        return {
            **plain,
            "values": dict(self.values),
            "contrasts": {name: vars(of) for name, of in contrasts.items()},
            "chosen_by_fold": list(self.chosen_by_fold),
            "metrics": {name: list(row) for name, row in self.metrics.items()},
            "classes": [list(row) for row in self.classes],
            "decision": self.decision.as_dict(),
            "proposed": self.proposed.tolist(),
            "applied": self.applied,
            "evolved": self.evolved,
            "settings": dict(self.settings),
            "notes": list(self.notes),
        }

    def _number(self, value: float) -> str:
        return f"{100 * value:.1f}%" if self.fraction else f"{value:.4g}"

    def _change(self, gain: Interval, between: str) -> str:
        def one(value: float) -> str:
            return change_text(value, self.fraction)

        return f"{one(gain.value)}{between}{one(gain.low)} to {one(gain.high)}"


def change_text(value: float, fraction: bool) -> str:
    """Return a change as text, in points where it is of a share, and never as 0 where it is none.

    Example:
        >>> change_text(0.032, True), change_text(0.0002, True), change_text(-0.0, False)
        ('+3.2', '+0.02', '+0')
    """
    value = 100 * value + 0.0 if fraction else value + 0.0  # minus zero is zero
    if not fraction:
        return f"{value:+.3g}"
    return f"{value:+.1g}" if 1e-9 < abs(value) < 0.05 else f"{value:+.1f}"
