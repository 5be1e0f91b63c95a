"""python onnx_example.py best.onnx PICTURE [age=71 ...]: asks an exported model with onnxruntime and numpy, without PyTorch.

PICTURE is a PNG, JPEG, BMP or TIFF, which Pillow opens, or needs no Pillow: a grey PGM (P5, eight bits) or an .npy array,
uint8 (H, W). A square one of the model's size is used as it is. From any other, the square of training is made by means over
areas, within a grey level or two of OpenCV's. What is known of the patient goes to a model that takes covariates; `osteo
export` says which, and in what numbers.
"""
import json, pathlib, re, sys
import numpy as np, onnxruntime

def read(path):  # as uint8 (H, W)
    if path.endswith(".npy"):
        return np.load(path)
    content = pathlib.Path(path).read_bytes()
    if head := re.match(rb"P5\s(?:\s*#.*\n)*\s*(\d+)\s+(\d+)\s+255\s", content):
        return np.frombuffer(content[head.end():], np.uint8).reshape(int(head[2]), int(head[1]))
    try:
        from PIL import Image, ImageOps
    except ImportError:
        sys.exit(f"{path} is read by Pillow, which is not installed: pip install pillow, or give a PGM or an .npy array")
    try:
        picture = ImageOps.exif_transpose(Image.open(path))
        values = np.asarray(picture.convert("L") if picture.mode in ("L", "RGB") else picture)
    except (OSError, ValueError) as error:
        sys.exit(f"{path} cannot be read: {error}")
    if picture.mode in ("L", "RGB"):
        return values
    if not picture.mode.startswith(("I", "F")):
        sys.exit(f"{path} is neither grey nor RGB but {picture.mode}: convert it, or ask `osteo predict`, which reads it")
    low, high = values.min(), values.max()  # more than eight bits: from the darkest to the brightest, as in training
    return np.rint((values - float(low)) * (255 / max(float(high) - float(low), 1e-9))).astype(np.uint8)

def shrink(grey, length):  # to this many rows, each the mean of what it covers; fractions of a row count as such
    edges = np.linspace(0, len(grey), length + 1)
    whole = np.minimum(edges.astype(int), len(grey) - 1)
    above = np.cumsum(grey, axis=0, dtype=float)[whole] - grey[whole] * (1 + whole - edges)[:, None]
    return np.diff(above, axis=0) * length / len(grey)

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
card, grey = json.loads(session.get_modelmeta().custom_metadata_map["osteo"]), read(sys.argv[2])
side, longest, square = card["image_size"], max(grey.shape), np.zeros((1, card["image_size"], card["image_size"]), np.uint8)
if grey.shape != (side, side) and (card["fit"] not in ("pad", "resize") or card["enhance"] != "none"):
    sys.exit(f"this model sees a part of the picture that osteo finds (fit={card['fit']}, enhance={card['enhance']}):"
             f" give a square of {side} pixels that `load(RUN).models[0].prepare` has made, or ask `osteo predict`")
height, width = [side if card["fit"] == "resize" else max(1, round(n * side / longest)) for n in grey.shape]
top, left = (side - height) // 2, (side - width) // 2
square[0, top:top + height, left:left + width] = np.rint(shrink(shrink(grey, height).T, width).T)
known, names = dict(word.split("=") for word in sys.argv[3:]), card.get("covariates", {}).get("names", [])
if strange := known.keys() - set(names):
    sys.exit(f"{min(strange)} is no covariate of this model, which takes: {', '.join(names) or 'none'}")
inputs = {"picture": square} | ({"covariates": np.float32([[known.get(name, "nan") for name in names]])} if names else {})
print("%.6f" % session.run(["probability"], inputs)[0][0], card["class_names"][-1], card["intended_use"], sep="; ")
