"""Classify images with a file that `python -m extras.deploy` wrote: onnxruntime, Pillow and NumPy are enough.

    python extras/deploy/predict_onnx.py best_pictures.onnx photo.jpg another.jpg
"""
import contextlib
import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1])
metadata = session.get_modelmeta().custom_metadata_map
classes = json.loads(metadata['classes'])
temperature = json.loads(metadata['temperature'])
for path in sys.argv[2:]:
    image = Image.open(path)
    with contextlib.suppress(Exception):  # A damaged EXIF block says nothing.
        image.getexif()
    image.info.pop('exif', None)  # Pillow has read it, and would otherwise write it anew, which fails for odd tags.
    image = ImageOps.exif_transpose(image).convert('RGB')
    logits = session.run(None, {'pictures': np.asarray(image)[None]})[0][0] / temperature
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    print(f'{path}: {classes[probabilities.argmax()]} ({probabilities.max():.1%})')
