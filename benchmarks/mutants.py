"""Small faults put into sklip's modules, and whether a test notices: mutation testing.

Three steps; the first needs the package `coverage`:

    python benchmarks/mutants.py map map.json tests/certified tests/test_metrics.py sklip/certified
    python benchmarks/mutants.py run map.json results.jsonl --sample 40 sklip/certified/*.py
    python benchmarks/mutants.py table results.jsonl

`map` runs tests and writes which of them execute each line, and how long they take. `run`
draws mutants of each file, always the same for a seed, and appends a line for each: by which test it is
killed, if by any. It goes through the tests that execute the line, the fastest first, then through the
others that execute the module, up to so many seconds of tests; what none of these notices survives.
`--again` takes the survivors of an earlier file of results in place of a sample, `--only` the mutants
whose names match a regular expression.

torch, scikit-learn and the like are imported once; each mutant is a fork of that process, in which the
mutated module takes the place of its file's. Tests that start another Python see no mutant there. The
kept tools start an interpreter for each mutant, and have no operators for what matters most in a
certificate: a charge left out, min for max, a rounding the other way.
"""

from __future__ import annotations

import argparse
import ast
import collections
import copy
import functools
import gc
import importlib
import importlib.machinery
import json
import math
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MEMORY = 12 * 2**30

COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
# Names that stand for the opposite, or for what is easily mistaken.
SWAPPED_PAIRS = """
    min/max minimum/maximum argmin/argmax any/all floor/ceil ones/zeros ones_like/zeros_like
    offset/slope inf/nan smallest/largest cummin/cummax expm1/exp log1p/log left/right
    height/width start/stop
    first/last low/high lower/upper rows/columns spent/per_distance in_channels/out_channels
    clamp_min/clamp_max logical_and/logical_or values/errors least/most before/after
"""
SWAPPED = dict(
    pair for both in SWAPPED_PAIRS.split() for a, b in [both.split("/")] for pair in ((a, b), (b, a))
)
# Calls whose result is their argument, but for a rounding, a charge or a copy.
ALIKE = {
    "abs",
    "sqrt",
    "float",
    "int",
    "bool",
    "rounded_up",
    "_rounded_up",
    "square",
    "log",
    "exp",
    "ceil",
}
# Arguments of a call that are a matter of shapes or messages.
SHAPES = {"axis", "dim", "keepdims", "stacklevel"}
# Packages that the forks find imported.
SHARED = {"torch", "numpy", "sklearn", "skorch", "scipy", "hypothesis", "pandas"}


@dataclass
class Mutant:
    """A change of one node of a module's tree."""

    path: str
    line: int
    name: str
    apply: Callable[[], None]


def mutants_of(path: str, tree: ast.Module) -> list[Mutant]:
    """Return all mutants of a module, in the order of its text."""
    found = []
    for node, parent, field, position in _sites(tree):
        for new in _variants(node, parent):
            name = f"{path}:{node.lineno}:{node.col_offset}: {_shown(node)} -> {_shown(new)}"
            apply = functools.partial(_replace, parent, field, position, new)
            found.append(Mutant(path, node.lineno, name, apply))
    return sorted(found, key=lambda mutant: mutant.line)


def _shown(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())[:100]


def _replace(parent: ast.AST, field: str, position: int | None, new: ast.AST) -> None:
    if position is None:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[position] = new


def _sites(parent: ast.AST) -> Iterator[tuple[Any, ast.AST, str, int | None]]:
    """Yield the nodes that may be changed: no annotations, docstrings, messages, or assertions."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "type_params") or (isinstance(parent, ast.Raise)):
            continue
        for position, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(node, ast.AST) or _left_alone(node):
                continue
            if hasattr(node, "lineno"):
                yield node, parent, field, position
            yield from _sites(node)


def _left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Assert() | ast.Import() | ast.ImportFrom() | ast.JoinedStr():
            return True
        case ast.Expr(value=ast.Constant()) | ast.Call(func=ast.Attribute(attr="warn")):
            return True
        case ast.keyword(arg=name):
            return name in SHAPES
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name == "__all__"
    return False


def _variants(node: Any, parent: ast.AST) -> Iterator[ast.AST]:
    """Yield what may stand in a node's place."""

    def changed(**fields: Any) -> Any:
        new = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.Compare(ops=[operator]):
            yield from (changed(ops=[new()]) for new in COMPARISONS[type(operator)])
        case ast.Compare(ops=operators):
            for i, operator in enumerate(operators):
                new = COMPARISONS[type(operator)][0]()
                yield changed(ops=[*operators[:i], new, *operators[i + 1 :]])
        case ast.BinOp(op=operator, left=left, right=right):
            if type(operator) in ARITHMETIC:
                yield changed(op=ARITHMETIC[type(operator)]())
            if isinstance(operator, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.BitAnd | ast.BitOr):
                yield left
            if isinstance(operator, ast.Add | ast.Mult | ast.BitAnd | ast.BitOr):
                yield right
        case ast.BoolOp(op=operator, values=values):
            yield changed(op=ast.Or() if isinstance(operator, ast.And) else ast.And())
            yield from values
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool(value)):
            yield changed(value=not value)
        case ast.Constant(value=int(value)):
            yield changed(value=value + 1)
            yield changed(value=value - 1)
        case ast.Constant(value=float(value)):
            yield changed(value=2 * value if value else 1.0)
            yield changed(value=value / 2 if value else -1.0)
        case ast.Call(func=ast.Attribute(attr="nextafter"), args=[value, _]):
            yield value
            yield from (changed(args=[value, ast.Constant(sign * math.inf)]) for sign in (1, -1))
        case ast.Call(func=ast.Name(id=name), args=[value]) if name in ALIKE:
            yield value
        case ast.Call(func=ast.Attribute(attr=name), args=[value]) if name in ALIKE:
            yield value
        case ast.Call(func=ast.Attribute(attr=name, value=value), args=[]) if name in ALIKE:
            yield value
        case ast.Call(func=ast.Name(id="range"), args=[*rest, last]):
            yield changed(args=[*rest, ast.BinOp(last, ast.Sub(), ast.Constant(1))])
        case ast.Name(id=name) if name in SWAPPED and isinstance(parent, ast.Call):
            yield changed(id=SWAPPED[name])
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in SWAPPED:
            yield changed(attr=SWAPPED[name])
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield changed(lower=None)
            if upper is not None:
                yield changed(upper=None)
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.If() | ast.While():
            if not isinstance(node.test, ast.Constant | ast.Compare):
                yield changed(test=ast.UnaryOp(ast.Not(), node.test))
        case ast.comprehension(ifs=[_, *_]):
            yield changed(ifs=[])
        case ast.Return(value=value) if value is not None and not isinstance(value, ast.Constant):
            yield changed(value=ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            if any(isinstance(each, ast.Name) and each.id == name for each in ast.walk(value)):
                yield ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


# -- which test executes which line --------------------------------------------------------------


class _Recorder:
    """Note the seconds of each test, and let coverage know which one runs."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = collections.defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        result = yield
        self.coverage.switch_context("")
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration


def write_map(path: Path, tests: list[str]) -> None:
    """Run tests and write which of them execute each line, and their seconds; or add these to a map."""
    from coverage import Coverage

    coverage = Coverage(data_file=None, source=[str(ROOT / "sklip")])
    recorder = _Recorder(coverage)
    coverage.start()
    pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", *tests], plugins=[recorder])
    coverage.stop()
    data = coverage.get_data()
    stored = json.loads(path.read_text()) if path.exists() else {"seconds": {}, "lines": {}}
    stored["seconds"].update(recorder.seconds)
    for file in data.measured_files():
        lines = stored["lines"].setdefault(str(Path(file).relative_to(ROOT)), {})
        for line, contexts in data.contexts_by_lineno(file).items():
            lines[str(line)] = sorted({*lines.get(str(line), []), *filter(None, contexts)})
    path.write_text(json.dumps(stored))


class TestMap:
    """Which tests to run for a line, and for how long."""

    def __init__(self, path: Path) -> None:
        stored = json.loads(path.read_text())
        self.seconds: dict[str, float] = stored["seconds"]
        self._lines: dict[str, dict[str, list[str]]] = stored["lines"]

    def of_line(self, path: str, line: int, budget: float) -> list[str]:
        """Return tests that take so many seconds: those that execute the line, then the module's."""
        lines = self._lines.get(path, {})
        here = set(lines.get(str(line), []))
        every = set().union(*lines.values())
        tests = sorted(every, key=lambda test: (test not in here, self.seconds[test]))
        chosen, spent = [], 0.0
        for test in tests:
            if spent + self.seconds[test] <= budget:
                chosen.append(test)
                spent += self.seconds[test]
        return chosen


# -- one fork for each mutant --------------------------------------------------------------------


class _Chosen:
    """Run the chosen tests in their order; note the first that fails."""

    def __init__(self, tests: list[str]) -> None:
        self.order = {test: i for i, test in enumerate(tests)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self.order]
        items[:] = sorted(chosen, key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def _import_what_tests_import(files: list[str]) -> None:
    """Import the other packages that the tests import, and leave sklip for the forks."""
    read, write = os.pipe()
    if not os.fork():
        _quiet()
        pytest.main(["-q", "-n", "0", "--collect-only", "-p", "no:cacheprovider", *files])
        names = [
            name for name in sys.modules if not name.startswith(("sklip", "tests", "_pytest", "__"))
        ]
        os.write(write, "\n".join(names).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        names = stream.read().split("\n")
    os.wait()
    for name in names:
        try:
            importlib.import_module(name)
        except Exception:  # what can't be imported by itself, a fork imports in passing
            sys.modules.pop(name, None)
    gc.freeze()  # a collection in a fork would copy all of that memory


def _quiet() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)


def _install(path: str, tree: ast.Module) -> None:
    """Let a module be imported from a tree in place of its file."""
    code = compile(ast.fix_missing_locations(tree), str(ROOT / path), "exec")
    original = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: Any, fullname: str) -> Any:
        return code if Path(self.path) == ROOT / path else original(self, fullname)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    # At once: pytest has a loader of its own for modules whose doctests it runs.
    importlib.import_module(path.removesuffix(".py").replace("/", "."))


def _run_tests(tests: list[str]) -> str:
    from hypothesis import HealthCheck, Phase, settings

    # Nothing is shrunk, kept, or found slow.
    phases, checks = (Phase.explicit, Phase.generate), list(HealthCheck)
    settings.register_profile(
        "mutants",
        database=None,
        deadline=None,
        derandomize=True,
        phases=phases,
        suppress_health_check=checks,
    )
    settings.load_profile("mutants")
    chosen = _Chosen(tests)
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    # The forks find hypothesis imported.
    quiet = [
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
        "-p",
        "no:cacheprovider",
        "-q",
        "-n",
        "0",
    ]
    code = pytest.main([*quiet, "-x", *files], plugins=[chosen])
    return "" if code == 0 else chosen.failed or f"exit {int(code)}"


def verdict(mutant: Mutant, tree: ast.Module, tests: list[str], timeout: int) -> str:
    """Return which test kills a mutant, or nothing."""
    read, write = os.pipe()
    sys.stdout.flush()
    process = os.fork()
    if not process:
        _quiet()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(timeout)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        answer = "import"
        try:
            mutant.apply()
            _install(mutant.path, tree)
            answer = _run_tests(tests)
        finally:
            os.write(write, json.dumps(answer).encode()[:4000])
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as stream:
        answer = stream.read()
    _, status = os.waitpid(process, 0)
    return json.loads(answer) if answer else f"signal {os.WTERMSIG(status)}"


def _chosen_mutants(options: argparse.Namespace, path: str, found: list[Mutant]) -> list[Mutant]:
    if options.again is not None:
        records = map(json.loads, options.again.read_text().splitlines())
        wanted = {record["mutant"] for record in records if not record["killed_by"]}
        return [mutant for mutant in found if mutant.name in wanted]
    if options.only is not None:
        return [mutant for mutant in found if re.search(options.only, mutant.name)]
    chosen = random.Random(f"{options.seed} {path}").sample(found, min(options.sample, len(found)))
    return sorted(chosen, key=lambda mutant: mutant.line)


def run(options: argparse.Namespace) -> None:
    """Append what became of each mutant to a file of results."""
    tests = TestMap(options.map)
    files = sorted({test.split("::")[0] for test in tests.seconds})
    _import_what_tests_import(files)
    done = set()
    if options.results.exists():
        done = {json.loads(line)["mutant"] for line in options.results.read_text().splitlines()}
    for path in options.files:
        tree = ast.parse((ROOT / path).read_text())
        found = mutants_of(path, tree)
        untouched = Mutant(path, 1, f"{path}: nothing", lambda: None)
        for mutant in [untouched, *_chosen_mutants(options, path, found)]:
            if mutant.name in done:
                continue
            start, chosen = time.monotonic(), tests.of_line(path, mutant.line, options.budget)
            killed_by = verdict(mutant, tree, chosen, int(60 + 5 * options.budget))
            if mutant is untouched and killed_by:
                raise SystemExit(f"{path}: {killed_by} fails without any change.")
            seconds = round(time.monotonic() - start, 1)
            record = {
                "mutant": mutant.name, "of": len(found), "killed_by": killed_by, "tests": len(chosen),
                "seconds": seconds,
            }  # fmt: skip
            if mutant is not untouched:
                with options.results.open("a") as stream:
                    stream.write(json.dumps(record) + "\n")
            if not killed_by:
                print(f"{seconds:6.1f} s, {len(chosen)} tests: {mutant.name}", flush=True)


def table(options: argparse.Namespace) -> None:
    """Print how many mutants of each file were run and killed."""
    records = [json.loads(line) for path in options.results for line in path.read_text().splitlines()]
    last = {record["mutant"]: record for record in records}
    rooms: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in last.values():
        rooms[record["mutant"].split(":")[0]].append(record)
    print("| module | mutants | run | killed | |\n| --- | --- | --- | --- | --- |")
    for path, group in sorted(rooms.items()):
        killed = sum(bool(record["killed_by"]) for record in group)
        print(f"| {path} | {group[0]['of']} | {len(group)} | {killed} | {killed / len(group):.0%} |")


def main() -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    steps = parser.add_subparsers(required=True)
    mapping = steps.add_parser("map")
    mapping.add_argument("map", type=Path)
    mapping.add_argument("tests", nargs=argparse.REMAINDER, help="arguments of pytest")
    mapping.set_defaults(step=lambda options: write_map(options.map, options.tests))
    running = steps.add_parser("run")
    running.add_argument("map", type=Path)
    running.add_argument("results", type=Path)
    running.add_argument("files", nargs="+")
    running.add_argument("--sample", type=int, default=40, help="mutants of each file")
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--budget", type=float, default=15.0, help="seconds of tests for each mutant")
    running.add_argument("--only", help="regular expression of the mutants to run in place of a sample")
    running.add_argument("--again", type=Path, help="results whose survivors are run again")
    running.set_defaults(step=run)
    printing = steps.add_parser("table")
    printing.add_argument("results", type=Path, nargs="+")
    printing.set_defaults(step=table)
    options = parser.parse_args()
    options.step(options)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
