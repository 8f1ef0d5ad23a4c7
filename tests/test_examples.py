"""The examples run as the README says, and show what it says."""

import re
import runpy
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import fetch_openml

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_digits_search_shows_the_trade_off(tmp_path):
    output = run("tune_tradeoff.py", cwd=tmp_path)
    rows = re.findall(r"^\s+(\d+\.\d)\s+(0\.\d{3})\s+(0\.\d{3})", output, re.MULTILINE)
    accuracy = [float(row[1]) for row in rows]
    certified = [float(row[2]) for row in rows]
    assert len(rows) == 5
    # As tau falls, accuracy falls and certified accuracy rises. A step of 0.01 is 13 of 1347 digits,
    # what another machine's rounding may move.
    for scores in (accuracy, certified[::-1]):
        assert all(later > earlier - 0.01 for earlier, later in pairwise(scores))
        assert scores[-1] > scores[0] + 0.03
    assert "<- chosen" in output
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")


def test_the_loans_say_what_is_proven_of_an_applicant(tmp_path):
    output = run("tabular.py", cwd=tmp_path)
    applicant, income, loan = re.search(
        r"Applicant (\d+), .* earns ([\d,]+) a year and asks for ([\d,]+)\. Purpose: car\.", output
    ).groups()
    ranges = dict(re.findall(r"only the number '(.*)' changes, and stays between (.*);", output))
    assert list(ranges) == ["income", "age", "loan", "years employed"]
    for column, value in (("income", income), ("loan", loan)):
        low, high = (float(end.replace(",", "")) for end in ranges[column].split(" and "))
        assert 0 <= low < float(value.replace(",", "")) < high
    together, whatever_purpose = map(float, re.findall(r"by less than (\d\.\d\d)", output))
    assert 0 < whatever_purpose <= together
    right, certified = (float(share) for share in re.findall(r"([\d.]+)% (?:answered|so)", output))
    assert right > 85
    assert 60 < certified < right
    assert applicant == "81"
    distance, answer = re.search(
        r"at (\d\.\d\d) standard deviations, the answer is '(\w+)'", output
    ).groups()
    assert float(distance) > together
    assert answer == "defaulted"
    assert (tmp_path / "tabular.png").read_bytes().startswith(b"\x89PNG")


def test_the_images_show_what_is_proven_and_what_is_found(tmp_path):
    output = run("images.py", cwd=tmp_path)
    shares = re.findall(r"^\s+(\d\.\d)\s+([\d.]+)%\s+([\d.]+)%$", output, re.MULTILINE)
    assert [float(eps) for eps, _, _ in shares] == [0.0, 0.5, 1.0, 1.5]
    proven, found = ([float(row[place]) for row in shares] for place in (1, 2))
    assert proven[0] > 90
    assert 40 < proven[1] < proven[0]
    assert all(low <= high for low, high in zip(proven, found, strict=True))
    pairs = re.findall(r"^\s+\d\s+(\d)\s+(\d\.\d\d)\s+(\d)\s+(\d\.\d\d)$", output, re.MULTILINE)
    assert len(pairs) == 8
    assert all(answer != other and float(radius) < float(at) for answer, radius, other, at in pairs)
    assert (tmp_path / "images.png").read_bytes().startswith(b"\x89PNG")


def test_the_wines_have_radii_in_three_units(tmp_path):
    output = run("pipeline_units.py", cwd=tmp_path)
    rows = re.findall(
        r"^([^\d\n]+?)\s+(\d+\.\d{4})\s+(\d+\.\d{4})\s+(\d+\.\d\d)$", output, re.MULTILINE
    )
    assert [row[0] for row in rows] == [
        "the table's own units",
        "standard deviations",
        "percent of the mean",
    ]
    of_table, of_std, _ = (float(row[1]) for row in rows)
    assert 0 < of_table < of_std
    assert all(float(row[1]) < float(row[2]) for row in rows)
    changes = [float(number) for number in re.findall(r"(-?\d+\.\d\d)$", output, re.MULTILINE)]
    assert len(changes) == 3 + 13
    assert (tmp_path / "pipeline_units.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("settings", ["tutorial", "default"])
def test_the_tutorials_runs_print_a_row_each(settings, few_digits, monkeypatch, capsys):
    """On the digits in a frame of 28 x 28, which are there on every machine."""
    X, y = few_digits
    images = np.pad(X.reshape(-1, 8, 8) / 16, ((0, 0), (10, 10), (10, 10))).astype(np.float32)
    rows = images.reshape(len(X), -1)
    script = runpy.run_path(str(EXAMPLES / "mnist_tradeoff.py"))
    main, runs = script["main"], script["RUNS"]
    monkeypatch.setitem(
        main.__globals__, "load_mnist", lambda size: (rows[:size], rows[150:], y[:size], y[150:])
    )
    arguments = ["--epochs", "1", "--train-size", "150", "--settings", settings, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["mnist_tradeoff.py", *arguments])
    main()
    lines = capsys.readouterr().out.splitlines()
    title, *_, header = lines[: -len(runs)]
    assert title == f"150 training images, 1 epochs, {settings} settings"
    assert len(header.split("|")) == 3
    for line, (name, (_, *reference)) in zip(lines[-len(runs) :], runs.items(), strict=True):
        found, of_tutorial, of_sklip = line.split("|")
        assert found.strip() == name
        assert [float(number) for number in of_tutorial.split()] == reference
        accuracy, certificate, proven, certified, bound, seconds = map(float, of_sklip.split())
        assert 0 <= certified <= accuracy <= 1
        assert min(certificate, proven, seconds) > 0
        assert 0.5 < bound < 1.001


@pytest.mark.mnist
def test_the_tutorials_runs_learn_mnist(tmp_path):
    try:
        with warnings.catch_warnings():
            # Without a network, fetch_openml warns of its cache before it fails.
            warnings.simplefilter("ignore")
            fetch_openml("mnist_784", version=1, as_frame=False, return_X_y=True, n_retries=1)
    except OSError as error:
        pytest.skip(f"MNIST can't be had: {error}")
    output = run(
        "mnist_tradeoff.py", "--epochs", "1", "--train-size", "6000", "--runs", "tau=3", cwd=tmp_path
    )
    accuracy = float(output.splitlines()[-1].split("|")[2].split()[0])
    assert accuracy > 0.5


def test_the_readmes_code_runs():
    """With fewer epochs, and the same names from block to block."""
    readme = (EXAMPLES.parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 7
    names = {}
    for block in blocks:
        exec(block.replace("LipschitzClassifier(", "LipschitzClassifier(max_epochs=3, "), names)
    assert names["certificates"](names["search"], names["X_test"], scale="std").shape == (143,)
