"""A service that answers with a label and a proven radius, from an ONNX file alone.

Fits a pipeline on scikit-learn's breast_cancer, writes it to breast_cancer.onnx, serves the file over
HTTP, and asks it about some rows of the test data. The service itself needs neither sklip nor
scikit-learn nor torch. Radii are in standard deviations of each column.

    pip install -e ".[service]"
    python examples/onnx_service.py               # asks, prints a table, ends
    python examples/onnx_service.py --port 8000   # serves until it is stopped

    curl -d '{"rows": [[...30 numbers...]]}' -H 'Content-Type: application/json' localhost:8000/predict
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import threading
import time
import urllib.request
from typing import Any

import fastapi
import numpy as np
import onnxruntime
import uvicorn
from pydantic import BaseModel


class Question(BaseModel):
    """Rows in the units of the data, without missing values."""

    rows: list[list[float]]


def service(path: str) -> fastapi.FastAPI:
    """Return an application that answers for the file."""
    app = fastapi.FastAPI(title="Labels with certified radii")
    # The file's promise is for this provider.
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    n_columns = session.get_inputs()[0].shape[1]
    about = session.get_modelmeta().custom_metadata_map

    @app.get("/")
    def describe() -> dict[str, Any]:
        names = {name: json.loads(about[name]) for name in ("columns", "classes")}
        return {**names, "promise": about["promise"]}

    @app.post("/predict")
    def predict(question: Question) -> list[dict[str, Any]]:
        numbers = [number for row in question.rows for number in row]
        if not all(len(row) == n_columns for row in question.rows) or not all(
            map(math.isfinite, numbers)
        ):
            raise fastapi.HTTPException(422, f"rows must have {n_columns} finite numbers each.")
        X = np.array(numbers, dtype=np.float64).reshape(-1, n_columns)
        label, probabilities, radius = session.run(None, {"X": X})
        columns = (label.tolist(), probabilities.max(axis=1).tolist(), radius.tolist())
        return [
            {"label": label, "probability": probability, "radius": radius}
            for label, probability, radius in zip(*columns, strict=True)
        ]

    return app


def fit_and_write(path: str) -> np.ndarray:
    """Fit a pipeline, write it to a file, and return some rows that it has not seen."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from sklip import LipschitzClassifier, to_onnx

    data = load_breast_cancer()
    labels = data.target_names[data.target]
    X_train, X_test, y_train, y_test = train_test_split(data.data, labels, random_state=0)
    pipeline = make_pipeline(StandardScaler(), LipschitzClassifier(random_state=0)).fit(
        X_train, y_train
    )
    to_onnx(pipeline, path, scale="std")
    print(f"{path}: {pipeline.score(X_test, y_test):.1%} of {len(X_test)} test rows right")
    return X_test[:8]


def ask(url: str, rows: np.ndarray) -> list[dict[str, Any]]:
    """Ask the service over HTTP."""
    body = json.dumps({"rows": rows.tolist()}).encode()
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found: list[dict[str, Any]] = json.load(answer)
    return found


def main() -> None:
    """Serve, and ask unless a port was given."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, help="serve on this port until stopped")
    port = parser.parse_args().port
    rows = fit_and_write("breast_cancer.onnx")
    app = service("breast_cancer.onnx")
    if port is not None:
        uvicorn.run(app, port=port)
        return
    listener = socket.create_server(("127.0.0.1", 0))  # a free port
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    print(f"answers of {url}/predict\n\nrow  label      probability  radius (standard deviations)")
    for number, answer in enumerate(ask(url, rows)):
        print(
            f"{number:3}  {answer['label']:9}  {answer['probability']:11.3f}  {answer['radius']:6.3f}"
        )
    server.should_exit = True
    thread.join()


if __name__ == "__main__":
    main()
