"""Arrays of every datatype at its edges, and how two of them are compared."""

import numpy as np

DATATYPES = {
    "BOOL": np.array([True, False, True]),
    "UINT8": np.array([0, 1, 255], np.uint8),
    "UINT16": np.array([0, 1, 65535], np.uint16),
    "UINT32": np.array([0, 1, 2**32 - 1], np.uint32),
    "UINT64": np.array([0, 1, 2**64 - 1], np.uint64),
    "INT8": np.array([-128, -1, 127], np.int8),
    "INT16": np.array([-32768, -1, 32767], np.int16),
    "INT32": np.array([-(2**31), -1, 2**31 - 1], np.int32),
    "INT64": np.array([-(2**63), -1, 2**63 - 1], np.int64),
    "FP16": np.array([0.5, -65504, 6e-8, np.inf], np.float16),
    "FP32": np.array([0.1, -3.4e38, 1e-45, np.nan, -np.inf], np.float32),
    "FP64": np.array([0.1, -1.7e308, 5e-324, np.nan, -np.inf], np.float64),
    # Texts: the strings of ONNX models are UTF-8.
    "BYTES": np.array([b"seven", b"", "größe 7 \U0001f600".encode(), b"a\0b"], object),
}

# What only functions with code of their own take.
ANY_BYTES = np.array([b"", bytes(range(256)), b"\xff\xfe"], object)

# What JSON can write: finite numbers, and no FP16.
IN_JSON = {
    name: array[np.isfinite(array)] if array.dtype.kind == "f" else array
    for name, array in DATATYPES.items()
    if name != "FP16"
}


def model(datatype):
    """The model whose output `y` is its input `x`, of any length."""
    return f"identity-{datatype.lower()}"


def same(got, wanted, what):
    """Both arrays have the same type, shape and, to the last bit, the same elements."""
    if got is None:
        raise AssertionError(f"{what} is not there")
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        raise AssertionError(f"{what} is {got.dtype} {got.shape}, not {wanted.dtype} {wanted.shape}")
    if wanted.dtype == object:
        is_same = [as_bytes(item) for item in got.ravel()] == [as_bytes(item) for item in wanted.ravel()]
    else:
        is_same = got.tobytes() == wanted.tobytes()
    if not is_same:
        raise AssertionError(f"{what} is {got}, not {wanted}")


def as_bytes(item):
    return item.encode() if isinstance(item, str) else item


def scores_of_batch(infer):
    """The digits model answers each row of a batch as it answers the row alone. `infer` takes an array of images."""
    images = np.random.default_rng(7).random((5, 1, 8, 8), np.float32)
    batch = infer(images)
    if batch.shape != (5, 10):
        raise AssertionError(f"the scores have the shape {batch.shape}")
    for row, image in enumerate(images):
        alone = infer(image[None])
        if not np.allclose(batch[row], alone[0], rtol=1e-4, atol=1e-5):
            raise AssertionError(f"row {row} is {batch[row]} in the batch and {alone[0]} alone")
