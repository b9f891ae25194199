"""report.html in a real browser: nothing fails, nothing comes from a network, and it can be worked with."""
import base64
import csv
import html
import io
import itertools
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from helpers import build, draw_folder, read_json, run
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import test
from common import settings
from common.data.split import SPLIT_COLUMNS
from common.evaluation.metrics import scores
from common.evaluation.report import build_report
from common.reporting import page
from common.runtime.errors import UserError
from common.training.losses import LossModel
from common.training.page import RunPage, find_twins, open_image

NAMES = ["Fat Hen's <script>alert(1)</script>", '玉米 "Mais" & <b>co</b>', '{{ 7 * 7 }} $x$', '</script>=cmd']


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A small run on classes with names that are not easily shown, predictions for val and for a flat folder."""
    folder = tmp_path_factory.mktemp('project')
    names = [name.replace('/', '∕') for name in NAMES]
    draw_folder(folder / 'data' / 'train', dict.fromkeys(names, 8), size=(40, 48))
    draw_folder(folder / 'data' / 'val', dict.fromkeys(names, 8), size=(40, 48), seed=1)
    write_split(folder / 'data', [(f'train/{names[0]}/000.png', names[0]), (f'val/{names[2]}/001.png', names[2])])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(epochs=2, cutout=1)
        predict()
        (folder / 'flat').mkdir()
        for number, path in enumerate(sorted((folder / 'data' / 'val').rglob('*.png'))):
            shutil.copy(path, folder / 'flat' / f'{number}.png')
        (folder / 'flat' / '7.png').write_text('no image')
        with pytest.raises(SystemExit):
            predict('--test-dir', 'flat', '--output-dir', 'classified')
    return folder


def predict(*arguments):
    test.main(settings.read(test, ['--checkpoint', 'out/best.pth', '--num-workers', '0', *arguments]))


def write_split(data_dir, twins, **of_split):
    """What makedata.py would have written of pictures that are the same, and of two others."""
    rows = [(file, f'data1/{file}', name, file.partition('/')[0], '7', '') for file, name in twins]
    rows += [('train/x/1.png', 'x', 'x', 'train', '8', ''), ('train/x/2.png', 'x', 'x', 'train', '8', '')]
    (data_dir / 'split.json').write_text(json.dumps({'settings': of_split}), encoding='utf-8')
    with open(data_dir / 'split.csv', 'w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([SPLIT_COLUMNS, *rows])


def synthetic(path, classes, count=600):
    """A page of random predictions for so many classes."""
    generator = torch.Generator().manual_seed(1)
    names = [f'class {number}' for number in range(classes)]
    targets = torch.arange(count) % classes
    logits = torch.randn(count, classes, generator=generator)
    logits[range(count), targets] += 3
    report = build_report(scores(logits, targets, names), logits, targets, logits.softmax(1).amax(1),
                          [f'{names[target]}/{number}.jpg' for number, target in enumerate(targets)], names)
    picture = page.as_uri(Image.fromarray(np.random.default_rng(1).integers(0, 255, (300, 200, 3), np.uint8)))
    history = [{'epoch': epoch, 'train_loss': 3 / epoch, 'raw_loss': 2., 'ema_loss': None, 'train_acc1': 30.,
                'raw_acc1': 10. * epoch, 'ema_acc1': None, 'lr': 1e-4, 'grad_norm': None} for epoch in (1, 2, 3)]
    page.write_page(path, 'A page', 'of random predictions', page.headline_tiles(report, 'on noise'),
                    [*page.curve_sections(history), *page.report_sections(report, lambda name: picture)])
    return report


@pytest.mark.parametrize('file, sections', [
    ('out', ['curves', 'confusion', 'classes', 'confidence', 'mistakes', 'doubtful', 'suspects', 'twins', 'batch',
             'settings']),
    ('predictions', ['confusion', 'classes', 'confidence', 'mistakes', 'doubtful', 'suspects'])])
def test_the_pages_of_a_run(project, show, file, sections):
    view = show(project / file / 'report.html')
    there = view.evaluate('[...document.querySelectorAll("section")].map(section => section.id)')
    assert [name for name in sections if name not in ('mistakes', 'doubtful', 'suspects')] == [
        name for name in there if name not in ('mistakes', 'doubtful', 'suspects')]
    assert set(view.evaluate('[...document.querySelectorAll("#classes td:first-child")].map(cell => cell.textContent)')
               ) == {name.replace('/', '∕') for name in NAMES}
    assert view.evaluate('[...document.querySelectorAll("nav a")].every(a => document.querySelector(a.hash))')


def test_images_of_unknown_class_have_a_page_too(project, show):
    """A flat folder with an unreadable file."""
    view = show(project / 'classified' / 'report.html')
    assert view.locator('#predictions figure').count() == 31


def test_the_page_says_what_the_run_was(project, show):
    result = json.loads((project / 'out' / 'result.json').read_text(encoding='utf-8'))
    text = show(project / 'out' / 'report.html').evaluate('document.body.textContent')
    for part in (f'{result["best"]["acc1"]:.1f} %', f'epoch {result["best"]["epoch"]}', '95 % interval', 'from scratch',
                 'of 4 classes', result['fingerprint'], result['torch'], 'MIXUP_PROB', 'PFLOP'):
        assert part in text


def test_augmented_images_are_those_that_the_network_saw(project, show):
    """A box on all of them, in a batch of eight; beside each its original."""
    view = show(project / 'out' / 'report.html')
    assert view.locator('#batch figure').count() == 8
    assert view.locator('#batch figure img').count() == 16
    assert 'first batch of epoch' in view.locator('#batch p').text_content()


def test_the_batch_of_the_page_is_the_one_of_the_training(folder, monkeypatch):
    """The first of the last epoch, mixed and with boxes, but for what JPEG makes of it."""
    seen, sections, real = [], [], LossModel.forward

    def forward(model, images, targets):
        seen.append(images)
        return real(model, images, targets)

    monkeypatch.setattr(LossModel, 'forward', forward)
    monkeypatch.setattr('common.training.page.write_page', lambda *arguments: sections.extend(arguments[-1]))
    run(epochs=2, mixup_prob=1, cutout=1)
    batch = next(section for section in sections[::-1] if section['name'] == 'batch')
    transform = read_json('out/result.json')['transform']
    mean, std = (np.array(transform[name])[:, None, None] for name in ('mean', 'std'))
    for picture, image in zip(batch['pictures'], seen[2], strict=True):  # two batches of eight in an epoch
        shown = Image.open(io.BytesIO(base64.b64decode(picture['images'][1].partition(',')[2])))
        expected = 255 * (image.numpy() * std + mean).clip(0, 1).transpose(1, 2, 0)
        assert abs(np.asarray(shown, float) - expected).mean() < 12


def test_the_same_image_in_two_classes_is_shown(project, show, tmp_path):
    figures = show(project / 'out' / 'report.html').locator('#twins figure')
    assert figures.count() == 2
    names = [name.replace('/', '∕') for name in NAMES]
    assert figures.nth(0).locator('div').nth(1).text_content() == names[0]
    assert figures.nth(1).locator('div').nth(1).text_content() == names[2]
    assert 'unless they only look alike' in (project / 'out' / 'report.html').read_text(encoding='utf-8')
    for grouped in ({'GROUP': 'folder'}, {'LABELS': 'labels.csv'}):  # such groups need not be alike
        write_split(tmp_path, [('train/a/1.png', 'a'), ('val/b/1.png', 'b')], **grouped)
        assert find_twins(tmp_path) == []
    (tmp_path / 'split.json').unlink()
    assert find_twins(tmp_path) == []


def test_a_page_takes_its_share_of_the_time_and_no_more(data, monkeypatch):
    """The first one, always the last one, and between them while all together took less than a share of the run."""
    written = []
    monkeypatch.setattr(RunPage, 'write', lambda page, history: written.append(len(history)))
    for share, epochs in ((0, [1, 4]), (1e9, [1, 2, 3, 4])):
        monkeypatch.setattr('common.training.page.TIME_SHARE', share)
        written.clear()
        run(epochs=4)
        assert written == epochs


def test_a_page_that_cannot_be_made_is_a_warning(data, monkeypatch, capsys):
    monkeypatch.undo()
    monkeypatch.chdir(data.parent)
    monkeypatch.setitem(sys.modules, 'plotly', None)  # an environment that is older than the page
    run()
    assert 'warning: out/report.html could not be made (ModuleNotFoundError' in capsys.readouterr().out
    predict()
    assert 'warning: predictions/report.html could not be made' in capsys.readouterr().out
    assert (data.parent / 'predictions' / 'predictions.csv').exists()


def test_no_script_runs_that_is_not_the_pages_own(tmp_path, show):
    """Should a name of a file or class ever become an element, the browser refuses it, and every address outside."""
    synthetic(tmp_path / 'x.html', 3)
    view = show(tmp_path / 'x.html')
    refused = view.evaluate("""() => new Promise(resolve => {
      const refused = []
      document.addEventListener('securitypolicyviolation', event => {
        refused.push(event.effectiveDirective)
        if (refused.length === 3) resolve(refused)
      })
      const script = document.createElement('script')
      script.textContent = 'window.hasRun = true'
      const image = new Image()
      image.setAttribute('onerror', 'window.hasRun = true')
      image.src = 'http://localhost:9/'
      document.body.append(script, image)
      setTimeout(() => resolve(refused), 10000)  // so that the test fails where nothing is refused
    })""")
    assert sorted(refused) == ['img-src', 'script-src-attr', 'script-src-elem']
    assert view.evaluate('window.hasRun') is None


def test_a_table_is_sorted_by_a_click(tmp_path, show):
    report = synthetic(tmp_path / 'x.html', 12)
    view = show(tmp_path / 'x.html')

    def column(number):
        return view.evaluate(f'[...document.querySelectorAll("#classes tr td:nth-child({number})")]'
                             '.map(cell => cell.dataset.value ?? cell.textContent)')

    recall = [row['recall'] for row in report['per_class']]
    view.click('#classes th:nth-child(3)')
    assert [float(value) for value in column(3)] == sorted(recall, reverse=True)
    view.click('#classes th:nth-child(3)')
    assert [float(value) for value in column(3)] == sorted(recall)
    view.click('#classes th:first-child')
    assert column(1) == sorted(column(1), reverse=True)


@pytest.mark.parametrize('classes', [12, 200])
@pytest.mark.parametrize('width, scheme', [(1200, 'light'), (1200, 'dark'), (390, 'dark')])
def test_figures_can_be_hovered_over(tmp_path, show, classes, width, scheme):
    synthetic(tmp_path / 'x.html', classes)
    view = show(tmp_path / 'x.html', width, scheme)
    for figure in view.locator('[data-figure]').all():
        figure.scroll_into_view_if_needed()
        area = figure.locator('.nsewdrag').first.bounding_box()
        for across, up in itertools.product((0.97, 0.5, 0.3, 0.7, 0.9, 0.1), (0.04, 0.5, 0.3, 0.7, 0.9)):
            view.mouse.move(area['x'] + across * area['width'], area['y'] + up * area['height'])
            view.wait_for_timeout(60)
            if hovered := figure.locator('.hoverlayer').text_content():
                break
        assert hovered
    background, text = view.evaluate('[getComputedStyle(document.body).backgroundColor,'
                                     'document.querySelector(".main-svg .xtick text").style.fill]')
    dark = {'light': ('rgb(255, 255, 255)', 'rgb(29, 36, 48)'), 'dark': ('rgb(20, 24, 30)', 'rgb(228, 232, 238)')}
    assert (background, text) == dark[scheme]


def test_the_order_of_the_confusions_can_be_changed(tmp_path, show):
    report = synthetic(tmp_path / 'x.html', 12)
    view = show(tmp_path / 'x.html')
    labels = '[...document.querySelectorAll("#confusion .ytick text")].map(text => text.textContent)'
    assert view.evaluate(labels)[::-1] == [row['class'] for row in report['per_class']]  # the axis points down
    view.locator('#confusion .updatemenu-button', has_text='worst first').click()
    by_recall = sorted(report['per_class'], key=lambda row: row['recall'])
    assert view.evaluate(labels)[::-1] == [row['class'] for row in by_recall]
    view.locator('#confusion .updatemenu-button', has_text='counts').click()
    counts = view.evaluate('[...document.querySelectorAll("#confusion .heatmap-label")].map(text => text.textContent)')
    assert not [text for text in counts if '%' in text]


@pytest.mark.parametrize('classes', [43, 200])
def test_every_row_of_the_confusions_has_its_name(tmp_path, show, classes):
    report = synthetic(tmp_path / 'x.html', classes)
    view = show(tmp_path / 'x.html')
    names = view.evaluate('[...document.querySelectorAll("#confusion .ytick text")].map(text => text.textContent)')
    assert names[::-1] == [row['class'] for row in report['per_class']]  # the axis points down
    boxes = view.evaluate('[...document.querySelectorAll("#confusion .ytick text")].map(text => {'
                          'const box = text.getBoundingClientRect(); return [box.top, box.bottom] })')
    assert all(lower[0] > upper[1] - 3 for lower, upper in itertools.pairwise(boxes))  # a line is higher than its text


@pytest.mark.parametrize('count', [2, 40])
def test_long_names_leave_room_for_the_matrix_of_the_page(count):
    names = ['<b>$x' * 40 + str(number) for number in range(count)]
    counts = {name: {name: 1} for name in names}
    [drawn] = page.confusions(counts)['figures']
    figure = json.loads(drawn)
    labels = figure['data'][0]['y']
    assert labels == figure['data'][0]['x'] == figure['layout']['yaxis']['categoryarray'] and len(set(labels)) == count
    assert all(len(html.unescape(label)) <= page.LONGEST_NAME and '<' not in label for label in labels)
    below = 0.8 * 6 * page.LONGEST_NAME  # pixels, at least, of names at 60 degrees
    assert figure['layout']['height'] > 100 + below + max(150, 12 * count)
    assert figure['layout']['yaxis']['dtick'] == 1  # else Plotly may leave names out


def test_of_many_classes_the_confusions_are_listed(tmp_path, show):
    report = synthetic(tmp_path / 'x.html', 201, count=2010)
    rows = show(tmp_path / 'x.html').evaluate('[...document.querySelectorAll("#confusion tbody tr")]'
                                              '.map(row => [...row.cells].map(cell => cell.textContent))')
    wrong = {(true, named): count for true, row in report['confusion'].items() for named, count in row.items()
             if true != named}
    assert len(rows) == 200 and [int(row[2]) for row in rows] == sorted(wrong.values(), reverse=True)[:200]
    for true, named, count, share in rows:
        assert wrong[true, named] == int(count) and float(share) == int(count) / 10


def test_what_fails_is_an_error_of_one_line(tmp_path):
    with pytest.raises(UserError, match=r'x\.html could not be made \(TypeError: .int. object'), page.making(
            tmp_path / 'x.html'):
        page.write_page(tmp_path / 'x.html', 'A page', '', [], [{'name': 'x', 'heading': 'x', 'table': {'rows': [1]}}])
    assert not list(tmp_path.iterdir())


def test_an_image_that_went_is_left_blank():
    def gone(name):
        raise OSError(name)

    assert page.Thumbnails(gone)('x') == ''


def test_an_image_is_read_once():
    read = []

    def open_image(name):
        read.append(name)
        return Image.new('RGB', (9, 9))

    thumbnail = page.Thumbnails(open_image)
    assert thumbnail('x') == thumbnail('x') and thumbnail('y') and read == ['x', 'y']


def test_an_image_that_is_no_longer_shown_takes_no_memory():
    thumbnail = page.Thumbnails(lambda name: Image.new('RGB', (9, 9)))
    for shown in ('ab', 'bc', 'bd'):
        for name in shown:
            thumbnail(name)
        thumbnail.keep_shown()
        assert [*thumbnail.made] == [*shown]


def test_a_run_keeps_the_images_of_its_last_page_alone(folder, monkeypatch):
    """Else it would grow with each epoch until it has all images of the data set."""
    for name in ('log.plot_training', 'log.plot_confusion', 'log.plot_reliability', 'page.write_page'):
        monkeypatch.setattr(f'common.training.{name}', lambda *arguments: None)
    monkeypatch.setattr('common.training.page.TIME_SHARE', 1e9)
    real = RunPage.write
    kept = []

    def write(page, history):
        page.thumbnail.made['of an earlier page'] = ''
        real(page, history)
        kept.append({*page.thumbnail.made})

    monkeypatch.setattr(RunPage, 'write', write)
    run(epochs=2)
    assert len(kept) == 2 and all('of an earlier page' not in names and len(names) >= 8 for names in kept)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF'])
def test_a_thumbnail_has_pixels_alone(kind):
    """Comments and the like of an image file stay there."""
    secret = b'taken at home'
    options = {'comment': secret, 'icc_profile': secret, 'exif': b'Exif\0\0' + secret, 'xmp': secret}
    if kind == 'PNG':
        options = {'pnginfo': PngInfo(), 'icc_profile': secret}
        options['pnginfo'].add_text('comment', secret)
    file = io.BytesIO()
    Image.new('RGB', (300, 200), 'red').save(file, kind, **options)
    assert kind == 'PNG' or secret in file.getvalue()
    uri = page.as_uri(Image.open(file))
    assert secret not in base64.b64decode(uri.partition(',')[2])


def test_twins_lie_in_the_folder_of_the_split(tmp_path):
    twins = [('train/a/1.png', 'a'), ('val/b/1.png', 'b')]
    write_split(tmp_path, twins)
    assert find_twins(tmp_path) == [twins]
    for name in ('train/../../private.png', f'train/{tmp_path}/private.png', f'{tmp_path}/private.png', ''):
        write_split(tmp_path, [*twins, (name, 'a')])
        assert find_twins(tmp_path) == []


def test_images_have_the_names_of_their_files_in_a_set_that_others_split(folder, monkeypatch):
    """Its folders may be called training and valid: what suspects.csv and report.json list can be opened."""
    (folder / 'train').rename(folder / 'training')
    (folder / 'val').rename(folder / 'Valid')
    for name in ('log.plot_training', 'log.plot_confusion', 'log.plot_reliability', 'page.write_page'):
        monkeypatch.setattr(f'common.training.{name}', lambda *arguments: None)
    monkeypatch.setattr('common.evaluation.suspects.Margins.suspects', lambda margins: [(0, 1, -0.5), (19, 0, -0.4)])
    run(epochs=1)
    with open('out/suspects.csv', encoding='utf-8-sig', newline='') as file:
        listed = [row['file'] for row in csv.DictReader(file)]
    report = read_json('out/report.json')
    named = [item['file'] for kind in ('mistakes', 'doubtful', 'suspects') for item in report[kind]]
    named += [file for files in report['typical'].values() for file in files]
    assert {'training/a/000.png', 'training/b/009.png'} <= {*listed} and len(named) >= 8
    assert all((folder / file).is_file() for file in (*listed, *named))
    parts = build()[1]
    assert {open_image(parts, file).size for file in (*listed, *named)} == {(24, 20)}


def test_a_page_shows_images_of_the_data_alone(data, tmp_path):
    """Whatever report.json says, or the split.csv of someone else."""
    Image.new('RGB', (20, 24)).save(tmp_path / 'private.png')
    cfg, parts, state = build()
    shown = RunPage({'settings': vars(cfg)}, state, parts, tmp_path)
    own = os.path.relpath(parts.train.dataset.samples[0][0], parts.train.dataset.root).replace(os.sep, '/')
    assert shown.thumbnail(f'train/{own}')
    for name in ('private.png', f'train/{tmp_path}/private.png', 'train/../../private.png',
                 'val/a/../../../private.png', f'{tmp_path}/private.png', f'../train/{own}', f'test/{own}'):
        with pytest.raises(UserError, match='leads out of this folder|lies neither in train nor in val'):
            open_image(parts, name)
        assert shown.thumbnail(name) == ''
