"""Imports go one way, and optional packages stay out until they are asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sklip

PACKAGE = Path(sklip.__file__).parent
# Each room with the rooms it may import.
DOORS = {
    "layers": set(),
    "norms": set(),
    "losses": set(),
    "estimates": set(),
    "inputs": set(),
    "devices": set(),
    "parameters": {"losses"},
    "networks": {"layers"},
    "bounds": {"layers", "norms"},
    "metrics": {"inputs"},
    "inference": {"layers"},
    "rounding": {"bounds", "inference", "layers", "norms"},
    "proofs": {"bounds", "inference", "layers", "norms", "rounding"},
    "radii": {"inputs"},
    "transformers": {"bounds", "norms", "rounding"},
    "pipelines": {"bounds", "rounding", "transformers"},
    "certification": {"estimator", "pipelines", "radii", "rounding", "transformers"},
    "augmentation": set(),
    "optimizers": {"layers"},
    "graphs": {"optimizers"},
    "batches": set(),
    "training": {"batches", "graphs", "layers", "losses", "optimizers"},
    "estimator": {
        *("batches", "bounds", "devices", "inference", "inputs", "layers"),
        *("metrics", "networks", "parameters", "proofs", "radii", "training"),
    },
    "scoring": {"certification", "metrics"},
    "plots": {"certification", "metrics"},
}


def rooms_imported_by(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "sklip" and len(parts) > 1 and parts[1] in DOORS:
                yield parts[1]


def test_every_room_is_listed():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert files | folders == set(DOORS)


@pytest.mark.parametrize("room", DOORS)
def test_doors_open_one_way(room):
    folder = PACKAGE / room
    paths = folder.glob("*.py") if folder.is_dir() else [PACKAGE / f"{room}.py"]
    imported = {name for path in paths for name in rooms_imported_by(path)}
    assert imported - {room} <= DOORS[room]


def test_importing_sklip_does_not_import_matplotlib():
    code = "import sys, sklip; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_layers_know_nothing_of_scikit_learn():
    for path in (PACKAGE / "layers").glob("*.py"):
        assert "sklearn" not in path.read_text()
