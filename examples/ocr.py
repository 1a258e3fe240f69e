"""Read the text in an image: a real OCR model (RapidOCR on ONNX Runtime), loaded once per instance.

    pip install "headrace[examples]"
    headrace dev examples/ocr.py          # with `headrace up`: headrace deploy, and curl needs the key
    curl --data-binary @examples/data/receipt.png -H 'content-type: image/png' http://127.0.0.1:8700/e/ocr

The image is the raw request body, or base64 in JSON: ``{"image": "iVBORw0..."}``. The answer has one entry
per line of text, with its four corners (pixels, clockwise from the top left) and how sure the model is.

``runtime="oci"`` or ``"docker"`` among the options below runs it in a container, with the same answers.

The package carries its weights. Its imports take 0.2 to 0.5 s, so they are done before an instance is needed,
in the process that instances are forked from (``preload``); loading the weights takes 0.2 s.
"""

import base64
import binascii
import os
from typing import Any

# ONNX Runtime >= 1.29 sends usage data from a thread that it starts at its import, and a process that is to
# be forked must have one thread only. The platform sets this too; here it is for `python examples/ocr.py`.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import cv2
import headrace
import numpy as np
from rapidocr_onnxruntime import RapidOCR
from rapidocr_onnxruntime.utils.infer_engine import OrtInferSession

MAX_SIDE = 2000
"""Pixels; larger images are made smaller first."""


@headrace.endpoint(
    cpu=1,
    memory="1GiB",
    scaling=headrace.Scaling(max=4, idle_timeout=60),
    timeout=60,
    max_body="16MiB",
    preload=["numpy", "cv2", "onnxruntime", "rapidocr_onnxruntime"],
)
class Ocr:
    """Find and read the lines of text in an image (PNG, JPEG, WebP, BMP, TIFF)."""

    def load(self) -> None:
        """Open the models: one that finds text, one that reads it."""
        OrtInferSession._init_sess_opts = staticmethod(_patient_options)
        self.engine = RapidOCR(
            use_cls=False,  # is upside-down text turned? Not for what is photographed upright
            max_side_len=MAX_SIDE,
            det_limit_type="max",  # look for text in the image as it is, do not enlarge it
            det_unclip_ratio=2.0,
            intra_op_num_threads=min(2, os.cpu_count() or 1),
            inter_op_num_threads=1,
        )

    def __call__(self, image: bytes) -> dict[str, Any]:
        """Read one image; raises ``ValueError`` when it is none."""
        pixels = cv2.imdecode(np.frombuffer(_raw(image), np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise ValueError("this is no image: send PNG, JPEG, WebP, BMP or TIFF, raw or as base64 in JSON")
        found, _ = self.engine(pixels)
        lines = [
            {"text": text, "score": round(float(score), 4), "box": [[round(x), round(y)] for x, y in box]}
            for box, text, score in found or ()
        ]
        height, width = pixels.shape[:2]
        return {
            "text": "\n".join(line["text"] for line in lines),
            "lines": lines,
            "width": width,
            "height": height,
        }

    def health(self) -> bool:
        """Whether the models are there."""
        return self.engine is not None


_options_of = OrtInferSession._init_sess_opts


def _patient_options(config: dict[str, Any]) -> Any:
    """RapidOCR's session options, with threads that sleep while they wait for each other.

    By default they spin, and where other work shares the cores a request took 2.5 s and not 1.0 s; RapidOCR
    has no option for it.
    """
    options = _options_of(config)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _raw(image: bytes | str) -> bytes:
    """The image's bytes; from a JSON body they come as base64 text."""
    text = image.encode() if isinstance(image, str) else image
    if text[:1].isalnum() or text[:1] in (b"/", b"+"):
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            return text
    return text


if __name__ == "__main__":
    import sys

    for path in sys.argv[1:] or ["examples/data/receipt.png"]:
        with open(path, "rb") as file:
            print(Ocr.local(file.read())["text"])
