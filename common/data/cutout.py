"""torchtoolbox's Cutout, made to work with today's NumPy and without libGL."""
import importlib
import sys
import types

import numpy as np
from PIL import Image


class Cutout:
    """torchtoolbox's Cutout: with probability p, one grey box over 2 to 40 % of the image. Image -> uint8 (H, W, 3).

    torchtoolbox 0.1.8 (2021, unmaintained) needs help in three places, all of them here. It reads numpy.int as it is
    imported, which NumPy removed. It imports OpenCV, which Cutout never calls and which fails without libGL. And it
    mixes up width and height of PIL images, so it gets an array, and box shapes that fit into an oblong image.
    """

    def __init__(self, p: float, height: int, width: int):
        self.settings = (p, height, width)
        ratio = (0.4 * height / width, 2.5 * height / width)  # the default (0.4, 2.5), in the image's own proportion
        self.cutout = _import_cutout()(p=p, ratio=ratio)

    def __call__(self, image: Image.Image) -> np.ndarray:
        return self.cutout(np.array(image))

    def __reduce__(self):  # a spawned worker process builds its own
        return Cutout, self.settings


def _import_cutout() -> type:
    borrowed = []
    if not hasattr(np, 'int'):
        np.int = int
        borrowed.append((np.__dict__, 'int'))
    try:
        import cv2  # noqa: F401
    except ImportError:
        stand_in = types.ModuleType('cv2')
        stand_in.__getattr__ = _constant
        sys.modules['cv2'] = stand_in
        borrowed.append((sys.modules, 'cv2'))
    try:
        return importlib.import_module('torchtoolbox.transform').Cutout
    finally:
        for namespace, name in borrowed:
            namespace.pop(name)


def _constant(name: str) -> int:
    """Return a value for each constant of OpenCV, in tables that Cutout does not use."""
    if name.startswith('__'):  # what Python itself asks modules for
        raise AttributeError(name)
    return 0
