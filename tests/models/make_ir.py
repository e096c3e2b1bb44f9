"""Make digits.xml and digits.bin, OpenVINO's own form of examples/digits/model/digits.onnx in FP32."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import openvino

HERE = Path(__file__).resolve().parent
DIGITS = HERE.parent.parent / "examples" / "digits" / "model" / "digits.onnx"


def main():
    # The core's own reader, not `convert_model`, which reports its use over the network.
    model = openvino.Core().read_model(DIGITS)
    xml = HERE / "digits.xml"
    openvino.save_model(model, xml, compress_to_fp16=False)
    # The network's rt_info tells how and where the file was converted; nothing needs it.
    tree = ElementTree.parse(xml)
    for info in tree.getroot().findall("rt_info"):
        tree.getroot().remove(info)
    tree.write(xml, encoding="utf-8", xml_declaration=True)


if __name__ == "__main__":
    main()
