"""Write classifier.html: the network of an ONNX file, what runs it and a page around both, in one file."""
import base64
import gzip
import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader

from common.data import images
from common.data.transforms import Transform, least_side
from common.evaluation.predictor import TOP, UNKNOWN, free_label, temperature_of
from common.runtime.console import Bar
from common.runtime.files import replacing
from extras.deploy.export import open_session
from extras.deploy.measure import Measurement
from extras.deploy.runtime import LICENCE, VERSION, Runtime

_PLACE = '@payloads@'
FOLDER = Path(__file__).parent / 'browser'
PART_BYTES = 3 * 2 ** 18   # of a payload in one element, a multiple of 3 so that base64 needs no padding within
WEIGHTS = {'int8': 'INT8', 'fp16': 'FP16', 'fp32': 'FP32'}  # by the values of PAGE
# The largest difference of a logit from onnxruntime's at which a browser's answers are trusted, relative to the range
# of the logits. Processors multiply 8 bits differently.
TOLERANCE = {'int8': 0.15, 'fp16': 0.02, 'fp32': 0.005}


@dataclass(frozen=True)
class PageContent:
    """What a page is made from."""
    network: Path            # the ONNX file, which takes `pictures`
    weights: str             # one of WEIGHTS
    saved: dict[str, Any]    # the checkpoint's content
    measured: Measurement    # of the ONNX file
    unknown_below: float     # the least certainty at which an image gets a class
    runtime: Runtime


def write_page(path: Path, content: PageContent) -> None:
    """Write the page. Raises UserError if it cannot be written."""
    payloads = {'runtime': content.runtime.module, 'wasm': content.runtime.wasm,
                'network': content.network.read_bytes()}
    packed = {}
    for name in Bar(payloads, desc='packing', unit='file'):
        packed[name] = gzip.compress(payloads[name], 6, mtime=0)
    size = sum(len(part) for data in packed.values() for part in parts_of(data))
    before, after = render(content, size).split(_PLACE)
    with replacing(path) as aside, open(aside, 'w', encoding='utf-8', newline='\n') as file:
        file.write(before)
        for name, data in packed.items():
            for part in parts_of(data):
                file.write(f'<script type="text/plain" data-payload="{name}">{part}</script>\n')
        file.write(after)


def parts_of(data: bytes) -> Iterator[str]:
    """Yield bytes as base64, piece by piece."""
    for start in range(0, len(data), PART_BYTES):
        yield base64.b64encode(data[start:start + PART_BYTES]).decode()


def render(content: PageContent, payload_size: int) -> str:
    """Return the page with _PLACE where the payloads belong. `payload_size` is their length in characters."""
    style = read('page.css')
    script = read('page.js')
    environment = Environment(loader=FileSystemLoader(FOLDER), autoescape=True, trim_blocks=True)
    settings = json.dumps(page_settings(content, payload_size)).replace('<', '\\u003c')
    return environment.get_template('page.html').render(
        policy=policy(style, script), title='Image classifier', style=style, script=script, worker=read('worker.js'),
        settings=settings, licence=LICENCE, payloads=_PLACE)


def read(name: str) -> str:
    """Return the text of a file of the page."""
    return (FOLDER / name).read_text(encoding='utf-8')


def policy(style: str, script: str) -> str:
    """Return the Content-Security-Policy: the page loads nothing, sends nothing, and runs its own code alone."""
    return '; '.join([
        "default-src 'none'",
        f"script-src '{digest(script)}' blob: 'wasm-unsafe-eval'",
        'worker-src blob:',
        f"style-src '{digest(style)}'",
        'img-src blob: data:',
        'media-src blob: mediastream:',
        "base-uri 'none'",
        "form-action 'none'"])


def digest(text: str) -> str:
    """Return the hash of an element's text, as a policy names it."""
    return 'sha256-' + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def page_settings(content: PageContent, payload_size: int) -> dict[str, Any]:
    """Return what the page's JavaScript reads."""
    transform = Transform.from_dict(content.saved['transform'])
    logits = probe(content.network, transform.img_size)
    return {
        'classes': content.saved['classes'],
        'imgSize': transform.img_size,
        'interpolation': transform.interpolation,
        'crop': transform.crop,
        'atLeast': least_side(transform),
        'bitDepth': images.BIT_DEPTH,
        'temperature': temperature_of(content.saved),
        'unknownBelow': content.unknown_below,
        'unknown': free_label(UNKNOWN, content.saved['classes']),
        'top': TOP,
        'model': content.saved['model'],
        'weights': WEIGHTS[content.weights],
        'agreement': content.measured.agreement,
        'agreementImages': content.measured.images,
        'accuracy': content.measured.accuracy,
        'runtimeVersion': VERSION,
        'versions': f'PyTorch {torch.__version__}, Python {platform.python_version()}',
        'webgpu': content.weights != 'int8',  # it has no arithmetic of 8 bits
        'probe': {'logits': logits.tolist(), 'tolerance': TOLERANCE[content.weights] * float(np.ptp(logits))},
        'payloadSize': payload_size}


def probe(network: Path, img_size: list[int]) -> np.ndarray:
    """Return the logits (classes,) for an image that worker.js draws alike, to see whether it computes alike."""
    height, width = img_size
    y = np.arange(height)[:, None, None]
    x = np.arange(width)[None, :, None]
    channel = np.arange(3)
    picture = (3 * x + 5 * y + 80 * channel + (x * y >> 3)) & 255
    return open_session(network).run(['logits'], {'pictures': picture.astype(np.uint8)[None]})[0][0]
