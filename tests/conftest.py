"""Fixtures that several tests use."""
import os
import random
import shutil
import signal
import sys
import threading

import numpy as np
import pytest
import sklearn
import torch
from helpers import ROOT, SEEDLINGS, draw_folder

import makedata

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture(autouse=True)
def the_same_random_numbers():
    """No test passes or fails by luck. One thread, because the threads of a busy machine change sums a little."""
    torch.set_num_threads(1)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """Runs in the tests' own process do not wait until the disk has what they write: some disks take seconds."""
    monkeypatch.setattr(os, 'fsync', lambda file: None)
    monkeypatch.setattr('common.runtime.files.sync_file_system', lambda path: True)


class HiddenExtras:
    """A finder of modules that finds no extra but one; with None, no extra at all."""

    def __init__(self, own: str | None):
        self.own = own

    def hides(self, module: str) -> bool:
        package, _, rest = module.partition('.')
        return package == 'extras' and rest.partition('.')[0] not in ('', self.own)

    def find_spec(self, name, path=None, target=None):
        if self.hides(name):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


@pytest.fixture(autouse=True, scope='module')
def no_other_extra(request):
    """A test of an extra runs as if there were no other extra, a test of the core as if there were none."""
    folders = request.path.relative_to(ROOT).parts
    finder = HiddenExtras(folders[1] if folders[0] == 'extras' else None)
    with pytest.MonkeyPatch.context() as patch:
        for name in list(sys.modules):
            if finder.hides(name):
                patch.delitem(sys.modules, name)
                package = sys.modules.get(name.rpartition('.')[0])
                patch.delattr(package, name.rpartition('.')[2], raising=False)
        patch.setattr(sys, 'meta_path', [finder, *sys.meta_path])
        yield


@pytest.fixture(autouse=True)
def signals_as_in_a_terminal():
    """Whoever starts the tests in the background, or under nohup, has their processes ignore Ctrl-C or SIGHUP."""
    usual = {'SIGINT': signal.default_int_handler, 'SIGHUP': signal.SIG_DFL, 'SIGTERM': signal.SIG_DFL}
    before = {}
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        for name, handler in usual.items():
            if hasattr(signal, name):
                before[name] = signal.signal(getattr(signal, name), handler)
    yield
    for name, handler in before.items():
        signal.signal(getattr(signal, name), handler)


@pytest.fixture
def seedlings():
    if not SEEDLINGS.is_dir():
        pytest.skip('set SEEDLINGS to a folder of the Plant Seedlings photographs')
    return SEEDLINGS


@pytest.fixture
def quick(monkeypatch):
    """Runs in the tests' own process draw nothing and do not work out what an update costs: most of their time."""
    monkeypatch.setattr('common.training.setup.work_out_cost', lambda *arguments: None)
    for name in ('plot_training', 'plot_confusion', 'plot_reliability'):
        monkeypatch.setattr(f'common.training.log.{name}', lambda *arguments: None)
    monkeypatch.setattr('common.training.page.RunPage.write', lambda *arguments: None)
    with sklearn.config_context(skip_parameter_validation=True):
        yield


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """data/train with 20 images of two classes and data/val with 8, in a folder that is the current one."""
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / 'data' / 'train', {'a': 10, 'b': 10})
    draw_folder(tmp_path / 'data' / 'val', {'a': 4, 'b': 4}, seed=1)
    return tmp_path / 'data'


@pytest.fixture
def data(quick, folder):
    """The same for quick runs."""
    return folder


@pytest.fixture
def source(tmp_path, monkeypatch):
    """data1 in the current folder, of noise that looks alike: near-duplicates have tests of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(makedata, 'NEAR_DUPLICATES', False)
    return draw_folder(tmp_path / 'data1', {'a': 20, 'b': 10})


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api')
    if not CHROMIUM:
        pytest.skip('there is no Chromium: apt-get install chromium')
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def show(browser):
    """A function that opens a file and checks what holds for every page; what goes wrong later is in its `problems`."""
    opened = []
    local = ('file:', 'data:', 'blob:')

    def show(path, width=1200, scheme='light', **options):
        context = browser.new_context(viewport={'width': width, 'height': 900}, color_scheme=scheme, **options)
        opened.append(context)
        view = context.new_page()
        problems = []
        view.problems = problems

        def dismissed(dialog):
            problems.append(dialog.message)
            dialog.dismiss()

        def requested(request):
            if not request.url.startswith(local):
                problems.append(request.url)

        view.on('console', lambda message: problems.append(message.text))
        view.on('pageerror', lambda error: problems.append(str(error)))
        view.on('dialog', dismissed)
        view.on('request', requested)
        view.goto(path.resolve().as_uri())
        view.wait_for_function('document.querySelectorAll("[data-figure]").length'
                               ' === document.querySelectorAll("[data-figure] .main-svg:first-child").length')
        assert not problems
        assert view.evaluate('[...document.images].every(image => image.naturalWidth > 0)')
        assert view.evaluate('document.documentElement.scrollWidth') <= width  # nothing sticks out
        return view

    yield show
    for context in opened:
        context.close()
