"""classifier.html in a real browser: the same pixels, the same answers, and nothing leaves the page."""
import base64
import csv
import functools
import http.server
import io
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import odd_pictures
import pytest
import torch
from helpers import ROOT, scene, untrained
from PIL import Image

from common.data.images import BadImage, open_image
from common.data.transforms import Transform, eval_transform, fit, least_side
from common.evaluation.predictor import Predictor, load_network
from common.evaluation.report import table_row
from common.reporting.tables import Tables
from common.runtime.errors import UserError
from extras.deploy import runtime
from extras.deploy.export import classifier_of, metadata_of, put_preprocessing_before, write_network
from extras.deploy.measure import Measurement
from extras.deploy.page import PageContent, write_page
from models import restore_model

pytestmark = pytest.mark.slow  # the page is built with a whole volo_d1, and a browser starts

WORKER = ROOT / 'extras' / 'deploy' / 'browser' / 'worker.js'
CLASSES = ['a', '<script>document.title = 1</script><img src=x onerror=alert(1)>', '=cmd|calc']
TALL = {'(49, 65)', '(200, 301)'}  # Pillow 13 resizes some such images down first
# What Pillow reads and no browser does.
PILLOWS_OWN = {'tif', 'ppm', 'tga', 'pcx', 'sgi', 'dds', 'jp2', 'qoi', 'im', 'heic', 'icns', 'dib'}


@pytest.fixture(scope='module')
def chromium():
    """A headless Chromium."""
    sync_api = pytest.importorskip('playwright.sync_api', reason='the package playwright is not installed')
    path = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    if path is None:
        pytest.skip('there is no Chromium')
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[
            '--no-sandbox', '--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def page_file(tmp_path_factory):
    """classifier.html of a small network that names noise with any of its classes; its checkpoint lies beside it."""
    pytest.importorskip('onnxscript')
    package = ROOT / '.cache' / runtime.file_name()
    try:
        found = runtime.read_runtime(str(package) if package.exists() else None, webgpu=False)
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp('page')
    known = {'mean': np.zeros(48), 'precision': np.eye(48) * 0.5, 'share': np.array(0.01),
             'squares': np.linspace(35, 42.4, 50)}
    outliers = {name: torch.tensor(value).float() for name, value in known.items()}
    untrained(folder / 'x.pth', CLASSES, seed=1, size=48, outliers=outliers, best={'temperature': 1.5})
    saved = load_network(folder / 'x.pth')
    net = restore_model(saved).eval()
    transform = Transform.from_dict(saved['transform'])
    write_network(classifier_of(saved, net), transform.img_size, metadata_of(saved), folder / 'x.onnx')
    network = folder / 'x_pictures.onnx'
    put_preprocessing_before(folder / 'x.onnx', transform, metadata_of(saved), network, folder)
    measured = Measurement(network.name, 1, 50, 0.996, 0.9, 1.)
    write_page(folder / 'classifier.html', PageContent(network, 'fp32', saved, measured, 0., found))
    return folder / 'classifier.html'


def wait(page, expression, seconds=120):
    """Wait until an expression of JavaScript is true; the page's policy forbids what Playwright does for it."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.05)


@pytest.fixture
def page(chromium, page_file):
    """The page, ready; afterwards nothing was requested, stored or complained of."""
    context = chromium.new_context(locale='en-GB', accept_downloads=True)
    opened = context.new_page()
    seen = []
    opened.on('request', lambda request: seen.append(request.url))
    opened.on('pageerror', lambda error: seen.append(str(error)))
    opened.on('console', lambda message: seen.append(message.text))
    opened.on('dialog', lambda dialog: seen.append(dialog.message))
    opened.goto(page_file.as_uri(), wait_until='commit')
    wait(opened, 'document.body?.dataset.ready')
    assert opened.evaluate('document.body.dataset.ready') == 'wasm'
    yield opened
    assert [text for text in seen if not text.startswith(('blob:', page_file.as_uri()))] == []
    assert context.storage_state() == {'cookies': [], 'origins': []}
    context.close()


def choose(page, paths):
    """Give files to the page by its own button; return its rows."""
    before = page.evaluate('entries.length')
    with page.expect_file_chooser() as chooser:
        page.click('#choose')
    chooser.value.set_files([str(path) for path in paths])
    wait(page, f'entries.length === {before + len(paths)} && !isWorking')
    return page.evaluate(f'entries.slice({before}).map(entry => entry.row)')


def reads(chromium, transform, files):
    """Return {name: pixels (H, W, 3), or why not} that worker.js makes of {name: bytes}."""
    page = chromium.new_page()
    page.add_script_tag(path=str(WORKER))
    page.evaluate('given => { settings = given }', {
        'imgSize': transform.img_size, 'interpolation': transform.interpolation, 'crop': transform.crop,
        'atLeast': least_side(transform), 'bitDepth': None})
    found = {}
    for name, content in files.items():
        answer = page.evaluate('''async text => {
            try {
              const pixels = await networkInput(new Blob([fromBase64(text)]))
              let binary = ''
              for (const value of pixels) binary += String.fromCharCode(value)
              return {pixels: btoa(binary)}
            } catch (error) {
              return {refused: error instanceof Refused ? error.message : String(error)}
            }
          }''', base64.b64encode(content).decode())
        if 'pixels' in answer:
            values = np.frombuffer(base64.b64decode(answer['pixels']), np.uint8)
            found[name] = values.reshape(*transform.img_size, 3)
        else:
            found[name] = answer['refused']
    page.close()
    return found


def expected(tmp_path, transform, content):
    """Return the pixels (H, W, 3) that test.py makes of the bytes of an image, or None."""
    (tmp_path / 'image').write_bytes(content)
    try:
        image = open_image(tmp_path / 'image', least_side(transform))
    except BadImage:
        return None
    return np.asarray(fit(transform)(image))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('crop', [None, 0.8, 1.15])
def test_it_resizes_and_crops_as_pillow_does(chromium, tmp_path, interpolation, crop):
    transform = Transform([48, 64], [0.5] * 3, [0.2] * 3, interpolation, crop)
    sizes = ((64, 48), (200, 301), (30, 20), (640, 100), (500, 3), (1, 1), (49, 65), (5000, 7))
    files = {str(size): encoded(scene(3, size), 'PNG') for size in sizes}
    for name, found in reads(chromium, transform, files).items():
        difference = np.abs(found.astype(int) - expected(tmp_path, transform, files[name]))
        assert difference.max() <= (1 if name in TALL else 0), name


def test_a_large_jpeg_comes_smaller_as_for_test_py(chromium, tmp_path):
    transform = Transform([48, 64], [0.5] * 3, [0.2] * 3)
    content = encoded(scene(3, (1500, 1100)), 'JPEG', quality=95)
    [found] = reads(chromium, transform, {'x': content}).values()
    assert np.abs(found.astype(int) - expected(tmp_path, transform, content)).mean() < 1


def test_odd_images_are_the_same_or_refused_alike(chromium, tmp_path):
    transform = Transform([24, 32], [0.5] * 3, [0.2] * 3)
    files = {name: content for name, content in (odd_pictures.good_pictures() | odd_pictures.bad_pictures()
                                                 | odd_pictures.mutated_pictures()).items()
             if name.rpartition('.')[2] not in PILLOWS_OWN}
    known_to_differ = set()
    for name, found in reads(chromium, transform, files).items():
        wanted = expected(tmp_path, transform, files[name])
        if isinstance(found, str) and wanted is None:
            continue
        alike = not isinstance(found, str) and wanted is not None and np.abs(found.astype(int) - wanted).max() <= 2
        if not alike:
            known_to_differ.add(name)
    # Of a damaged file of these kinds one decoder makes what another refuses.
    damaged = {name for name in known_to_differ if name.startswith('mutant') and name.endswith(('.gif', '.webp'))}
    assert known_to_differ == damaged
    assert len(known_to_differ) < 10


def test_what_browsers_cannot_read_is_said(chromium):
    transform = Transform([24, 32], [0.5] * 3, [0.2] * 3)
    files = {name: content for name, content in odd_pictures.good_pictures().items()
             if name.rpartition('.')[2] in PILLOWS_OWN and 'inside' not in name}
    found = reads(chromium, transform, files)
    assert {name: text for name, text in found.items() if text not in ('undecodable', 'unknownFormat')} == {}


def rows_of_test_py(tmp_path, paths, checkpoint):
    """Return the rows of predictions.csv, as the reader of a CSV file has them."""
    tables = Tables(tmp_path)
    rows = []
    for found in Predictor(checkpoint, use_amp=False)(paths):
        rows.append(table_row(found, found.image.name, (0, 0)))
    tables.append_csv(rows)
    return read_csv((tmp_path / 'predictions.csv').read_bytes())


def read_csv(content):
    assert content.startswith('\ufeff'.encode())
    return list(csv.DictReader(io.StringIO(content.decode('utf-8-sig'), newline='')))


def draw(folder):
    """Images of noise, an unreadable one, and one whose name is a formula."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        noise = rng.integers(0, 256, (60 + number, 50, 3)) // (1 + number % 3)
        Image.fromarray(noise.astype(np.uint8)).save(folder / f'{number:02}.png')
    scene(3, (50, 50)).save(folder / '=cmd, "x".png')
    (folder / 'bad.jpg').write_text('no image')
    return sorted(folder.iterdir())


def test_the_csv_is_that_of_test_py(page, page_file, tmp_path):
    paths = draw(tmp_path / 'images')
    choose(page, paths)
    with page.expect_download() as download:
        page.click('#download')
    found = read_csv(Path(download.value.path()).read_bytes())
    wanted = rows_of_test_py(tmp_path, paths, page_file.with_name('x.pth'))
    assert download.value.suggested_filename == 'predictions.csv'
    assert found[0].keys() == wanted[0].keys() and len(found) == len(wanted) == len(paths)
    assert len({row['class'] for row in wanted}) > 2  # two classes, and none of what is unreadable
    assert len({row['certainty'] == row['confidence'] for row in wanted}) == 2
    for row, other in zip(found, wanted, strict=True):
        assert (row['path'], row['class'], bool(row['error'])) == (other['path'], other['class'], bool(other['error']))
        if not row['error']:
            assert float(row['confidence']) == pytest.approx(float(other['confidence']), abs=0.01)
            assert float(row['certainty']) == pytest.approx(float(other['certainty']), abs=0.03)
            assert [item.rpartition(' ')[0] for item in row['top5'].split('; ')] == [
                item.rpartition(' ')[0] for item in other['top5'].split('; ')]


def test_names_are_text(page, tmp_path):
    """The classes of the fixture have one that would run as JavaScript, and so has a file."""
    scene(1, (50, 50)).save(tmp_path / '<img src=x onerror=alert(1)>.png')
    choose(page, list(tmp_path.iterdir()))
    assert page.title() == 'Image classifier'
    assert page.evaluate("document.querySelectorAll('img').length") == 1
    assert page.inner_text('#caption') == '<img src=x onerror=alert(1)>.png'
    assert page.locator('#classes li').all_text_contents() == CLASSES


def test_unknown_is_what_test_py_calls_unknown(page, page_file, tmp_path):
    paths = draw(tmp_path / 'images')
    rows = choose(page, paths)
    certainties = [row['certainty'] for row in rows if not row['error']]
    threshold = round((min(certainties) + max(certainties)) / 2, 2)
    page.evaluate(f"at('unknown-below').value = {threshold}; changeThreshold()")
    shown = page.evaluate("[...at('rows').rows].map(line => line.cells[1].textContent)")
    wanted = [found.label for found in Predictor(page_file.with_name('x.pth'), use_amp=False,
                                                 unknown_below=threshold)(paths)]
    assert [text for text in shown if not text.startswith('The file')] == [label for label in wanted if label]
    assert 0 < wanted.count('unknown') < len(paths)


def test_a_folder_has_its_images_by_path(page, tmp_path):
    for name in ('b/1.png', 'a/2.png', 'a/.hidden.png', 'notes.txt'):
        (tmp_path / 'chosen' / name).parent.mkdir(parents=True, exist_ok=True)
        scene(1, (50, 50)).save(tmp_path / 'chosen' / name, 'PNG')
    page.locator('#folder').set_input_files(tmp_path / 'chosen')
    wait(page, 'entries.length === 2 && !isWorking')
    assert page.evaluate('entries.map(entry => entry.row.path)') == ['a/2.png', 'b/1.png']


def test_a_folder_may_come_in_any_order(page):
    page.evaluate("""() => {
        const files = ['x/b.png', 'x/c/a.png', 'x/a.png'].map(path => {
          const file = new File([], path.split('/').pop())
          Object.defineProperty(file, 'webkitRelativePath', {value: path})
          return file
        })
        addFolder({files})
      }""")
    wait(page, 'entries.length === 3 && !isWorking')
    assert page.evaluate('entries.map(entry => entry.row.path)') == ['a.png', 'b.png', 'c/a.png']


def drop(page, *paths):
    """Let go of files and folders over the page, as a file manager does."""
    protocol = page.context.new_cdp_session(page)
    dragged = {'items': [], 'files': [str(path) for path in paths], 'dragOperationsMask': 1}
    for kind in ('dragEnter', 'dragOver', 'drop'):
        protocol.send('Input.dispatchDragEvent', {'type': kind, 'x': 200, 'y': 200, 'data': dragged})
        if kind == 'dragOver':
            assert page.evaluate("at('sources').classList.contains('over')")
    assert not page.evaluate("at('sources').classList.contains('over')")


def test_images_and_folders_are_dropped(page, tmp_path):
    """A folder's own name is part of its images' only where something else is dropped with it."""
    for name in ('one.png', 'set/b/1.png', 'set/a/2.png', 'set/a/.hidden.png', 'set/notes.txt'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        scene(1, (50, 50)).save(tmp_path / name, 'PNG')
    (tmp_path / 'empty').mkdir()
    drop(page, tmp_path / 'set')
    wait(page, 'entries.length === 2 && !isWorking')
    drop(page, tmp_path / 'one.png', tmp_path / 'set')
    wait(page, 'entries.length === 5 && !isWorking')
    assert page.evaluate('entries.map(entry => entry.row.path)') == [
        'a/2.png', 'b/1.png', 'one.png', 'set/a/2.png', 'set/b/1.png']
    drop(page, tmp_path / 'empty')
    wait(page, "!at('problem').hidden")
    assert page.inner_text('#problem') == 'There are no images in it.'


HANDLES = 'DataTransferItem.prototype.getAsFileSystemHandle'


@pytest.mark.parametrize('change', ['', f'delete {HANDLES}', f'{HANDLES} = () => Promise.reject(new Error())'])
def test_a_large_folder_is_dropped_whole(chromium, page_file, tmp_path, change):
    """With handles, and without, as in Firefox, where a hundred names come at a time. Chromium can do the latter on a
    page from a server.
    """
    (tmp_path / 'set' / 'below').mkdir(parents=True)
    names = ['below/x.png', *(f'{number:03}.png' for number in range(250))]
    for name in names:
        (tmp_path / 'set' / name).write_bytes(b'')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=page_file.parent)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        opened = chromium.new_page()
        opened.goto(f'http://127.0.0.1:{server.server_port}/{page_file.name}', wait_until='commit')
        wait(opened, 'document.body?.dataset.ready')
        opened.evaluate(f'() => {{ {change} }}')
        drop(opened, tmp_path / 'set')
        wait(opened, 'entries.length === 251 && !isWorking')
        assert sorted(opened.evaluate('entries.map(entry => entry.row.path)')) == sorted(names)
        opened.close()
        server.shutdown()


def test_where_it_looked(page, page_file, tmp_path):
    """The picture is darkened where the class token does not look, once the button is pressed."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 48, 3), np.uint8))
    image.save(tmp_path / 'tall.png')
    choose(page, [tmp_path / 'tall.png'])
    assert page.is_hidden('#map')
    page.click('#look')
    assert page.is_visible('#map') and page.get_attribute('#look', 'aria-pressed') == 'true'
    saved = load_network(page_file.with_name('x.pth'))
    net = restore_model(saved).eval()
    transform = Transform.from_dict(saved['transform'])
    with torch.inference_mode():
        tokens, _ = net.forward_features(eval_transform(transform)(fit(transform)(image))[None])
        expected = net.class_attention(tokens)[0]
    found = page.evaluate('({...map, data: [...map.data]})')
    assert (found['height'], found['width']) == expected.shape
    assert found['data'] == pytest.approx(expected.flatten().tolist(), abs=1e-4)
    assert page.evaluate("[at('map').width, at('map').height]") == [256, 512]
    middle = np.array(page.evaluate('''() => {
        const pixels = at('map').getContext('2d').getImageData(0, 0, 256, 512).data
        const places = []
        for (let y = 0; y < 3; y++) for (let x = 0; x < 3; x++) {
          const row = Math.round(512 * (y + 0.5) / 3)
          places.push(pixels[4 * (256 * row + Math.round(256 * (x + 0.5) / 3)) + 3])
        }
        return places
      }'''))
    shade = 215 * (1 - expected / expected.max()).flatten().numpy()
    assert middle.argmin() == shade.argmin() and middle[shade.argmin()] < 40 and np.corrcoef(middle, shade)[0, 1] > 0.9
    scene(1, (90, 60)).save(tmp_path / 'wide.png')
    choose(page, [tmp_path / 'wide.png'])
    wait(page, "at('map').width === 512 && at('map').height === 341")
    page.click('#look')
    assert page.is_hidden('#map') and page.get_attribute('#look', 'aria-pressed') == 'false'


def test_what_lies_outside_of_a_crop_is_dark(page, tmp_path):
    scene(1, (90, 60)).save(tmp_path / 'wide.png')
    page.evaluate('settings.crop = 0.8')
    choose(page, [tmp_path / 'wide.png'])
    page.click('#look')
    left, top, width, height = page.evaluate("seenBox(at('map').width, at('map').height)")
    assert (width, height) == pytest.approx((512 * 48 / 90, 512 * 48 / 90), abs=12) and left > 100 and top > 20
    pixels = page.evaluate("[...at('map').getContext('2d').getImageData(0, 0, 512, 341).data]")
    assert [pixels[4 * (512 * y + x) + 3] for x, y in ((2, 170), (510, 170), (256, 2), (256, 338))] == [215] * 4
    assert min(pixels[3::4]) < 40


def test_the_first_image_of_each_choice_is_shown(page, tmp_path):
    for number in range(4):
        scene(number, (50, 50)).save(tmp_path / f'{number}.png')
    for names, shown in ((['0.png'], '0.png'), (['1.png'], '1.png'), (['2.png', '3.png'], '2.png')):
        choose(page, [tmp_path / name for name in names])
        assert page.inner_text('#caption') == shown and page.get_attribute('#picture', 'alt') == shown
    page.click('#live')
    wait(page, "at('bars').children.length === 3")
    choose(page, [tmp_path / '3.png'])
    assert page.inner_text('#caption') == '3.png' and page.evaluate('stream') is None


def slow_down(page):
    """Let each image take half a second longer, as a large network does."""
    page.evaluate('''() => {
        const soon = ask
        ask = async source => {
          await new Promise(resolve => setTimeout(resolve, 500))
          return soon(source)
        }
      }''')


def test_what_is_stopped_or_cleared_does_not_come_back(page, tmp_path):
    for number in range(3):
        scene(number, (50, 50)).save(tmp_path / f'{number}.png')
    choose(page, [tmp_path / '0.png'])
    slow_down(page)
    for button, left, focus in (('#stop', 1, 'clear'), ('#clear', 0, 'choose')):
        page.set_input_files('#files', [tmp_path / '1.png', tmp_path / '2.png'])
        assert page.inner_text('#count') == ('1 of 3 images')
        page.evaluate(f"at('{button[1:]}').hidden = false")  # Clear, too, while an image is in work
        page.click(button)
        assert page.evaluate('document.activeElement.id') == focus
        wait(page, '!isWorking')
        assert page.evaluate('entries.length') == left
        assert page.is_visible('#many') == bool(left)
    assert page.is_hidden('#result')


def test_the_count_is_a_heading(page, tmp_path):
    scene(1, (50, 50)).save(tmp_path / 'x.png')
    choose(page, [tmp_path / 'x.png'])
    assert '1 image' in page.get_by_role('heading').all_inner_texts()


def test_files_in_place_of_a_folder(page):
    """As some phones offer."""
    page.evaluate("addFolder({files: [new File([1], 'a.jpg'), new File([1], 'b.txt')]})")
    wait(page, 'entries.length === 1 && !isWorking')
    assert page.evaluate('entries[0].row.path') == 'a.jpg'


def test_an_image_is_pasted(page):
    page.evaluate('dispatchEvent(new ClipboardEvent("paste", {clipboardData: new DataTransfer()}))')  # of a text
    assert page.is_hidden('#problem')
    page.evaluate("""text => {
        const bytes = Uint8Array.from(atob(text), character => character.charCodeAt(0))
        const data = new DataTransfer()
        data.items.add(new File([bytes], 'image.png', {type: 'image/png'}))
        dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))
      }""", base64.b64encode(encoded(scene(1, (50, 50)), 'PNG')).decode())
    wait(page, 'entries.length === 1 && !isWorking')
    assert page.inner_text('#caption') == 'image.png' and page.inner_text('#answer') in CLASSES


def test_the_camera_gives_an_answer_until_it_is_stopped(page):
    page.click('#live')
    wait(page, "at('bars').children.length === 3")
    assert page.inner_text('#answer') in CLASSES and page.inner_text('#caption').startswith('Live camera')
    page.click('#stop-live')
    assert page.is_hidden('#result') and page.evaluate('stream') is None
    assert page.evaluate('document.activeElement.id') == 'live'


STREAMS = '''() => {
    streams = []
    const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices)
    navigator.mediaDevices.getUserMedia = async wanted => {
      await new Promise(resolve => setTimeout(resolve, 500))  // the question whether it may
      const opened = await open(wanted)
      streams.push(opened)
      return opened
    }
  }'''
ARE_LIVE = "streams.map(opened => opened.getTracks()[0].readyState === 'live')"


def test_only_the_last_camera_stays_on(page, tmp_path):
    page.evaluate(STREAMS)
    page.dblclick('#live')
    wait(page, "at('bars').children.length === 3")
    assert sorted(page.evaluate(ARE_LIVE)) == [False, True] and page.is_hidden('#problem')
    page.click('#stop-live')
    assert page.evaluate(ARE_LIVE) == [False, False]
    scene(1, (50, 50)).save(tmp_path / 'x.png')
    page.click('#live')
    choose(page, [tmp_path / 'x.png'])  # while the browser asks
    wait(page, 'streams.length === 3')
    wait(page, f'!({ARE_LIVE})[2]')
    assert page.inner_text('#caption') == 'x.png' and page.is_hidden('#video')


@pytest.mark.parametrize('settle', ['reject(new Error("interrupted"))', 'resolve()'])
def test_a_camera_that_starts_late_changes_nothing(page, settle):
    """The first one's video begins, or fails to, when the second one is on."""
    page.evaluate(STREAMS)
    page.evaluate(f'''() => {{
        const play = at('video').play.bind(at('video'))
        at('video').play = () => new Promise((resolve, reject) => {{
          settle = () => {settle}
          at('video').play = play
        }})
      }}''')
    page.click('#live')
    wait(page, "typeof settle === 'function'", seconds=20)
    page.click('#live')
    wait(page, "at('bars').children.length === 3")
    page.click('#stop-live')
    page.click('#live')
    page.evaluate('settle()')
    wait(page, "streams.length === 3 && !at('video').hidden && at('sure').textContent !== '…'", seconds=20)
    assert page.evaluate(ARE_LIVE) == [False, False, True] and page.is_hidden('#problem')


def test_the_camera_begins_without_the_answer_before_it(page, tmp_path):
    """And an image that is in work does not stop it."""
    scene(1, (50, 50)).save(tmp_path / 'x.png')
    choose(page, [tmp_path / 'x.png'])
    slow_down(page)
    page.set_input_files('#files', tmp_path / 'x.png')
    page.click('#live')
    wait(page, "at('sure').textContent === '…'")
    assert page.locator('#bars li').count() == 0 and page.inner_text('#caption').startswith('Live camera')
    wait(page, "at('bars').children.length === 3")
    assert page.is_visible('#video') and page.evaluate('entries.length') == 1


def test_another_number_in_this_browser_is_said(chromium, page_file, tmp_path):
    """One that computes the test image otherwise than onnxruntime did when the file was made."""
    text = page_file.read_text(encoding='utf-8')
    start = text.index('"probe": {"logits": [') + len('"probe": {"logits": [')
    (tmp_path / 'wrong.html').write_text(text[:start] + '9' + text[start:], encoding='utf-8')
    opened = chromium.new_page()
    opened.goto((tmp_path / 'wrong.html').as_uri(), wait_until='commit')
    wait(opened, 'document.body?.dataset.ready')
    scene(1, (50, 50)).save(tmp_path / 'x.png')
    choose(opened, [tmp_path / 'x.png'])
    assert 'computes other numbers' in opened.inner_text('#problem')
    opened.close()


def test_a_class_may_be_called_unknown(chromium, page_file, tmp_path):
    text = page_file.read_text(encoding='utf-8')
    for old, new in (('"classes": ["a"', '"classes": ["unknown"'), ('"unknown": "unknown"', '"unknown": "no class"')):
        assert old in text
        text = text.replace(old, new)
    (tmp_path / 'unknown.html').write_text(text, encoding='utf-8')
    scene(1, (50, 50)).save(tmp_path / 'x.png')
    opened = chromium.new_page()
    opened.goto((tmp_path / 'unknown.html').as_uri(), wait_until='commit')
    wait(opened, 'document.body?.dataset.ready')
    choose(opened, [tmp_path / 'x.png'])
    opened.evaluate("at('unknown-below').value = 1; changeThreshold()")
    assert opened.inner_text('#answer') == opened.evaluate("at('rows').rows[0].cells[1].textContent") == 'no class'
    opened.close()


def test_it_speaks_chinese(chromium, page_file):
    context = chromium.new_context(locale='zh-CN')
    opened = context.new_page()
    opened.goto(page_file.as_uri(), wait_until='commit')
    wait(opened, 'document.body?.dataset.ready')
    assert opened.inner_text('#choose') == '选择图片'
    assert opened.evaluate('document.documentElement.lang') == 'zh-Hans'
    keys = opened.evaluate('Object.values(TEXTS).map(table => Object.keys(table).sort())')
    assert keys[0] == keys[1]
    context.close()
