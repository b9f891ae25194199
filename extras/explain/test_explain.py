"""EXPLAIN of test.py: drawings beside the tables and in the page."""
import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import draw_folder, files_below, untrained
from PIL import Image

import models
import test
from common import settings
from common.data.folders import Files
from common.data.sources import STANDARD_INPUT, Source
from common.runtime.errors import UserError
from common.runtime.names import BadName
from extras.explain import drawing_files


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """photos/a and photos/b with two images each and an unreadable one, beside x.pth."""
    monkeypatch.chdir(tmp_path)
    untrained('x.pth')
    draw_folder(tmp_path / 'photos', {'a': 2, 'b': 2})
    (tmp_path / 'photos' / 'b' / '7.png').write_text('no image')


def predict(*arguments):
    return test.main(settings.read(test, ['--test-dir', 'photos', '--num-workers', '0', '--explain', *arguments]))


def test_every_readable_image_has_a_drawing(photos):
    """As wide as three images, which differ, and shown on the page."""
    with pytest.raises(SystemExit):
        predict('--checkpoint', 'x.pth', '--batch-size', '2')
    folder = Path('predictions/explain')
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    assert files == [folder / f'{name}.png' for name in ('a/000.png', 'a/001.png', 'b/000.png', 'b/001.png')]
    sheet = Image.open(files[0])
    assert sheet.width == 3 * 256 and sheet.height > 256
    assert len({np.asarray(sheet)[20:, first:first + 256].tobytes() for first in (0, 256, 512)}) == 3
    page = Path('predictions/report.html').read_text(encoding='utf-8')
    section = page.partition('<section id="explain">')[2]
    assert section.count('<figure class="wide">') == 4


def test_only_a_volo_can_be_explained(photos):
    saved = torch.load('x.pth', weights_only=True)
    state = models.create_model('resnet18', num_classes=3, img_size=[32, 32]).state_dict()
    torch.save({**saved, 'model': 'resnet18', 'model_kwargs': {}, 'state_dict': state}, 'other.pth')
    with pytest.raises(UserError, match='EXPLAIN: resnet18 is no VOLO, set it to False'):
        predict('--checkpoint', 'other.pth')
    assert not Path('predictions/predictions.csv').exists()


def test_drawings_of_a_list_lie_in_the_folder_and_replace_no_image(photos, monkeypatch):
    """Wherever the images lie, each has a drawing of its own, and the page shows it."""
    Path('photos/a/000.png').rename('photos/000.png.png')  # where the drawing of photos/000.png would lie beside it
    Path('photos/b/000.png').rename('photos/000.png')
    before = files_below(Path('photos'))
    listed = [Path('photos/000.png').resolve(), 'photos/a/../b/001.png', 'photos/a/001.png']
    monkeypatch.setattr('sys.stdin', SimpleNamespace(buffer=io.BytesIO('\n'.join(map(str, listed)).encode())))
    predict('--checkpoint', 'x.pth', '--test-dir', '-')
    assert files_below(Path('photos')) == before
    drawn = files_below(Path('predictions/explain'))
    assert [*sorted(drawn)] == ['000.png.png', '001.png (2).png', '001.png.png'] and len({*drawn.values()}) == 3
    section = Path('predictions/report.html').read_text(encoding='utf-8').partition('<section id="explain">')[2]
    assert section.count('<figure class="wide">') == 3


def test_no_two_drawings_have_one_file():
    """Not even where an image is named as the drawing of another one, or letter case alone differs."""
    source = Source(STANDARD_INPUT, Files, None)
    names = ['a/x', 'b/x', 'x', 'c/x (2)', 'X', 'b/x']
    files = drawing_files(Path('out'), source, names)
    assert [*files] == names[:-1] and {path.parent for path in files.values()} == {Path('out')}
    assert len({path.name.casefold() for path in files.values()}) == 5
    with pytest.raises(BadName):
        drawing_files(Path('out'), Source('photos', Files('photos'), 1), ['../../x'])
