"""Who may import whom, read from the source; and tests have the same tree as the package."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
SOURCE = TESTS.parent / "src"

# Lowest first. A room is a folder or a file; it imports what lies below its floor, never a
# neighbour. A higher floor than a room needs would let it grow roots that nobody meant.
FLOORS = (
    ("_version", "checksums", "distributed_checkpoint", "errors", "interrupts", "schedule"),
    ("noise", "ranks", "record", "unpacking", "weight_copies"),
    ("genome",),
    ("gradient_noise", "spaces"),
    ("scoring",),
    ("acceptance", "engines", "strategies"),
    ("compatibility", "phase", "suggest"),
    ("evolution",),
    ("optimizer", "polishing", "population"),
    ("integrations",),
    ("_public",),
    ("",),  # the public names, each imported when it is asked for
    ("lab",),
    ("cli",),
    ("__main__",),
)

# In these rooms each file or folder is an algorithm of its own, and stands alone but for these.
SHARED = {
    "engines": {"base", "inplace", "linear", "stacked", "swap"},  # in place: what all fall back on
    "strategies": {"base", "safe", "shaping"},
}
# Classes of another library, imported when they are asked for.
ON_DEMAND = {"polishing.estimator"} | {
    f"integrations.{name}" for name in ("lightning", "skorch", "transformers")
}
# The list of them all, who chooses, and who shares them among ranks.
TABLES = {"engines", "engines.auto", "engines.distributed", "strategies"}

# Tests that hold more than one module to its word, or the project as a whole.
ABOVE_FILES = {
    "behaviour/test_behaviour",  # what evolution did before, to 3e-6
    "engines/test_overhead",  # what all engines leave undone
    "cli/test_main",  # the whole command line
    "engines/test_table",  # all engines against scoring in place
    "engines/test_traces",  # what all engines leave behind: nothing
    "integrations/test_accelerate",  # frameworks that need no file of their own
    "integrations/test_examples",  # what docs/frameworks.md shows
    "integrations/test_optimizer_database",  # torch's optimizers, and timm's
    "integrations/test_peft",
    "integrations/test_plain_loop",
    "integrations/test_timm",
    "polishing/test_spent",  # all that runs a network forward
    "lab/data/sources/test_sources",  # all sources by the table
    "scoring/test_metrics_table",  # metrics x layouts x forms of targets
    "noise/test_low_rank",  # one kind of noise, down to its steps
    "strategies/test_table",  # all strategies by the table
    "test_devices",  # what a graphics card must do as a CPU does
    "test_house",
    "test_laws",  # what holds for every strategy
    "test_packaging",
    "website/test_browser",  # the documentation site, whose scripts are in website/
    "website/test_pages",
    "website/test_site",
    "website/test_stage",
}


@cache
def modules() -> dict[str, Path]:
    """Every file of the package by its name; the package's own is the empty one."""
    found = {}
    for path in sorted((SOURCE / "evostep").rglob("*.py")):
        parts = path.relative_to(SOURCE / "evostep").with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def read_imports(source: str) -> Iterator[str]:
    """What a file imports, anywhere in it: in functions and for type checkers, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write imports in full, without dots"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(imported: str) -> str | None:
    """The file of the package that an import reaches; None for what is not the package's."""
    if imported.partition(".")[0] != "evostep":
        return None
    name = imported.partition(".")[2]
    while name not in modules():
        name = name.rpartition(".")[0]
    return name


@cache
def arrows() -> frozenset[tuple[str, str]]:
    """Every pair of files (importing, imported) in the package."""
    return frozenset(
        (module, target)
        for module, path in modules().items()
        for imported in read_imports(path.read_text())
        if (target := own(imported)) is not None and target != module
    )


def room(module: str) -> str:
    return module.partition(".")[0]


def outside_the_order(pairs: frozenset[tuple[str, str]]) -> set[tuple[str, str]]:
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    return {(a, b) for a, b in pairs if room(a) != room(b) and floor[room(a)] <= floor[room(b)]}


def between_algorithms(pairs: frozenset[tuple[str, str]]) -> set[tuple[str, str]]:
    def algorithm(module: str) -> str | None:
        parts = module.split(".")
        alone = len(parts) > 1 and parts[0] in SHARED and parts[1] not in SHARED[parts[0]]
        return ".".join(parts[:2]) if alone and module not in TABLES else None

    return {
        (a, b)
        for a, b in pairs
        if room(a) == room(b) and a not in TABLES and algorithm(b) not in (None, algorithm(a))
    }


def circles(pairs: frozenset[tuple[str, str]]) -> set[tuple[str, ...]]:
    """Groups of files each of which reaches all others of its group."""
    nearby: dict[str, set[str]] = {}
    for a, b in pairs:
        nearby.setdefault(a, set()).add(b)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for step in nearby.get(waiting.pop(), set()) - seen:
                seen.add(step)
                waiting.append(step)
        return seen

    reach = {start: reached(start) for start in nearby}
    return {
        tuple(sorted(other for other in reach[a] if a in reach.get(other, ())))
        for a in nearby
        if a in reach[a]
    }


def test_every_file_has_a_room_and_every_room_its_files() -> None:
    assert {room(module) for module in modules()} == {name for names in FLOORS for name in names}


def test_imports_go_down() -> None:
    assert outside_the_order(arrows()) == set()


def test_algorithms_stand_alone() -> None:
    assert between_algorithms(arrows()) == set()


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(arrows()) == set()


def test_shared_files_build_on_no_algorithm() -> None:
    """Else two algorithms would meet there."""
    for name, shared in SHARED.items():
        files = {f"{name}.{file}" for file in shared}
        assert files <= set(modules())
        met = {(a, b) for a, b in arrows() if a in files and room(b) == name and b not in files}
        assert met == set()


def test_extras_are_imported_by_lab_and_command_line_alone_or_inside_functions() -> None:
    """What a file of the library loads as it is imported is the standard library and torch."""
    allowed = {*sys.stdlib_module_names, "torch", "evostep"}
    for module, path in modules().items():
        if room(module) not in ("lab", "cli") and module not in ON_DEMAND:
            loaded = {name.partition(".")[0] for name in read_at_import(path.read_text())}
            assert loaded <= allowed, f"{module} loads {sorted(loaded - allowed)}"


def read_at_import(source: str) -> Iterator[str]:
    """What a file imports outside of functions and of blocks for type checkers."""
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        waiting += ast.iter_child_nodes(node)


def test_every_test_stands_where_its_module_does() -> None:
    found = {str(p.relative_to(TESTS).with_suffix("")) for p in TESTS.rglob("test_*.py")}
    found = {name for name in found if not name.startswith("faults/")}  # one kind of fault a file
    here = {str(Path(*module.split("."))) for module in modules() if module}
    lost = {name for name in found if name.replace("test_", "", 1) not in here}
    assert lost == ABOVE_FILES


# The readers themselves


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import evostep.errors", {"errors"}),
        ("from evostep import noise", {"noise"}),
        ("from evostep import Evolution", {""}),
        ("from evostep.noise.draws import draw", {"noise.draws"}),
        ("def f():\n    from evostep import errors", {"errors"}),
        ("if TYPE_CHECKING:\n    from evostep.errors import InputError", {"errors"}),
        ("import evostepper, torch", set()),
    ],
)
def test_every_way_to_import_is_read(source: str, found: set[str]) -> None:
    assert {own(name) for name in read_imports(source)} - {None} == found


def test_every_breach_is_told() -> None:
    up = ("noise.draws", "scoring.fitness")
    aside = ("acceptance.base", "engines.base")
    twins = ("strategies.snes", "strategies.cmaes")
    parts = ("engines.prefix.engine", "engines.racing.rows")
    fine = ("scoring.fitness", "noise.draws"), ("engines.racing.engine", "engines.racing.rows")
    allowed = ("engines.auto", "engines.vmap"), ("strategies.snes", "strategies.shaping")
    pairs = frozenset({up, aside, twins, parts, *fine, *allowed})
    assert outside_the_order(pairs) == {up, aside}
    assert between_algorithms(pairs) == {twins, parts}
    assert circles(pairs) == {("noise.draws", "scoring.fitness")}
    assert circles(frozenset({("a", "b"), ("b", "c"), ("c", "b"), ("c", "d")})) == {("b", "c")}
    assert set(read_at_import("import cma\ndef f():\n    import yaml")) == {"cma"}
    assert set(read_at_import("if TYPE_CHECKING:\n    import cma\nclass A:\n    import yaml")) == {
        "yaml"
    }
