"""An engine over an engine: the ranks of a process group share the members of each generation.

A rank scores a run of successive members, as one process would, and tells the others their values.
Noise is a pure function of seed and member, so every rank makes it again and moves its own center:
no weights are sent. Everybody scores the parent, which shows in each generation that all ranks hold
the same weights and examples; and one member of each phase is scored by two ranks.

What comes out has the bits that one process gives where members are scored one by one: in place and
with a cached prefix. `Vmap` and `SharedProduct` score them together, and how many they are, and
where they lie in memory, decides on the last bits: there a share keeps the borders of chunks where
it can, scores agree within `evostep.engines.auto.TOLERANCE`, and all ranks have the same bits.
Members do not race: who is dropped would depend on who is scored beside whom.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import platform
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, NoReturn

import torch
from torch import Tensor

from evostep._version import __version__
from evostep.checksums import checksum
from evostep.engines import ENGINES
from evostep.engines.auto import Auto, Choice, Findings, agree
from evostep.engines.base import Engine, Session
from evostep.engines.inplace import InPlace
from evostep.engines.prefix import Prefix
from evostep.engines.racing import Racing
from evostep.errors import InputError, reason, warn
from evostep.genome.point import Coordinates
from evostep.ranks import Ranks, group_size
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace

BYTES = 64  # that a rank sends in a generation for each member of its share, at most
_MEETING, _SCORES, _DECISION, _END = range(1, 5)  # kinds of messages
_MEETING_FRAME = 1024  # bytes
DIGESTS = ("the weights", "the state of evolution")  # claims that are checksums
_BUFFERS = "buffers"  # the one claim in which ranks may differ: they are made equal
_WHAT = "evolve"


@dataclass(frozen=True)
class Distributed(Engine):
    """Shares the members of each generation among the ranks of a process group.

    It is chosen wherever a process group of several ranks is initialised, whatever engine is asked
    for, which then scores each rank's share. All ranks call `evolve` with the same arguments.

    Args:
        over: scores a rank's share: an engine, its name, or ``"auto"``.
        group: of `torch.distributed`; None: the default one. Outside a group, or in one of a single
            rank, `over` scores as ever.
        timeout: seconds for which ranks wait for each other, longer than a generation may take;
            None: ``EVOSTEP_TIMEOUT`` of the environment, or 1,800.
        shard: False switches it off: each rank scores all members, as if it were alone.

    Raises:
        ValueError: an unknown engine, a timeout that is not above 0.

    Example:
        >>> import torch
        >>> from evostep import Evolution, OpenAIES
        >>> w = torch.ones(3)
        >>> engine = Distributed("inplace", timeout=60)
        >>> search = Evolution({"w": w}, OpenAIES(0.1, population=4), engine=engine)
        >>> len(search.evolve(lambda: -float(w.square().sum()))[0].scores)
        4
    """

    name: ClassVar[str] = "distributed"
    over: str | Engine = "auto"
    group: Any = None
    timeout: float | None = None
    shard: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.over, Distributed):
            raise ValueError(f"over must be an engine for one rank, got {self.over!r}")
        Auto.of(self.over)
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"timeout must be seconds above 0, got {self.timeout}")

    @classmethod
    def of(cls, wanted: str | Engine) -> Distributed:
        """Return the choice that a user asks for, over ranks where there are some.

        Raises:
            ValueError: an unknown name.
        """
        if isinstance(wanted, Distributed):
            return wanted
        return cls() if wanted == cls.name else cls(wanted)

    @property
    def alone(self) -> Auto | None:
        """What scores where there is nobody to share with; None: there is."""
        shares = self.shard and group_size(self.group) > 1
        return None if shares else Auto.of(self.over)

    def meet(
        self,
        claims: Callable[[], Mapping[str, object]],
        buffers: Callable[[], Iterable[Tensor]],
        warned: set[str],
    ) -> None:
        """Refuse ranks that would not do the same; make buffers those of the first.

        Raises:
            ValueError: ranks differ in a claim, or one does not come in time.
        """
        if self.alone is not None:
            return
        ranks = Ranks.of(self.group, self.timeout)
        tensors = list(buffers())
        own = {**_machine(), **claims(), _BUFFERS: checksum(tensors)}
        # an object's address in memory is no difference
        texts = {name: re.sub(r" at 0x[0-9a-f]+", "", str(own[name])) for name in own}
        ranks.frame = _MEETING_FRAME
        told = ranks.gather(_MEETING, json.dumps(texts).encode(), _WHAT)
        all_claims = [json.loads(text) for text in told]
        _compare_claims(all_claims, ranks)
        if any(other[_BUFFERS] != all_claims[0][_BUFFERS] for other in all_claims):
            ranks.broadcast(tensors)
        chosen = Auto.of(self.over)
        if chosen.asked_for and isinstance(chosen.engines[0], Racing) and "racing" not in warned:
            warned.add("racing")
            warn(
                "engine 'racing' does not go over ranks, as who is dropped would depend on them: "
                "members are scored in place"
            )

    def open(
        self, workspace: Workspace, evaluator: Evaluator, findings: Findings | None = None
    ) -> Session[Any]:
        """Start to work for one phase, with what was found out in earlier ones."""
        found = findings or Findings()
        alone = self.alone
        if alone is not None:
            return alone.open(workspace, evaluator, found)
        over = Auto.of(self.over)
        engines = tuple(one for one in over.engines if not isinstance(one, Racing))
        if not engines:
            engines = (InPlace(),)
        inner = replace(over, engines=engines).open(workspace, evaluator, found)
        return Shares(self, inner, found, Ranks.of(self.group, self.timeout))


_HEAD = struct.Struct("<dqd?HH")
_FRAMED = 5 + _HEAD.size  # bytes of a message beside the values


def frame_of(members: int, ranks: int) -> int:
    """Return how many bytes a rank sends of a generation in which nothing fails.

    Example:
        >>> frame_of(32, 4) / 8, frame_of(1, 4), frame_of(0, 4) <= BYTES
        (12.25, 42, True)
    """
    return _FRAMED + 8 * -(-members // ranks)


def shares_of(members: int, ranks: int, units: Sequence[int]) -> list[range]:
    """Return which members each rank scores: runs of at most ceil(members / ranks).

    Args:
        members: how many.
        ranks: how many.
        units: how many members had better stay together, the best first; the first with which no
            share is longer is taken, and otherwise they are cut anywhere.

    Example:
        >>> shares_of(12, 3, [2])
        [range(0, 4), range(4, 8), range(8, 12)]
        >>> shares_of(5, 2, [2]), shares_of(1, 2, [2])
        ([range(0, 3), range(3, 5)], [range(0, 1), range(1, 1)])
    """
    most = -(-members // ranks)
    for unit in (*units, 1):
        each, more = divmod(-(-members // unit), ranks)
        if unit * (each + (more > 0)) <= most:
            break
    ends = [min(members, unit * (r * each + min(r, more))) for r in range(ranks + 1)]
    return [range(*pair) for pair in itertools.pairwise(ends)]


class _Message(NamedTuple):
    """What a rank says of its share in a generation.

    Attributes:
        parent: the score of the parent.
        spent: sample-forwards of the share.
        checked: the score of a member of another's share; NaN where it failed.
        checks: whether it has scored one.
        given_up: the engines that cannot score, one bit each.
        values: of its share; NaN where a member failed.
        error: what the first failure of its share failed by.
    """

    parent: float
    spent: int
    checked: float
    checks: bool
    given_up: int
    values: tuple[float, ...]
    error: str

    def packed(self) -> bytes:
        """Return it as bytes."""
        count = len(self.values)
        head = _HEAD.pack(*self[:5], count)
        return head + struct.pack(f"<{count}d", *self.values) + self.error.encode()

    @classmethod
    def read(cls, content: bytes) -> _Message:
        """Read what `packed` returned."""
        parent, spent, checked, checks, given_up, count = _HEAD.unpack_from(content)
        values = struct.unpack_from(f"<{count}d", content, _HEAD.size)
        error = content[_HEAD.size + 8 * count :].decode("utf-8", "replace")
        return cls(parent, spent, checked, checks, given_up, values, error)


class _Told(Scores):
    """A member's score as another rank, or this one, has told it; it may stand in the model now.

    What a rule wants to know of its examples is scored again by every rank, when it is asked for.
    """

    def __init__(self, value: float, score: Callable[[], Tensor | None]) -> None:
        super().__init__(value)
        self._score = score

    @property
    def per_example(self) -> Tensor | None:
        """As of the weights as they stand."""
        return self._score()

    @per_example.setter
    def per_example(self, _: Tensor | None) -> None:
        pass  # nothing is kept


class Shares(Session[Distributed]):
    """One rank's part in a phase.

    Attributes:
        scored: how many scorings of members this rank has done in the last generation, those of
            what an engine could not score left out.
        sent: how many bytes it has sent of that generation.
    """

    def __init__(
        self, engine: Distributed, inner: Choice, findings: Findings, ranks: Ranks
    ) -> None:
        super().__init__(engine, inner.workspace, inner.evaluator)
        self.inner, self.ranks = inner, ranks
        self.scored = self.sent = 0
        self._findings = findings
        self._plain = InPlace().open(self.workspace, self.evaluator)
        self._checked = False  # whether a member was scored twice in this phase
        self._over = False  # whether nobody waits for this rank any more
        live = self.workspace.live.values()
        # what a graphics card computes may hang on what else it does
        self._exact = all(tensor.device.type == "cpu" for tensor in live)

    def expect(self, size: int) -> None:
        """Take note of how many members a generation has: it sets the size of messages."""
        self.ranks.frame = frame_of(size, self.ranks.size)

    def parent(
        self,
        round: Round,
        members: Sequence[Coordinates],
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Scores:
        """Choose who scores members, and score their parent, as every rank does."""
        return self.inner.parent(round, members, keep_outputs=keep_outputs, watch=watch)

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Score this rank's share, and learn the others' values.

        Raises:
            ValueError: a rank has gone, or scores otherwise than another.
        """
        ranks, evaluator, parent = self.ranks, self.evaluator, round.parent
        assert parent is not None, "the parent is scored first"
        units = [getattr(self.inner.chosen, "chunk", None) or 2, 2]  # 2: antithetic pairs
        shares = shares_of(len(members), ranks.size, units)
        share, most = shares[ranks.rank], -(-len(members) // ranks.size)
        own = [members[i] for i in share]
        spent, sent, verified = evaluator.spent, ranks.sent, set(self._findings.verified)
        scores = self._score_own(round, own)
        self.scored = len(own) + len(self._findings.verified - verified)
        owners = [r for r in range(ranks.size) if shares[r]]
        owner = owners[round.generation % len(owners)]
        twice = shares[owner][round.generation % len(shares[owner])]
        checks = (owner + 1) % ranks.size == ranks.rank and self.scored == len(own)
        checked = None if self._checked or not checks else self._check(round, members[twice])
        while True:
            message = _Message(
                parent.value,
                evaluator.spent - spent,
                math.nan if checked is None else checked,
                checked is not None,
                sum(1 << i for i, name in enumerate(ENGINES) if name in self._findings.given_up),
                tuple(one.value for one in scores),
                next((one.error for one in scores if one.error), ""),
            )
            told = [_Message.read(text) for text in self._gather(_SCORES, message.packed())]
            self.sent, sent = ranks.sent - sent, ranks.sent
            given_up = functools.reduce(operator.or_, (one.given_up for one in told))
            if all(one.given_up == given_up for one in told):
                break
            if message.given_up != given_up:  # one process would have scored all in place
                names = {name for i, name in enumerate(ENGINES) if given_up >> i & 1}
                self.inner.drop(names)
                evaluator.spent = spent
                scores = self._score_own(round, own)
        assert self.scored <= most + 1, "a share, and one that is checked"
        assert self.sent <= BYTES * max(1, most) or any(one.error for one in told)
        self._compare(told, shares, twice)
        parent.read_as(told[0].parent)
        evaluator.spent = spent + sum(one.spent for one in told)
        if self.inner.chosen.name != InPlace.name:
            self._findings.verified.add(self.inner.chosen.name)  # by who had a share
        return self._collect(round, told)

    def all_agree(self, decision: bool) -> bool:
        """Return whether all ranks have decided so: rounding must not part them."""
        return all(map(any, self._gather(_DECISION, bytes([decision]))))

    def done(self) -> None:
        """Compare where all ranks have come to.

        Raises:
            ValueError: they hold other weights or buffers than the first.
        """
        state = self.evaluator.state
        buffers = state.values() if state is not None and self._exact else []
        sums = self._gather(_END, checksum([dict(self.workspace.live), buffers])[:32].encode())
        self._over = True
        other = next((r for r in range(self.ranks.size) if sums[r] != sums[0]), None)
        if other is not None:
            raise InputError(
                f"{self.ranks.name(other)} has come to other weights than {self.ranks.name(0)}: "
                "what the fitness does to the model has to be the same on every rank"
            )

    def leave(self) -> None:
        """Tell the others why they wait for this rank in vain."""
        if not self._over:
            self._over = True
            error = sys.exception()
            self.ranks.leave(reason(error) if error is not None else "stopped", _WHAT)

    def close(self) -> None:
        """Drop what engines cached."""
        self.inner.close()

    def _gather(self, kind: int, content: bytes) -> list[bytes]:
        try:
            return self.ranks.gather(kind, content, _WHAT)
        except InputError:
            self._over = True
            raise

    def _score_own(self, round: Round, own: Sequence[Coordinates]) -> list[Scores]:
        return self.inner.score(round, own) if own else []

    def _check(self, round: Round, member: Coordinates) -> float:
        """Score a member of another rank's share, too."""
        self.scored += 1
        with self.evaluator.uncounted():
            (found,) = self._plain.score(round, [member])
        return found.value

    def _compare(self, told: Sequence[_Message], shares: Sequence[range], twice: int) -> None:
        """Refuse scores that are others on another rank.

        Raises:
            ValueError: those of the parent are, or of the member that two have scored.
        """
        name = self.ranks.name
        for r, one in enumerate(told):
            if not self._same(told[0].parent, one.parent, exact=self._exact):
                self._refuse(
                    "the weights as they stand", told[0].parent, one.parent, name(0), name(r)
                )
        owner = next(r for r, share in enumerate(shares) if twice in share)
        value = told[owner].values[shares[owner].index(twice)]
        plain = self.inner.chosen.name in (InPlace.name, Prefix.name)
        for r, one in enumerate(told):
            if one.checks:
                self._checked = True
                if not self._same(value, one.checked, exact=self._exact and plain):
                    self._refuse(f"member {twice}", value, one.checked, name(owner), name(r))

    def _refuse(self, what: str, a: float, b: float, here: str, there: str) -> NoReturn:
        self._over = True
        raise InputError(
            f"the fitness gives {what} {a:.9g} on {here} and {b:.9g} on {there}: every rank has to "
            "score the same examples (no DistributedSampler) the same way"
        )

    def _same(self, a: float, b: float, *, exact: bool) -> bool:
        if math.isnan(a) or math.isnan(b) or exact:
            return a == b or (math.isnan(a) and math.isnan(b))
        return agree(Scores(a), Scores(b))

    def _collect(self, round: Round, told: Sequence[_Message]) -> list[Scores]:
        """Return the scores of all members, in their order."""
        evaluator = self.evaluator

        def per_example() -> Tensor | None:
            with evaluator.uncounted():
                return evaluator.attempt(round, calibrate=False).per_example

        scores: list[Scores] = []
        for r, one in enumerate(told):
            error = one.error
            for value in one.values:
                if math.isnan(value):
                    scores.append(Scores.failure(error))
                    error = f"it failed on {self.ranks.name(r)}"
                else:
                    scores.append(_Told(value, per_example))
        return scores


def _machine() -> dict[str, object]:
    """Return what the bits of a forward hang on."""
    return {
        "evostep's version": __version__,
        "torch's version": torch.__version__,
        "Python's version": ".".join(platform.python_version_tuple()[:2]),
        "the processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "the number of threads": torch.get_num_threads(),
    }


def _compare_claims(claims: Sequence[Mapping[str, str]], ranks: Ranks) -> None:
    """Refuse the first claim in which a rank differs from the first.

    Raises:
        ValueError: one does.
    """
    for r, other in enumerate(claims):
        for name, own in claims[0].items():
            if name != _BUFFERS and other.get(name) != own:
                a, b = ranks.name(0), ranks.name(r)
                values = f" ({_short(own)} on {a}, {_short(other.get(name))} on {b})"
                raise InputError(
                    f"{b} differs from {a} in {name}{'' if name in DIGESTS else values}: start "
                    "every rank with the same code, configuration, weights and OMP_NUM_THREADS"
                )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
