"""Measure digits.onnx with ONNX Runtime on the held-out PNG files, as a caller would send them."""

from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

HERE = Path(__file__).resolve().parent
FILES = sorted((HERE.parent / "testdata" / "heldout").glob("*.png"))


def main():
    session = onnxruntime.InferenceSession(HERE / "digits.onnx", providers=["CPUExecutionProvider"])
    images = np.stack([np.asarray(Image.open(file), np.float32) for file in FILES])[:, None] / 255
    answers = session.run(["scores"], {"image": images})[0].argmax(1)
    wrong = [f"{file.name} as {answer}" for file, answer in zip(FILES, answers) if file.stem[-1] != str(answer)]
    print(f"{len(FILES) - len(wrong)} of {len(FILES)} right ({1 - len(wrong) / len(FILES):.4f}); wrong: {wrong}")


if __name__ == "__main__":
    main()
