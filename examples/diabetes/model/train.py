"""Train the diabetes model on scikit-learn's bundled data; write the model, its preprocessing and held-out records."""

import os

# Sums in another order give other weights: one thread keeps the bytes the same from run to run.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import RepeatedKFold, cross_val_score, train_test_split
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler

HERE = Path(__file__).resolve().parent
RECORDS = HERE.parent / "testdata" / "records.json"

SEED = 7
HELD_OUT_RECORDS = 88
CATEGORICAL = ["sex"]
NUMERIC = ["age", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]


def load_records():
    """Columns by name in the data set's own units; `sex` as the category that it is."""
    data = load_diabetes(as_frame=True, scaled=False)
    frame = data.data
    # The data set codes sex as 1 and 2 and does not say which is which.
    frame["sex"] = frame["sex"].astype(int).astype(str)
    return frame, data.target


def encoder():
    return ColumnTransformer(
        [("numeric", StandardScaler(), NUMERIC), ("categorical", OneHotEncoder(sparse_output=False), CATEGORICAL)]
    )


def candidates():
    """What was tried; every one of them can be written with plain ONNX operators."""
    network = MLPRegressor(
        hidden_layer_sizes=(16,), activation="tanh", alpha=10, solver="lbfgs", max_iter=1000, random_state=SEED
    )
    squares = [PolynomialFeatures(2, include_bias=False), StandardScaler()]
    return {
        "mean of the training set": DummyRegressor(),
        "ridge": make_pipeline(encoder(), Ridge(10)),
        "ridge on products of two features": make_pipeline(encoder(), *squares, Ridge(100)),
        "network": make_pipeline(encoder(), TransformedTargetRegressor(network, transformer=StandardScaler())),
    }


def preprocessing(fitted):
    """What a guest needs to turn a record into features: numeric columns first, then one per category."""
    scaler = fitted.named_transformers_["numeric"]
    one_hot = fitted.named_transformers_["categorical"]
    return {
        "numeric": [
            {"name": name, "mean": float(mean), "scale": float(scale)}
            for name, mean, scale in zip(NUMERIC, scaler.mean_, scaler.scale_, strict=True)
        ],
        "categorical": [
            {"name": name, "categories": list(values)}
            for name, values in zip(CATEGORICAL, one_hot.categories_, strict=True)
        ],
    }


def encode(record, settings):
    """As the guest does it: (value - mean) / scale, then 1 for the record's category and 0 for the others."""
    numbers = [(record[column["name"]] - column["mean"]) / column["scale"] for column in settings["numeric"]]
    flags = [
        float(record[column["name"]] == category)
        for column in settings["categorical"]
        for category in column["categories"]
    ]
    return np.array(numbers + flags, np.float32)


def write_onnx(regressor, path):
    """The network with the target's scaling folded into its last layer: features [batch,11] -> progression [batch,1]."""
    (hidden, last), (hidden_bias, last_bias) = regressor.regressor_.coefs_, regressor.regressor_.intercepts_
    scaler = regressor.transformer_
    weights = {
        "hidden.weight": hidden,
        "hidden.bias": hidden_bias,
        "last.weight": last * scaler.scale_,
        "last.bias": last_bias * scaler.scale_ + scaler.mean_,
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["features", "hidden.weight", "hidden.bias"], ["sum"]),
            helper.make_node("Tanh", ["sum"], ["active"]),
            helper.make_node("Gemm", ["active", "last.weight", "last.bias"], ["progression"]),
        ],
        "diabetes",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", len(hidden)])],
        [helper.make_tensor_value_info("progression", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def write_json(value, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1) + "\n")


def main():
    frame, target = load_records()
    train, held_out, train_target, held_target = train_test_split(
        frame, target, test_size=HELD_OUT_RECORDS, random_state=SEED
    )
    folds = RepeatedKFold(n_splits=5, n_repeats=4, random_state=SEED)
    fitted = candidates()
    for name, model in fitted.items():
        score = cross_val_score(model, train, train_target, cv=folds, scoring="r2").mean()
        answers = model.fit(train, train_target).predict(held_out)
        r2, error = r2_score(held_target, answers), mean_absolute_error(held_target, answers)
        print(f"{name}: cross-validated R2 {score:.3f}; held-out R2 {r2:.3f}, mean absolute error {error:.1f}")

    network = fitted["network"]
    settings = preprocessing(network[0])
    write_onnx(network[-1], HERE / "diabetes.onnx")
    write_json(settings, HERE / "preprocessing.json")
    expected = network.predict(held_out)
    records = held_out.to_dict("records")
    write_json(
        [
            {"record": record, "expected": round(float(answer), 4), "measured": float(truth)}
            for record, answer, truth in zip(records, expected, held_target, strict=True)
        ],
        RECORDS,
    )
    session = onnxruntime.InferenceSession(HERE / "diabetes.onnx", providers=["CPUExecutionProvider"])
    features = np.stack([encode(record, settings) for record in records])
    answers = session.run(["progression"], {"features": features})[0][:, 0]
    print(f"ONNX against scikit-learn on {len(records)} records: max abs diff {np.abs(answers - expected).max():.2e}")


if __name__ == "__main__":
    main()
