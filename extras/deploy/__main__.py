"""The network of a checkpoint as ONNX files for other programs, each measured on the validation set.

    python -m extras.deploy --checkpoint checkpoints/volo_d1/best.pth

writes beside the checkpoint
    best.onnx            takes `images` (batch, 3, height, width), RGB in [0, 1] normalised by mean and std
    best_pictures.onnx   takes `pictures` (batch, height, width, 3), uint8 RGB of any size: it resizes and normalises
                         them itself (of the checkpoint's img_size, cropped, where training had a CROP)
    best_int8.onnx       the same with weights and activations of 8 bits (QDQ, static quantization)
All return `logits` (batch, classes). Their metadata hold `classes`, `preprocessing` and `temperature`, by which logits
are divided before a softmax, as JSON, and `agreement`: the share of so many pictures of val that they name as PyTorch
does.
A file that names under 99 % of them alike is not kept, but for INT8, of which it is said. Three packages are needed:
python -m pip install onnx onnxscript onnxruntime
"""
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from common import settings
from common.data.datasets import ImageFolder
from common.data.folders import Store
from common.data.images import BadImage
from common.data.reading import read_batches
from common.data.transforms import Transform, fit
from common.evaluation.predictor import load_network, temperature_of
from common.runtime.console import Bar
from common.runtime.errors import UserError
from common.runtime.files import move, writable_folder
from common.settings import Settings
from extras.deploy.export import Preprocessing, convert, open_session
from models import WeightsError, restore_model

CHECKPOINT = 'checkpoints/volo_d1/best.pth'
DATA_DIR: str | None = None       # with train/ and val/; None: the one that the network was trained on
PICTURES = 500                    # of val that all files name; evenly over it
CALIBRATION = 64                  # of train, from which the ranges of the 8-bit activations follow
BATCH_SIZE = 8                    # pictures at a time when speed is measured
_LEAST_AGREEMENT = 0.99
_TURNS = 3

Run = Callable[[np.ndarray], np.ndarray]


def main(cfg: Settings) -> None:
    settings.check_ranges(cfg, {'PICTURES': (1, float('inf')), 'CALIBRATION': (1, float('inf')),
                                'BATCH_SIZE': (1, float('inf'))})
    path, saved = Path(cfg.CHECKPOINT), load_network(cfg.CHECKPOINT)
    of_run = saved.get('settings')
    data_dir = cfg.DATA_DIR or str(isinstance(of_run, dict) and of_run.get('DATA_DIR') or 'data')
    writable_folder(path.parent, 'CHECKPOINT')
    val, train = (pictures_of(Path(data_dir, side), count, saved)
                  for side, count in (('val', cfg.PICTURES), ('train', cfg.CALIBRATION)))
    try:
        net = restore_model(saved).eval()
        with tempfile.TemporaryDirectory(dir=path.parent, prefix='.deploy') as folder:
            files = write_files(net, saved, train, Path(folder), path.stem)
            refused = [name for name in measure(net, saved, val, files, cfg.BATCH_SIZE) if 'int8' not in name]
            for name in files.keys() - set(refused):
                move(files[name], path.with_name(name))
    except WeightsError as error:
        raise UserError(f'{path}: {error}') from error
    if refused:
        raise UserError(f'{", ".join(refused)}: not kept, they name too many pictures of val unlike PyTorch')


@dataclass
class Pictures:
    """Some pictures of a data set, as both kinds of files take them; unreadable ones are left out."""
    truth: dict[str, str]  # path: class
    store: Store
    transform: Transform

    def arrays(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (path, (1, height, width, 3) of uint8): whole pictures or, with a CROP, what the network sees."""
        for path in self.truth:
            try:
                picture = self.store.open(path)
            except BadImage:
                continue
            yield path, np.asarray(picture if self.transform.crop is None else fit(self.transform)(picture))[None]

    def images(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields (path, (1, 3, *img_size), normalised)."""
        for [path], images, _ in read_batches(([path] for path in self.truth), [self.transform], self.store):
            if images is not None:
                yield path, images[0].numpy()


def pictures_of(folder: Path, count: int, saved: dict) -> Pictures:
    """At most so many pictures of a data set, from the first to the last."""
    dataset = ImageFolder(folder, allow_empty=True)
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int))
    chosen = (dataset.samples[index] for index in indices)
    return Pictures({path: dataset.classes[target] for path, target in chosen}, dataset.store,
                    Transform.from_dict(saved['transform']))


def write_files(net: nn.Module, saved: dict, train: Pictures, folder: Path, stem: str) -> dict[str, Path]:
    """{name: file} of the three files. Raises WeightsError."""
    metadata = {'model': saved['model'], 'classes': json.dumps(saved['classes'], ensure_ascii=False),
                'preprocessing': json.dumps(saved['transform']), 'temperature': json.dumps(temperature_of(saved))}
    files = {f'{stem}{ending}.onnx': folder / f'{stem}{ending}.onnx' for ending in ('', '_pictures', '_int8')}
    plain, pictures, int8 = files.values()
    with Bar(total=3, desc='writing', unit='file') as bar:
        size, preprocessing = saved['transform']['img_size'], Preprocessing(saved['transform'])
        convert(net, torch.zeros(2, 3, *size), 'images', {}, metadata, plain)
        bar.update()
        dynamic = {1: 'height', 2: 'width'} if preprocessing.resizes else {}
        example = [side + 16 * preprocessing.resizes for side in size]  # that it stays a picture of any size
        convert(nn.Sequential(preprocessing, net).eval(), torch.zeros(2, *example, 3, dtype=torch.uint8), 'pictures',
                dynamic, metadata, pictures)
        bar.update()
        quantize(pictures, int8, (picture for _, picture in train.arrays()), folder)
        bar.update()
    return files


def quantize(source: Path, target: Path, pictures: Iterator[np.ndarray], folder: Path) -> None:
    """Write a file with linear layers and convolutions in 8 bits. `pictures` (1, H, W, 3) are what it will see."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self):
            picture = next(pictures, None)
            return None if picture is None else {'pictures': picture}

    quant_pre_process(source, folder / 'prepared.onnx', skip_symbolic_shape=True)
    quantize_static(folder / 'prepared.onnx', target, Reader(), per_channel=True, activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8, op_types_to_quantize=['Conv', 'Gemm', 'MatMul'],
                    extra_options={'MatMulConstBOnly': True})  # not the products within attention


def measure(net: nn.Module, saved: dict, val: Pictures, files: dict[str, Path], batch_size: int) -> list[str]:
    """Print how each file does beside PyTorch, and write it into the files. Returns those that agree too seldom."""
    with torch.inference_mode():
        runs = {'PyTorch': lambda images: net(torch.from_numpy(images)).numpy()}
        runs |= {name: as_function(open_session(file)) for name, file in files.items()}
        labels = {name: named(run, name, val) for name, run in runs.items()}
        speeds = measure_speed(runs, saved, batch_size)
    expected, poor = labels['PyTorch'], []
    if not expected:
        raise UserError('none of the pictures of val can be read: there is nothing to compare on')
    print(f'{"":24} {"size":>9} {"as PyTorch":>10} {"ACC1":>8} {"pictures/s":>10}   ({len(expected)} pictures of val; '
          f'batches of {batch_size}, {torch.get_num_threads()} threads)')
    for name, found in labels.items():
        agreement = share(found[path] == expected[path] for path in expected)
        accuracy = share(saved['classes'][found[path]] == val.truth[path] for path in expected)
        size = f'{files[name].stat().st_size / 2 ** 20:.1f} MiB' if name in files else ''
        print(f'{name:24} {size:>9} {agreement:>10.2%} {accuracy:>8.2%} {speeds[name]:>10.1f}')
        if name in files:
            add_metadata(files[name], 'agreement', json.dumps({'top1': round(agreement, 4), 'pictures': len(expected)}))
        if agreement < _LEAST_AGREEMENT:
            poor.append(name)
    for name in poor:
        differ = share(labels[name][path] != expected[path] for path in expected)
        print(f'WARNING: {name} names {differ:.1%} of the pictures unlike PyTorch'
              + (': compare its ACC1 before you use it' if 'int8' in name else ''))
    return poor


def share(facts: Iterable[bool]) -> float:
    return float(np.mean(list(facts)))


def as_function(session: Any) -> Run:
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def takes_pictures(name: str) -> bool:
    return name.endswith(('_pictures.onnx', '_int8.onnx'))


def named(run: Run, name: str, val: Pictures) -> dict[str, int]:
    """{path: the class index that a network gives} of the readable pictures."""
    pictures = val.arrays() if takes_pictures(name) else val.images()
    return {path: int(run(picture).argmax())
            for path, picture in Bar(pictures, desc=name, total=len(val.truth), unit='img')}


def measure_speed(runs: dict[str, Run], saved: dict, batch_size: int) -> dict[str, float]:
    """{name: pictures a second}, the median of turns in which each has its own."""
    size, rng = saved['transform']['img_size'], np.random.default_rng(0)
    seconds = {name: [] for name in runs}
    for turn in range(_TURNS + 1):  # the first is to warm up
        for name, run in runs.items():
            batch = rng.integers(0, 256, (batch_size, *size, 3), np.uint8)
            if not takes_pictures(name):
                batch = batch.transpose(0, 3, 1, 2).astype(np.float32) / 255
            start = time.perf_counter()
            run(batch)
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: batch_size / float(np.median(found)) for name, found in seconds.items()}


def add_metadata(path: Path, key: str, value: str) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {item.key: item.value for item in model.metadata_props} | {key: value})
    onnx.save(model, path)


if __name__ == '__main__':
    settings.run(main)
