"""Measure ONNX files beside PyTorch: how often they agree on images of val, their accuracy, their speed."""
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.data import images
from common.data.datasets import ImageFolder
from common.data.folders import Store
from common.data.images import BadImage, judging
from common.data.transforms import Transform, eval_transform, fit, least_side
from common.runtime.console import Bar
from common.runtime.errors import UserError
from extras.deploy import predict_onnx
from extras.deploy.export import OnnxFile, open_session

TURNS = 3  # turns of the speed measurement after one to warm up; the median counts


@dataclass
class SampledImages:
    """Some images of a data set, as either kind of file takes them. Unreadable ones are left out."""
    truth: dict[str, str]  # the class of each path
    store: Store           # what opens the paths
    transform: Transform

    def pictures(self) -> Iterator[np.ndarray]:
        """Yield the images (1, height, width, 3), uint8, for the calibration of INT8."""
        for _, picture in Bar(self.paths_and_pictures(), desc='calibrating', total=len(self.truth), unit='img'):
            yield picture

    def paths_and_pictures(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (path, (1, height, width, 3), uint8), as predict_onnx.py makes them: users copy it, so it is measured.
        """
        preprocessing = self.transform.as_dict()
        for path in self.truth:
            try:
                with judging(path):
                    file = io.BytesIO(self.store.content(path))
                    pictures = predict_onnx.prepare(file, preprocessing, images.BIT_DEPTH)
            except BadImage:
                continue
            yield path, pictures

    def paths_and_images(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield (path, (1, 3, *img_size), float32): the normalised images."""
        resize = fit(self.transform)
        normalise = eval_transform(self.transform)
        for path in self.truth:
            try:
                image = self.store.open(path, least_side(self.transform))
            except BadImage:
                continue
            yield path, normalise(resize(image))[None].numpy()


def sample_images(folder: Path, count: int, transform: Transform) -> SampledImages:
    """Return at most `count` images of a data set, evenly from the first to the last. Raises UserError."""
    dataset = ImageFolder(folder, allow_empty=True)
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    chosen = (dataset.samples[index] for index in indices)
    return SampledImages({path: dataset.classes[target] for path, target in chosen}, dataset.store, transform)


@dataclass(frozen=True)
class Candidate:
    """What is measured: PyTorch's network or a file."""
    name: str
    run: Callable[[np.ndarray], np.ndarray]  # a batch -> logits (batch, classes)
    takes_pictures: bool = False             # as those of OnnxFile
    size: int | None = None                  # bytes of the file


@dataclass(frozen=True)
class Measurement:
    """What was measured of a candidate."""
    name: str
    size: int | None      # bytes of the file
    images: int           # number of images that were classified
    agreement: float      # fraction of them classified as PyTorch does
    accuracy: float       # fraction of them classified rightly
    images_per_s: float


def measure(net: nn.Module, files: list[OnnxFile], val: SampledImages, classes: list[str],
            batch_size: int) -> list[Measurement]:
    """Return the measurements of PyTorch's network and then of the files. Raises UserError if no image is readable."""
    candidates = [candidate_of_network(net), *map(candidate_of_file, files)]
    labels = [classify(candidate, val) for candidate in candidates]
    expected = labels[0]
    if not expected:
        raise UserError('none of the images of val can be read: there is nothing to compare on')
    speeds = measure_speed(candidates, val.transform.img_size, batch_size)
    measured = []
    for candidate, found, speed in zip(candidates, labels, speeds, strict=True):
        agreement = np.mean([found.get(path) == expected[path] for path in expected])
        accuracy = np.mean([path in found and classes[found[path]] == val.truth[path] for path in expected])
        measured.append(Measurement(candidate.name, candidate.size, len(expected), float(agreement), float(accuracy),
                                    speed))
    return measured


def candidate_of_network(net: nn.Module) -> Candidate:
    """Return PyTorch's network as a candidate."""
    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        return net(torch.from_numpy(images)).numpy()

    return Candidate('PyTorch', run)


def candidate_of_file(file: OnnxFile) -> Candidate:
    """Return a file, in onnxruntime, as a candidate."""
    session = open_session(file.path)
    input_name = session.get_inputs()[0].name

    def run(batch: np.ndarray) -> np.ndarray:
        return session.run(None, {input_name: batch})[0]

    return Candidate(file.path.name, run, file.takes_pictures, file.path.stat().st_size)


def classify(candidate: Candidate, val: SampledImages) -> dict[str, int]:
    """Return the class index that a candidate gives each readable image, by its path."""
    inputs = val.paths_and_pictures() if candidate.takes_pictures else val.paths_and_images()
    labels = {}
    for path, batch in Bar(inputs, desc=candidate.name, total=len(val.truth), unit='img'):
        labels[path] = int(candidate.run(batch).argmax())
    return labels


def measure_speed(candidates: list[Candidate], img_size: list[int], batch_size: int) -> list[float]:
    """Return the images per second of each candidate, the median of turns in which all have one batch each."""
    rng = np.random.default_rng(0)
    seconds = [[] for _ in candidates]
    for turn in range(1 + TURNS):
        for candidate, durations in zip(candidates, seconds, strict=True):
            batch = rng.integers(0, 256, (batch_size, *img_size, 3), np.uint8)
            if not candidate.takes_pictures:
                batch = batch.transpose(0, 3, 1, 2).astype(np.float32) / 255
            start = time.perf_counter()
            candidate.run(batch)
            if turn > 0:
                durations.append(time.perf_counter() - start)
    return [batch_size / float(np.median(durations)) for durations in seconds]
