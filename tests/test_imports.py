"""Imports go one way, and optional packages stay out until they are asked for."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import sklip

PACKAGE = Path(sklip.__file__).parent
# Each room with the rooms that it imports.
DOORS = {
    "rows": set(),
    "layers": set(),
    "losses": set(),
    "networks": {"layers"},
    "inputs": {"rows"},
    "metrics": {"inputs", "losses", "rows"},
    "certified": {"layers", "rows"},
    "preprocessing": {"certified"},
    "training": {"layers", "losses", "rows"},
    "estimators": {
        *("certified", "inputs", "layers", "losses", "metrics", "networks", "rows", "training"),
    },
    "certification": {"certified", "estimators", "metrics", "preprocessing", "rows"},
    "export": {"certification", "certified", "estimators", "layers", "preprocessing"},
    "explanation": {
        *("certification", "certified", "estimators", "inputs", "preprocessing", "rows"),
    },
    "scoring": {"certification", "metrics", "preprocessing", "training"},
    "plots": {"certification", "explanation", "inputs", "metrics", "preprocessing", "scoring"},
    "path": {"certification", "estimators", "inputs", "rows", "scoring", "training"},
}
# What a room may not know of, wherever it lies.
STRANGERS = {
    "layers": ("sklearn", "skorch"),
    "losses": ("sklearn", "skorch"),
    "networks": ("sklearn", "skorch"),
    "certified": ("sklearn", "skorch"),
    "preprocessing": ("skorch",),
    "training": ("sklearn",),
}


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def files_of(room):
    folder = PACKAGE / room
    return sorted(folder.glob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def rooms_imported_by(path):
    parts = (name.split(".") for name in imported_names(path))
    return {name[1] for name in parts if name[0] == "sklip" and len(name) > 1 and name[1] in DOORS}


def test_every_room_is_listed():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files | folders == set(DOORS)


@pytest.mark.parametrize("room", DOORS)
def test_a_room_imports_what_is_listed_and_nothing_else(room):
    imported = set().union(*(rooms_imported_by(path) for path in files_of(room)))
    assert imported - {room} == DOORS[room]


def test_no_file_imports_itself_by_way_of_others():
    modules = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    graph = {
        name: {other for other in imported_names(path) if other in modules and other != name}
        for name, path in modules.items()
        if path.name != "__init__.py"
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises a CycleError
    assert len(order) >= len(graph)


@pytest.mark.parametrize(("room", "strangers"), STRANGERS.items(), ids=STRANGERS)
def test_a_room_knows_nothing_of_its_strangers(room, strangers):
    for path in files_of(room):
        assert not {name.split(".")[0] for name in imported_names(path)} & set(strangers)


def test_importing_sklip_does_not_import_what_is_optional():
    optional = {"fastapi", "matplotlib", "onnx", "onnxruntime", "safetensors", "skops"}
    code = f"import sys, sklip; sys.exit(str({optional} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == "set()"
