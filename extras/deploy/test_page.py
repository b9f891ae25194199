"""classifier.html as text, and the runtime that it carries: what needs no browser and no network connection."""
import base64
import dataclasses
import gzip
import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import untrained

from common.evaluation.predictor import load_network
from common.runtime.errors import UserError
from extras.deploy import __main__ as deploy
from extras.deploy import page, runtime
from extras.deploy.measure import Measurement
from extras.deploy.page import PageContent, write_page
from extras.deploy.runtime import Runtime

CLASSES = ['a</script><script>alert(1)</script>', 'b', '种']


@pytest.fixture
def content(tmp_path, monkeypatch):
    monkeypatch.setattr(page, 'probe', lambda network, img_size: np.array([1., 2., 4.]))
    (tmp_path / 'x.onnx').write_bytes(b'network' * 1000)
    untrained(tmp_path / 'x.pth', CLASSES, best={'temperature': 2.})
    measured = Measurement('x.onnx', 7000, 18, 0.989, 0.9, 1.)
    return PageContent(tmp_path / 'x.onnx', 'int8', load_network(tmp_path / 'x.pth'), measured, 0.5,
                       Runtime(b'module', b'wasm'))


def test_the_page_has_all_that_it_needs(tmp_path, content, monkeypatch):
    monkeypatch.setattr(page, 'PART_BYTES', 30)
    write_page(tmp_path / 'classifier.html', content)
    text = (tmp_path / 'classifier.html').read_text(encoding='utf-8')
    payloads = {}
    size = 0
    for name, part in re.findall(r'<script type="text/plain" data-payload="(\w+)">(.*?)</script>', text):
        payloads[name] = payloads.get(name, b'') + base64.b64decode(part)
        size += len(part)
    unpacked = {name: gzip.decompress(data) for name, data in payloads.items()}
    assert unpacked == {'runtime': b'module', 'wasm': b'wasm', 'network': b'network' * 1000}
    settings = json.loads(re.search(r'id="settings">(.*?)</script>', text)[1])
    assert settings['classes'] == CLASSES and settings['temperature'] == 2 and settings['unknownBelow'] == 0.5
    assert settings['agreement'] == 0.989 and settings['payloadSize'] == size
    assert 'alert(1)</script>' not in text and 'Copyright (c) Microsoft Corporation' in text


def test_the_page_runs_its_own_code_alone(tmp_path, content):
    """The policy has the hashes of the style and of the one script that is not data; nothing is loaded."""
    write_page(tmp_path / 'classifier.html', content)
    text = (tmp_path / 'classifier.html').read_text(encoding='utf-8')
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1].replace('&#39;', "'")
    for tag in ('script', 'style'):
        [code] = re.findall(rf'<{tag}>(.*?)</{tag}>', text, re.S)
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none';") and 'connect-src' not in policy
    assert not re.search(r'(src|href)="(?!data:,")', text.partition('<script')[0])


def test_weights_of_floating_point_may_use_webgpu(content):
    assert not page.page_settings(content, 1)['webgpu']
    assert page.page_settings(dataclasses.replace(content, weights='fp16'), 1)['webgpu']


def test_a_class_called_unknown_is_no_answer_of_nothing(content):
    """The page says what test.py says then."""
    saved = {**content.saved, 'classes': ['cat', 'unknown']}
    assert page.page_settings(dataclasses.replace(content, saved=saved), 1)['unknown'] == 'unknown (no class)'
    assert page.page_settings(content, 1)['unknown'] == 'unknown'


def package(monkeypatch):
    """The bytes of an npm package that counts as the right one."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w:gz') as archive:
        for name in ('ort.wasm.bundle.min.mjs', 'ort-wasm-simd-threaded.wasm', 'ort.webgpu.bundle.min.mjs',
                     'ort-wasm-simd-threaded.asyncify.wasm'):
            entry = tarfile.TarInfo(f'package/dist/{name}')
            entry.size = len(name)
            archive.addfile(entry, io.BytesIO(name.encode()))
    monkeypatch.setattr(runtime, 'SHA512', base64.b64encode(hashlib.sha512(file.getvalue()).digest()).decode())
    return file.getvalue()


def test_a_package_by_hand(tmp_path, monkeypatch):
    (tmp_path / 'x.tgz').write_bytes(package(monkeypatch))
    found = runtime.read_runtime(str(tmp_path / 'x.tgz'), webgpu=False)
    assert found == (b'ort.wasm.bundle.min.mjs', b'ort-wasm-simd-threaded.wasm')
    assert b'webgpu' in runtime.read_runtime(str(tmp_path / 'x.tgz'), webgpu=True).module
    (tmp_path / 'x.tgz').write_bytes(b'another')
    with pytest.raises(UserError, match='its sha512 is another'):
        runtime.read_runtime(str(tmp_path / 'x.tgz'), webgpu=False)
    with pytest.raises(UserError, match='y.tgz.*cannot be read'):
        runtime.read_runtime(str(tmp_path / 'y.tgz'), webgpu=False)


def test_it_is_fetched_once_from_the_registry(tmp_path, monkeypatch):
    content = package(monkeypatch)
    asked = []

    def open_address(address, timeout):
        asked.append(address)
        return io.BytesIO(content)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('NPM_CONFIG_REGISTRY', 'http://registry/')
    monkeypatch.setattr(runtime.shutil, 'which', lambda name: None)
    monkeypatch.setattr(runtime.urllib.request, 'urlopen', open_address)
    for _ in range(2):
        assert runtime.read_runtime(None, webgpu=False).wasm == b'ort-wasm-simd-threaded.wasm'
    assert asked == [f'http://registry/onnxruntime-web/-/onnxruntime-web-{runtime.VERSION}.tgz']
    Path('.cache', runtime.file_name()).write_bytes(content[:50])  # what a crash left
    assert runtime.read_package(None) == content and len(asked) == 2


def test_npm_fetches_it(tmp_path, monkeypatch):
    content = package(monkeypatch)

    def run(command, cwd, **options):
        assert command[:3] == ['/usr/bin/npm', 'pack', f'onnxruntime-web@{runtime.VERSION}']
        Path(cwd, runtime.file_name()).write_bytes(content)
        return SimpleNamespace(stderr='', returncode=0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime.shutil, 'which', lambda name: '/usr/bin/npm')
    monkeypatch.setattr(runtime.subprocess, 'run', run)
    assert runtime.read_package(None) == content


@pytest.mark.parametrize('npm', [None, '/usr/bin/npm'])
def test_without_a_connection_there_is_a_line(tmp_path, monkeypatch, capsys, npm):
    """It says what to do, and the other files are written all the same."""
    def run(command, **options):
        if npm is None:
            raise AssertionError
        return subprocess.CompletedProcess(command, 1, '', 'npm error code ENOTFOUND\nnpm error network')

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('NPM_CONFIG_REGISTRY', raising=False)
    monkeypatch.setattr(runtime.shutil, 'which', lambda name: npm)
    monkeypatch.setattr(runtime.subprocess, 'run', run)
    assert deploy.find_runtime(SimpleNamespace(PAGE='int8', RUNTIME=None)) is None
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith('warning: ')]
    assert 'cannot be fetched' in line and '--runtime onnxruntime-web-' in line
    assert ('ENOTFOUND' in line) == (npm is not None)


def test_something_else_from_the_registry_is_refused(tmp_path, monkeypatch):
    package(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('NPM_CONFIG_REGISTRY', 'http://registry')
    monkeypatch.setattr(runtime.shutil, 'which', lambda name: None)
    monkeypatch.setattr(runtime.urllib.request, 'urlopen', lambda address, timeout: io.BytesIO(b'<html>'))
    with pytest.raises(UserError, match='another sha512'):
        runtime.read_package(None)
    assert list(Path('.cache').iterdir()) == []


def test_settings_that_do_not_fit_get_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    untrained('x.pth')
    for arguments, words in ((['--page', 'int4'], "PAGE = 'int4': choose 'int8'"),
                             (['--unknown-below', '2'], 'UNKNOWN_BELOW = 2')):
        with pytest.raises(UserError, match=words):
            deploy.main(deploy.settings.read(deploy, ['--checkpoint', 'x.pth', *arguments]))
