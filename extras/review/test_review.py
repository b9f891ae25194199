"""What the page asks, in which order, how large it gets, and what it knows of earlier answers."""
import base64
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuzzing import STRANGE, as_csv, cases, confined, not_waited_for, odd_text, put_strange, spoiled_file
from helpers import assert_annotated, classify, draw_folder, split, untrained
from PIL import Image

from common.data.sources import open_source
from common.data.split import SPLIT_COLUMNS
from common.evaluation.metrics import scores
from common.evaluation.predictor import Prediction
from common.evaluation.report import build_report
from common.runtime.errors import UserError
from extras.review import __main__ as first_page
from extras.review import page, pictures, teaching
from extras.review.candidates import MISTAKE, SUSPECT, TWINS, UNSURE, Candidate, Choices, labelled_candidates
from extras.review.corrections import Correction
from extras.review.origin import find_origin
from extras.review.pictures import Pictures, as_jpeg, choose_side
from extras.review.sections import PredictionReview, RunReview

REPORT = {
    'suspects': [{'file': f'val/a/{number}.png', 'class': 'a', 'perhaps': 'b', 'score': -0.9} for number in (3, 1)],
    'mistakes': [{'file': f'val/b/{number}.png', 'class': 'b', 'named': 'c', 'confidence': 0.9} for number in (4, 5)],
    'confusion': {'a': {'a': 5, 'c': 3, 'b': 1}, 'b': {'b': 4}, 'c': {}}, 'typical': {'a': ['val/a/9.png'], 'b': []}}


def noise(name, side):
    return Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (700, 900, 3), np.uint8))


def content(section):
    return json.loads(section['html'].partition('id="review-data">')[2].partition('</script>')[0])


def lines(section):
    """The pictures in a section, in base64."""
    blocks = section['html'].split('<script type="text/plain" class="review-block">')[1:]
    return [line for block in blocks for line in block.partition('</script>')[0].split('\n')]


def test_the_most_valuable_come_first_and_none_twice():
    """Suspects keep the order of the report; a pair that is asked for is no suspect on its own."""
    report = {**REPORT, 'mistakes': [*REPORT['mistakes'], {**REPORT['suspects'][0], 'named': 'b', 'confidence': 0.8}]}
    found = labelled_candidates(report, [['val/a/1.png', 'train/c/2.png']])
    assert [(one.kind, one.files) for one in found] == [
        (TWINS, ['val/a/1.png', 'train/c/2.png']), (SUSPECT, ['val/a/3.png']), (MISTAKE, ['val/b/4.png']),
        (MISTAKE, ['val/b/5.png'])]
    assert found[0].labels == ['a', 'c'] and found[0].probable == ['c'] and found[2].sure == 0.9


def test_the_keys_are_for_the_label_the_suggestion_and_what_is_confused_most():
    choices = Choices(list('abcdefghijkl'), {'a': {'a': 5, 'e': 2, 'g': 7}})
    assert choices.of(Candidate(SUSPECT, ['x'], ['a'], ['f'])) == list('afgebcdhi')
    assert choices.of(Candidate(UNSURE, ['x'], [None], ['k', 'b'])) == list('kbacdefgh')
    assert choices.of(Candidate(TWINS, ['x', 'y'], ['a', 'c'], ['c']))[:2] == ['a', 'c']


@pytest.mark.parametrize('count', [1, 40, 1000])
def test_pictures_fit_into_the_room(count, monkeypatch):
    """Even of noise, which JPEG can hardly compress; the more there are, the smaller they become."""
    monkeypatch.setattr(pictures, 'map_in_threads', lambda function, names, desc: map(function, names))
    drawn = noise('x', 0).resize((120, 90))
    made = Pictures(lambda name, side: drawn).of([str(number) for number in range(count)], 3_000_000)
    assert sum(map(len, made)) <= 3_000_000 and all(made)
    assert max(Image.open(io.BytesIO(base64.b64decode(made[0]))).size) <= 120


def test_the_side_follows_from_the_room():
    photograph = Image.effect_mandelbrot((900, 700), (-2, -1.5, 1, 1.5), 40).convert('RGB')
    sides = [choose_side(most) for most in (10 ** 6, 30_000, 8000, 2400, 100)]
    assert sides == sorted(sides, reverse=True) and sides[0] == 512 and sides[-1] == 96
    for side in sides:
        assert max(Image.open(io.BytesIO(as_jpeg(photograph, side, 10 ** 6))).size) == side
    assert len(as_jpeg(noise('x', 0), 512, 2000)) <= 2000


def test_small_pictures_do_not_carry_large_tables():
    """Of Huffman codes, which would be half of a file of a thousand bytes, and leave the image fewer pixels."""
    photograph = Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 40).convert('RGB')
    usual = io.BytesIO()
    photograph.save(usual, 'JPEG', quality=80)
    assert len(as_jpeg(photograph, 64, 10 ** 6)) < len(usual.getvalue()) - 100


def test_an_image_is_read_once_for_all_pages():
    read = []

    def open_image(name, side):
        read.append(name)
        if name == 'gone':
            raise OSError
        return Image.new('RGB', (9, 9))

    made = Pictures(open_image)
    for _ in range(2):
        assert [bool(picture) for picture in made.of(['x', 'gone', 'x'], 9000)] == [True, False, True]
        made.keep_shown()
    assert read == ['gone', 'x']
    made.of(['x', 'new'], 6000)
    made.keep_shown()
    assert read == ['gone', 'x', 'new'] and {name for name, _ in made.made} == {'x', 'new'}


def test_a_run_keeps_the_pictures_of_its_last_page_alone(tmp_path):
    """Else it would grow with each epoch, by as much as a page takes."""
    found = RunReview(str(tmp_path), ['a', 'b', 'c'], lambda name, side: Image.new('RGB', (9, 9)))
    for number in (1, 2):
        suspect = {'file': f'val/a/{number}.png', 'class': 'a', 'perhaps': 'b', 'score': -0.9}
        assert found.section({**REPORT, 'suspects': [suspect], 'mistakes': []}, [], is_last=False)
    assert {name for name, _ in found.pictures.made} == {'val/a/2.png', 'val/a/9.png'}


def test_a_picture_that_has_become_too_large_is_drawn_again():
    made = Pictures(noise)
    for room in (10 ** 6, 60_000):  # both for the longest side
        [picture] = made.of(['x'], room)
    assert len(picture) <= 60_000 < 10 ** 5 < len(Pictures(noise).of(['x'], 10 ** 6)[0])


def review(files, **options):
    candidates = [Candidate(SUSPECT, [file], ['a'], ['b']) for file in files]
    return page.Review(candidates, ['a', 'b'], Choices(['a', 'b']), {'a': ['t1', 'gone'], 'b': []}, '.', **options)


def test_what_cannot_be_shown_or_written_down_is_left_out():
    """A file that went, one whose name is no Unicode, one that the split does not list, one that is decided."""
    def open_image(name, side):
        if name == 'gone':
            raise OSError
        return Image.new('RGB', (9, 9))

    files = ['1', 'gone', os.fsdecode(b'\xff'), 'other', 'decided', '2']
    section = page.review_section(review(
        files, names={file: f'below/{file}' for file in files if file != 'other'},
        earlier=[Correction('below/decided', 'b', 'a', '', '')]), Pictures(open_image))
    data = content(section)
    assert [item['files'] for item in data['items']] == [['below/1'], ['below/2']]
    assert [item['picture'] for item in data['items']] == [0, 1]
    assert data['typical'] == {'0': [2], '1': []} and len(lines(section)) == 3
    assert page.review_section(review([]), Pictures(open_image)) == {}


def test_the_first_of_too_many_are_shown(monkeypatch):
    section = page.review_section(review([str(number) for number in range(9)]),
                                  Pictures(lambda name, side: Image.new('RGB', (9, 9))), most=5)
    assert len(content(section)['items']) == 5 and '4 more are left for later' in section['note']


def test_names_end_no_element():
    section = page.review_section(review(['</script><b>x']), Pictures(lambda name, side: Image.new('RGB', (9, 9))))
    assert '</script><b>' not in section['html'] and content(section)['items'][0]['files'] == ['</script><b>x']


def test_images_have_the_names_of_their_source(tmp_path, source):
    """Also in a fold; the corrections that the split follows come along."""
    Path('corrections.csv').write_text('file,class,was,when\na/003.png,b,a,then\na/004.png,,a,\n')
    split()
    origin = find_origin(Path('data'))
    assert origin.root == 'data1' and len(origin.names) == 29
    assert {name for file, name in origin.names.items() if file.endswith('b/a/003.png')} == {'a/003.png'}
    assert [one[:4] for one in origin.earlier] == [('a/003.png', 'b', 'a', 'then'), ('a/004.png', '', 'a', '')]
    assert find_origin(tmp_path / 'data1') is None
    (tmp_path / 'data' / 'corrections.csv').write_bytes(b'\xff')
    assert find_origin(Path('data')).earlier == []


SETTINGS = {'made_by': 'makedata.py', 'settings': {'SOURCE_DIR': 'data1', 'LABELS': None}}
LISTING = [[*SPLIT_COLUMNS], *([f'train/a/{number}.png', f'data1/a/{number}.png', 'a', 'train', '', '0' * 64, '']
                               for number in range(2))]
CORRECTED = [['file', 'class', 'was', 'when'], ['a/0.png', 'b', 'a', 'then'], ['a/1.png', '', 'a', '']]


def write_origin(folder, **contents):
    """Write what makedata.py would have written, or other bytes."""
    good = {'split.json': json.dumps(SETTINGS), 'split.csv': as_csv(LISTING), 'corrections.csv': as_csv(CORRECTED)}
    for name, text in good.items():
        (folder / name).write_bytes(contents.get(name, text.encode()))


@cases(100)
def test_fuzz_the_origin_of_a_split(tmp_path_factory, random):
    """It is known, or not."""
    folder = tmp_path_factory.getbasetemp() / 'origin'
    folder.mkdir(exist_ok=True)
    spoil = {'split.json': lambda: spoiled_file(random, SETTINGS),
             'split.csv': lambda: spoiled_file(random, LISTING, as_csv, odd_text),
             'corrections.csv': lambda: spoiled_file(random, CORRECTED, as_csv, odd_text)}
    write_origin(folder)
    assert len(find_origin(folder).names) == len(find_origin(folder).earlier) == 2
    name = random.choice([*spoil])
    write_origin(folder, **{name: spoil[name]()})
    with confined(folder, folder.parent):
        find_origin(folder)


@pytest.mark.parametrize('what', STRANGE)
@pytest.mark.parametrize('name', ['split.json', 'split.csv', 'corrections.csv'])
def test_an_origin_that_is_no_file_is_not_waited_for(tmp_path, name, what):
    write_origin(tmp_path)
    put_strange(tmp_path / name, what)
    with not_waited_for(), confined(tmp_path, tmp_path.parent):
        origin = find_origin(tmp_path)
    if name == 'corrections.csv':
        assert origin.earlier == []
    else:
        assert origin is None


def test_a_run_on_a_split_of_others_is_reviewed_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = RunReview('data', ['a', 'b', 'c'], lambda file, side: Image.new('RGB', (9, 9))).section(REPORT, [], True)
    assert [item['files'][0] for item in content(section)['items']] == [
        'val/a/3.png', 'val/a/1.png', 'val/b/4.png', 'val/b/5.png']


def test_typical_images_are_right_and_the_most_confident():
    logits = torch.tensor([[1., 0], [9, 0], [5, 0], [7, 0], [8, 0], [0, 3], [99, 0]])
    targets = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    report = build_report(scores(logits, targets, ['a', 'b']), logits, targets, torch.ones(7), list('uvwxyz!'),
                          ['a', 'b'])
    assert report['typical'] == {'a': ['v', 'y', 'x'], 'b': ['z']}


# What a label would teach

def test_one_image_of_each_kind_is_chosen():
    """Two tight clusters and one image between: of each cluster there is one, that of the most doubtful first."""
    features = torch.tensor([[1., 0], [1, 0.01], [1, -0.01], [-1, 0], [-1, 0.01], [0, 1]])
    doubt = torch.tensor([0.8, 0.9, 0.7, 0.6, 0.5, 0.4])
    first, second, third = teaching.teaching_order(doubt, features, 3)
    assert first in (0, 1, 2) and second in (3, 4) and third == 5
    assert teaching.teaching_order(doubt, features, 9) == [1, 0, 2, 3, 4, 5]
    assert len(teaching.teaching_order(torch.zeros(3), torch.zeros(3, 4), 9)) == 1
    fan = torch.tensor([[1., -0.6], [1, -0.1], [1, 0.4], [-1, -0.4], [-1, 0.1], [-1, 0.5]])  # the middle of each three
    assert {*teaching.teaching_order(torch.ones(6), fan, 2)} == {1, 4}
    assert {*teaching.teaching_order(torch.tensor([1., 1, 99, 99, 1, 1]), fan, 2)} == {2, 3}  # doubt draws it


def test_doubt_is_between_the_two_most_probable_classes_and_of_what_is_unlike_val():
    def doubt(*probabilities, certainty=None):
        confidence = probabilities[0]
        top = [(str(place), probability) for place, probability in enumerate(probabilities)]
        return teaching.doubt_of(Prediction('x', '0', confidence, confidence if certainty is None else certainty, top))

    assert doubt(0.4, 0.1, 0.1) == pytest.approx(0.7) and doubt(0.5, 0.5) == 1 and doubt(1.) == 0
    assert doubt(0.9, 0.1, certainty=0.45) == pytest.approx(0.6)


def prediction(certainty, label='a', features=(1., 0.)):
    confidence = 0.5 + certainty / 2
    return Prediction('x', label, confidence, confidence, [(label, confidence), ('b', 1 - confidence)], torch.zeros(2),
                      torch.tensor(features))


def test_the_pool_keeps_the_most_doubtful_of_any_number():
    pool = teaching.Pool(2)
    for number in range(100):
        pool.add(str(number), prediction((number * 37 % 100) / 100, features=(np.cos(number), np.sin(number))))
    assert len(pool.kept) < 40
    least = {str(number) for number in range(100) if number * 37 % 100 < 20}
    assert {found.name for found in pool.most_valuable()} <= least and len(pool.most_valuable()) == 2
    assert pool.typical == {'a': [str(number) for value in (99, 98, 97) for number in range(100)
                                  if number * 37 % 100 == value]}
    assert teaching.Pool(3).most_valuable() == []


def test_of_very_many_images_the_most_doubtful_follow(monkeypatch):
    """Comparing all with all would take minutes."""
    monkeypatch.setattr(teaching, 'COMPARED', 3)
    pool = teaching.Pool(30)
    for number in range(200):
        pool.add(str(number), prediction((number * 37 % 200) / 200, features=(np.cos(number), np.sin(number))))
    found = pool.most_valuable()
    assert len({one.name for one in found}) == 30 and min(one.doubt for one in found) > 1 - 30.5 / 200
    assert [one.doubt for one in found[3:]] == sorted((one.doubt for one in found[3:]), reverse=True)


def test_a_page_for_images_without_labels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path, {'new': 20})
    untrained('x.pth')
    done = classify('--test-dir', 'new', '--review', 7, '--checkpoint', 'x.pth', '--print', 'none')
    assert done.returncode == 0
    text = (tmp_path / 'predictions' / 'report.html').read_text(encoding='utf-8')
    data = content({'html': text})
    assert len(data['items']) == 7 and data['table'] == 'labels.csv' and data['items'][0]['labels'] == [-1]
    sure = [item['sure'] for item in data['items']]
    assert all(0 < value <= 1 for value in sure) and len(data['items'][0]['choices']) == 3


def test_images_of_a_split_have_the_names_of_their_source(tmp_path, source):
    """data/val, and all of data: what comes out are corrections for the source."""
    split()
    untrained('x.pth', classes=('a', 'b'))
    for folder in ('data/val', 'data'):
        done = classify('--test-dir', folder, '--review', '--checkpoint', 'x.pth', '--print', 'none')
        assert done.returncode == 0
        data = content({'html': (tmp_path / 'predictions' / 'report.html').read_text(encoding='utf-8')})
        files = [file for item in data['items'] for file in item['files']]
        assert data['table'] == 'corrections.csv' and files
        assert all((source / file).is_file() for file in files)


def test_a_review_of_the_source_goes_on_with_the_corrections_of_its_split(tmp_path, source):
    """Else the table that it hands out would lack them, and take their place."""
    Path('corrections.csv').write_text('file,class\na/003.png,b\n')
    split()
    untrained('x.pth', classes=('a', 'b'), settings={'DATA_DIR': 'data'})
    assert classify('--test-dir', 'data1', '--review', '--checkpoint', 'x.pth', '--print', 'none').returncode == 0
    data = content({'html': (tmp_path / 'predictions' / 'report.html').read_text(encoding='utf-8')})
    assert [(row['file'], row['label']) for row in data['earlier']] == [('a/003.png', 'b')]
    assert ['a/003.png'] not in [item['files'] for item in data['items']]


def test_a_table_of_labels_that_went_is_a_warning(tmp_path, source, capsys):
    """The page's own table would lack its rows."""
    split()
    settings = json.loads(Path('data/split.json').read_text())
    settings['settings']['LABELS'] = 'labels.csv'
    Path('data/split.json').write_text(json.dumps(settings))
    member = SimpleNamespace(saved={'settings': {'DATA_DIR': 'data'}})
    predictor = SimpleNamespace(classes=['a', 'b'], members=[member])
    found = PredictionReview(open_source('data1'), predictor, True)
    assert found.earlier == [] and "warning: LABELS = 'labels.csv' cannot be read" in capsys.readouterr().out
    Path('labels.csv').write_text('file,class,group\na\\001.png ,a,7\na/002.png,,\n')
    found = PredictionReview(open_source('data1'), predictor, True)
    assert found.known == {'a/001.png', 'a/002.png'} and found.groups == {'a/001.png': '7'}


# Before there is a network

def test_the_first_labels(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path, {'new': 20})
    Path('labels.csv').write_text('file,class\n003.png,dog\n004.png,\n')
    arguments = ['--images', 'new', '--classes', 'cat, bird', '--labels', 'labels.csv', '--count', '30']
    first_page.main(first_page.settings.read(first_page, arguments))
    data = content({'html': Path('review.html').read_text(encoding='utf-8')})
    assert len(data['items']) == 18 and ['003.png'] not in [item['files'] for item in data['items']]
    assert data['classes'] == ['cat', 'bird', 'dog'] and data['items'][0]['choices'] == [0, 1, 2]
    Path('labels.csv').write_text('file,class\n' + ''.join(f'{number:03}.png,dog\n' for number in range(20)))
    with pytest.raises(UserError, match='no image in it without a label'):
        first_page.main(first_page.settings.read(first_page, arguments))
    with pytest.raises(UserError, match="CLASSES: the class 'cat/dog' cannot be the name of a folder"):
        first_page.main(first_page.settings.read(first_page, [*arguments, '--classes', 'cat/dog']))


def test_every_constant_says_which_types_it_may_have():
    assert_annotated(first_page)
