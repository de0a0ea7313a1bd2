"""What a run that was killed goes on from."""

from evostep.polishing.store import Nowhere, Tensors, number_in


class Kept(dict[str, Tensors]):
    """Keeps everything in memory."""

    def load(self, name: str) -> Tensors | None:
        return self.get(name)

    def save(self, name: str, tensors: Tensors) -> None:
        self[name] = tensors


def test_a_number_is_measured_once_where_it_is_kept() -> None:
    measured = iter((5, 6, 7))
    kept = Kept()
    assert [number_in(kept, "a", lambda: next(measured)) for _ in range(2)] == [5, 5]
    assert number_in(kept, "b", lambda: next(measured)) == 6
    assert number_in(Nowhere(), "a", lambda: next(measured)) == 7
