"""Draw ``receipt.png``: a receipt as a phone would photograph it, the same bytes each time.

    python examples/data/make_receipt.py

Printed on paper, laid on a table, seen slightly from the side, unevenly lit, with sensor noise. Needs Pillow,
numpy and OpenCV (in the extra ``examples``). The words that a reader must find are in ``receipt.json``.
"""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
SIZE = (560, 760)
PAPER = (380, 640)
LINES = [
    ("HEADRACE CAFE", "", 38),
    ("12 Mill Street, Riverton", "", 28),
    ("", "", 8),
    ("Flat white", "3.80", 29),
    ("Almond croissant", "4.25", 29),
    ("Sparkling water", "2.60", 29),
    ("Soup of the day", "7.90", 29),
    ("", "", 8),
    ("Subtotal", "18.55", 29),
    ("VAT 10%", "1.86", 29),
    ("TOTAL", "20.41", 38),
    ("", "", 8),
    ("Card ending 4071", "", 26),
    ("Thank you!", "", 30),
]


def paper() -> Image.Image:
    """The receipt, flat."""
    width, height = PAPER
    image = Image.new("RGB", PAPER, (250, 248, 242))
    draw = ImageDraw.Draw(image)
    y = 28
    for left, right, size in LINES:
        if left:
            # Pillow's own font: the same on every machine.
            font = ImageFont.load_default(size)
            if right:
                draw.text((28, y), left, fill=(30, 30, 34), font=font)
                draw.text((width - 28, y), right, fill=(30, 30, 34), font=font, anchor="ra")
            else:
                draw.text((width // 2, y), left, fill=(30, 30, 34), font=font, anchor="ma")
        y += int(size * 1.55)
    for x in range(0, width, 12):  # the torn edge
        draw.polygon([(x, height), (x + 6, height - 7), (x + 12, height)], fill=(96, 70, 48))
    return image


def photograph(flat: Image.Image) -> np.ndarray:
    """The paper on a table: perspective, rotation, light, blur, noise."""
    random = np.random.default_rng(7)
    width, height = SIZE
    grain = random.normal(0, 9, (height, 1)) + 4 * np.sin(np.linspace(0, 40, height))[:, None]
    table = np.clip(np.array([52, 78, 104])[None, None] + grain[..., None], 0, 255)
    table = np.broadcast_to(table, (height, width, 3)).astype(np.uint8)
    source = np.asarray(flat)[:, :, ::-1]
    corners = np.float32([[0, 0], [PAPER[0], 0], list(PAPER), [0, PAPER[1]]])
    seen = np.float32([[104, 54], [478, 72], [454, 716], [66, 690]])
    matrix = cv2.getPerspectiveTransform(corners, seen)
    sheet = cv2.warpPerspective(source, matrix, SIZE, flags=cv2.INTER_AREA)
    mask = cv2.warpPerspective(np.full(source.shape[:2], 255, np.uint8), matrix, SIZE)
    shadow = cv2.GaussianBlur(np.roll(mask, (10, 8), (0, 1)), (0, 0), 9)[..., None] / 255.0
    image = table * (1 - 0.45 * shadow)
    cover = mask[..., None] / 255.0
    image = image * (1 - cover) + sheet * cover
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    light = 1.04 - 0.26 * x - 0.14 * y + 0.05 * np.sin(5 * x + 3 * y)
    image = cv2.GaussianBlur(image * light[..., None], (0, 0), 0.7)
    image += random.normal(0, 2.5, image.shape[:2])[..., None]
    return np.clip(image, 0, 255).astype(np.uint8)


def main() -> None:
    """Write the image and the words in it."""
    target = HERE / "receipt.png"
    image = Image.fromarray(photograph(paper())[:, :, ::-1])
    # 40 colours: noise compresses badly, and the file lies in the repository.
    image.quantize(40, dither=Image.Dither.NONE).save(target, optimize=True)
    words = [text for left, right, _ in LINES for text in (left, right) if text]
    (HERE / "receipt.json").write_text(json.dumps({"text": words}, indent=1) + "\n")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
