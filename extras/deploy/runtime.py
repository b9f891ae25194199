"""The runtime in classifier.html: ONNX Runtime Web, files of the npm package onnxruntime-web, which is fetched once."""
import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.request
from pathlib import Path
from typing import NamedTuple

from common.runtime.errors import UserError
from common.runtime.files import make_folder, replacing, writing

PACKAGE = 'onnxruntime-web'
VERSION = '1.30.0'
SHA512 = 'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='  # as npm states it
CACHE_FOLDER = Path('.cache')
FETCH_SECONDS = 600  # for 32 MiB

LICENCE = '''MIT License

Copyright (c) Microsoft Corporation

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated \
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the \
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit \
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the \
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE \
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR \
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR \
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.'''


class Runtime(NamedTuple):
    """The two files of a build of the runtime."""
    module: bytes  # the JavaScript
    wasm: bytes    # the WebAssembly


def read_runtime(package: str | None, webgpu: bool) -> Runtime:
    """Return the build for WebAssembly alone or, twice as large, the one that also knows WebGPU.

    `package` is the path of the npm package, None for the one in .cache/, which is fetched if it is not there. Raises
    UserError.
    """
    content = read_package(package)
    names = ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm')
    if webgpu:
        names = ('ort.webgpu.bundle.min.mjs', 'ort-wasm-simd-threaded.asyncify.wasm')
    with tarfile.open(fileobj=io.BytesIO(content), mode='r:gz') as archive:
        return Runtime(*(archive.extractfile(f'package/dist/{name}').read() for name in names))


def read_package(package: str | None) -> bytes:
    """Return the npm package that the page was tested with. Raises UserError where it cannot be had or is another."""
    if package is not None:
        try:
            content = Path(package).read_bytes()
        except OSError as error:
            raise UserError(f'RUNTIME = {package!r} cannot be read ({error.strerror}): give the path of '
                            f'{file_name()}') from None
        if not is_the_package(content):
            raise UserError(f'RUNTIME = {package!r} is not the npm package {PACKAGE} {VERSION}: its sha512 is another')
        return content
    cached = CACHE_FOLDER / file_name()
    if not cached.is_file() or not is_the_package(cached.read_bytes()):
        with writing(CACHE_FOLDER):
            make_folder(CACHE_FOLDER)
        print(f'fetching the npm package {PACKAGE} {VERSION}, 32 MiB, into {CACHE_FOLDER}')
        fetch(cached)
    return cached.read_bytes()


def file_name() -> str:
    """Return what npm calls the file of the package."""
    return f'{PACKAGE}-{VERSION}.tgz'


def is_the_package(content: bytes) -> bool:
    """Return whether the sha512 is the stated one."""
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == SHA512


def fetch(target: Path) -> None:
    """Fetch the package from NPM_CONFIG_REGISTRY or else as npm does. Raises UserError."""
    advice = (f'so there is no classifier.html. Give --page none, or download {file_name()} elsewhere and give '
              f'--runtime {file_name()}')
    registry = os.environ.get('NPM_CONFIG_REGISTRY')
    npm = shutil.which('npm')
    if not registry and not npm:
        raise UserError(f'the npm package {PACKAGE} {VERSION} cannot be fetched without npm or NPM_CONFIG_REGISTRY, '
                        f'{advice}')
    try:
        content = fetch_by_npm(npm) if npm else fetch_from(registry)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        reason = str(error).strip().partition('\n')[0]
        raise UserError(f'the npm package {PACKAGE} {VERSION} cannot be fetched ({reason}), {advice}') from None
    if not is_the_package(content):
        raise UserError(f'what was fetched as the npm package {PACKAGE} {VERSION} has another sha512, {advice}')
    with replacing(target) as aside:
        aside.write_bytes(content)


def fetch_by_npm(npm: str) -> bytes:
    """Return the package as npm fetches it, by its own configuration. Raises OSError or SubprocessError."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([npm, 'pack', f'{PACKAGE}@{VERSION}', '--ignore-scripts', '--pack-destination', folder],
                              cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding='utf-8',
                              errors='replace', timeout=FETCH_SECONDS)
        file = Path(folder, file_name())
        if not file.is_file():
            errors = [line for line in done.stderr.splitlines() if 'ERR' in line or 'error' in line]
            raise OSError(errors[0] if errors else f'npm ended with code {done.returncode}')
        return file.read_bytes()


def fetch_from(registry: str) -> bytes:
    """Return the package of a registry. Raises OSError or ValueError."""
    address = f'{registry.rstrip("/")}/{PACKAGE}/-/{file_name()}'
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()
