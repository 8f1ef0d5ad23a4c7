"""The examples run as the README says, and show what it says."""

import asyncio
import functools
import json
import re
import runpy
import socket
import sys
import threading
import urllib.error
import urllib.request
import warnings
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import uvicorn
from sklearn.datasets import fetch_openml, load_wine
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklip import LipschitzClassifier, certificates, to_onnx

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Give what runs an example as a script, in an empty folder, and returns what it printed."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        # In this process, which has imported already what each example imports.
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        plt.close("all")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_the_digits_search_shows_the_trade_off(run, tmp_path):
    output = run("tune_tradeoff.py")
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


@pytest.mark.slow
def test_the_loans_say_what_is_proven_of_an_applicant(run, tmp_path):
    output = run("tabular.py")
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


def test_the_service_prints_what_it_answered(run, tmp_path):
    output = run("onnx_service.py")
    rows = re.findall(
        r"^ +(\d)  (malignant|benign) +(0\.\d+|1\.000) +(\d\.\d{3})$", output, re.MULTILINE
    )
    assert [int(row[0]) for row in rows] == list(range(8))
    assert {row[1] for row in rows} == {"malignant", "benign"}
    assert sum(float(row[3]) > 0.5 for row in rows) > 4
    assert float(re.search(r"onnx: ([\d.]+)% of 143", output).group(1)) > 93


def test_the_service_answers_as_the_pipeline_does(tmp_path):
    """Over HTTP, from a server on a free port."""
    script = runpy.run_path(str(EXAMPLES / "onnx_service.py"))
    X, y = load_wine(return_X_y=True)
    clf = LipschitzClassifier(hidden_layer_sizes=(8,), max_epochs=5, random_state=0)
    pipeline = make_pipeline(StandardScaler(), clf).fit(X, y)
    to_onnx(pipeline, tmp_path / "wine.onnx", scale="std")
    server = uvicorn.Server(uvicorn.Config(script["service"](str(tmp_path / "wine.onnx"))))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            answers = script["ask"](url, X)  # waits until the server takes it
            nothing = script["ask"](url, X[:0])
            with urllib.request.urlopen(url) as answer:
                about = json.load(answer)
            for bad in (X[:, 1:], np.where(X > 1000, np.nan, X)):
                with pytest.raises(urllib.error.HTTPError) as caught:
                    script["ask"](url, bad)
                assert caught.value.code == 422
                assert "13 finite numbers" in caught.value.read().decode()
        finally:
            server.should_exit = True
            thread.join()
    assert [each["label"] for each in answers] == pipeline.predict(X).tolist()
    radii, expected = (
        np.array([each["radius"] for each in answers]),
        certificates(pipeline, X, scale="std"),
    )
    assert (radii <= expected).all()
    np.testing.assert_allclose(radii, expected, rtol=1e-6)
    assert nothing == []
    assert about["classes"] == [0, 1, 2]
    assert about["columns"] == list(range(13))


async def asked_at_once(port, rows):
    """Answers to so many requests, of which a hundred are open at a time."""
    places = asyncio.Semaphore(100)

    async def ask(row):
        body = json.dumps({"rows": [row.tolist()]}).encode()
        head = (
            "POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        async with places:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.encode() + body)
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
        return json.loads(answer.partition(b"\r\n\r\n")[2])[0]

    return await asyncio.gather(*map(ask, rows))


@pytest.mark.slow
def test_a_thousand_requests_to_the_service_get_the_answers_of_each_alone(tmp_path):
    script = runpy.run_path(str(EXAMPLES / "onnx_service.py"))
    X, y = load_wine(return_X_y=True)
    X, y = X[::4], y[::4]
    clf = LipschitzClassifier(hidden_layer_sizes=(8,), max_epochs=5, random_state=0)
    to_onnx(make_pipeline(StandardScaler(), clf).fit(X, y), tmp_path / "wine.onnx", scale="std")
    app = script["service"](str(tmp_path / "wine.onnx"))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            alone = [script["ask"](f"http://127.0.0.1:{port}", row[None])[0] for row in X]
            rows = np.resize(np.arange(len(X)), 1000)
            answers = asyncio.run(asked_at_once(port, X[rows]))
        finally:
            server.should_exit = True
            thread.join()
    assert answers == [alone[row] for row in rows]


@pytest.mark.slow
def test_the_images_show_what_is_proven_and_what_is_found(run, tmp_path):
    output = run("images.py")
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


def test_the_wines_have_radii_in_three_units(run, tmp_path):
    output = run("pipeline_units.py")
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


@pytest.mark.slow
@pytest.mark.mnist
def test_the_tutorials_runs_learn_mnist(run, monkeypatch):
    # What is fetched here is not read a second time by the example.
    fetch = functools.cache(functools.partial(fetch_openml, n_retries=1))
    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch)
    try:
        with warnings.catch_warnings():
            # Without a network, fetch_openml warns of its cache before it fails.
            warnings.simplefilter("ignore")
            fetch("mnist_784", version=1, as_frame=False, return_X_y=True)
    except OSError as error:
        pytest.skip(f"MNIST can't be had: {error}")
    output = run("mnist_tradeoff.py", "--epochs", "1", "--train-size", "6000", "--runs", "tau=3")
    accuracy = float(output.splitlines()[-1].split("|")[2].split()[0])
    assert accuracy > 0.5


@pytest.mark.slow
def test_the_readmes_code_runs(tmp_path, monkeypatch):
    """With fewer epochs, and the same names from block to block."""
    monkeypatch.chdir(tmp_path)
    readme = (EXAMPLES.parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(blocks) == 11
    names = {}
    for block in blocks:
        exec(block.replace("LipschitzClassifier(", "LipschitzClassifier(max_epochs=3, "), names)
    radii = names["certificates"](names["search"], names["X_test"], scale="std")
    assert radii.shape == (143,)
    assert (names["radius"] <= radii).all()
