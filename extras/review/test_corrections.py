"""CORRECTIONS of makedata.py: labels replaced, images left out, the sides as before, and one line for a bad table."""
import contextlib
import csv
import os
import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, draw_folder, entries, files_below, run_script, sides, split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import makedata
from common.data.folders import find_in_class_folders
from common.runtime.errors import UserError
from extras.review.corrections import read_corrections

HEADER = 'file,class,was,when\n'


def write(text, name='corrections.csv'):
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())


def by_source(folder):
    """{path below the source: row of split.csv}."""
    return {entry['source'].partition('/')[2]: entry for entry in entries(folder)}


def test_labels_are_replaced_and_images_left_out(tmp_path, source):
    """All stay on their sides, new labels or not; the source and the images of the split are what they were."""
    assert split().returncode == 0
    before, photographs = by_source(tmp_path), files_below(source)
    write(HEADER + 'a/003.png,b,a,\na/004.png,,a,\nb/001.png,b,b,\n')
    done = split()
    assert done.returncode == 0, done.stderr
    assert 'corrections.csv: 1 replaced, 1 left out, 1 confirmed\n' in done.stdout
    after = by_source(tmp_path)
    assert files_below(source) == photographs
    assert after['a/003.png']['class'] == 'b' and after['a/003.png']['reason'] == 'corrections.csv: was a'
    assert after['a/004.png']['file'] == '' and after['a/004.png']['reason'] == 'corrections.csv: left out'
    assert {name: entry['side'] for name, entry in after.items()} == {
        name: entry['side'] for name, entry in before.items()}
    for name, entry in after.items():
        if entry['file']:
            assert (tmp_path / 'data' / entry['file']).read_bytes() == photographs[name]
        if name[:5] not in ('a/003', 'a/004'):
            assert entry == before[name]
    listed = {entry['file'] for entry in after.values()} - {''}
    assert {name for name in files_below(tmp_path / 'data') if name.endswith('.png')} == listed


def test_a_split_that_is_drawn_anew_has_the_same_sides(tmp_path, source):
    """Somebody else has the source and the corrections, and no earlier split."""
    split()
    before = sides(tmp_path)
    write(HEADER + ''.join(f'a/{number:03}.png,b,,\n' for number in range(12)) + 'b/002.png,,,\n')
    shutil.rmtree('data')
    split()
    assert sides(tmp_path) == before


def test_without_the_file_the_split_is_the_earlier_one(tmp_path, source):
    split()
    before = files_below(tmp_path / 'data')
    write(HEADER + 'a/003.png,b,a,\na/004.png,,a,\n')
    split()
    assert files_below(tmp_path / 'data') != before
    os.remove('corrections.csv')
    split()
    assert files_below(tmp_path / 'data') == before


def test_an_image_that_was_left_out_from_the_beginning_comes_back_to_its_side(tmp_path, source):
    """It was never in data/, and images that came since would have changed the draw."""
    write(HEADER + ''.join(f'a/{number:03}.png,,,\n' for number in range(0, 20, 2)))
    split()
    before = sides(tmp_path)
    draw_folder(tmp_path / 'more', {'a': 40}, seed=9)
    for number, path in enumerate(sorted((tmp_path / 'more' / 'a').iterdir())):
        path.rename(source / 'a' / f'new{number}.png')
    os.remove('corrections.csv')
    split()
    after = sides(tmp_path)
    assert len(after) == 70 and {digest: after[digest] for digest in before} == before


def test_a_corrected_image_takes_no_others_place(tmp_path, source):
    """Images of a go to b, which has a folder a with files of their names; those of a and b with one name go to c."""
    draw_folder(source, {'c': 2}, seed=5)
    draw_folder(source / 'b', {'a': 10}, seed=6)
    write(HEADER + ''.join(f'a/{number:03}.png,b,,\n' for number in range(10)))
    split()
    check_files(tmp_path, source, 42)
    for number in range(10):  # twice the same name below two classes
        (source / 'b' / f'{number:03}.png').rename(source / 'b' / f'{number + 10:03}.png')
    write(HEADER + ''.join(f'{name}/{number:03}.png,c,,\n' for number in range(10, 20) for name in 'ab'))
    split()
    check_files(tmp_path, source, 42)


def check_files(tmp_path, source, count):
    """Each image of the source has a file of its own in the split."""
    found = by_source(tmp_path)
    assert len({entry['file'] for entry in found.values()}) == count
    for name, entry in found.items():
        assert (tmp_path / 'data' / entry['file']).read_bytes() == (source / name).read_bytes()


def test_a_new_class_is_said_and_an_empty_one_goes(tmp_path, source):
    draw_folder(source, {'c': 2}, seed=5)
    split()
    in_train = [name for name, entry in by_source(tmp_path).items() if entry['side'] == 'train']
    of_c = next(name for name in in_train if name.startswith('c/'))
    other = ({'c/000.png', 'c/001.png'} - {of_c}).pop()
    write(HEADER + f'{of_c},Löwe,,\n{other},,,\n{in_train[0]},A,,\n')
    done = split()
    assert 'new: A, Löwe; no images are left in c' in done.stdout
    assert 'warning: A and a are different classes here' in done.stdout
    assert sorted(path.name for path in (tmp_path / 'data' / 'val').iterdir()) == ['A', 'Löwe', 'a', 'b']


@pytest.mark.parametrize('text', [
    'file;class;was;when\r\na\\003.png;b;a;\r\na\\004.png;;a;\r\n', '\ufefffile,class\na/003.png,b\na/004.png,\n',
    '"Class"\t"File"\n"b"\t"a/003.png"\n""\t"a/004.png"\n', 'file,class\n a/003.png , b \na/004.png\na/003.png,b\n',
    'file,class\na/003.png,b\na/004.png,\n'.encode('utf-16'), 'sep=;\nfile;class\na/003.png;b\na/004.png;\n'])
def test_tables_as_people_save_them(tmp_path, source, text):
    write(text)
    done = split()
    assert '1 replaced, 1 left out' in done.stdout, done.stderr


@pytest.mark.parametrize('text, words', [
    ('file\na/003.png\n', 'must name the columns file and class'), ('file,class\n../x.png,b', 'line 2'),
    ('file,class\na/003.png,b\na/nine.png,b\nb/nine.png,b', 'data1 has no a/nine.png (line 3); b/nine.png (line 4): '
     'bring the images back, remove the rows, or set CORRECTIONS = None'),
    ('file,class\n/etc/passwd,b', 'must be a path below data1'), ('file,class\nC:\\x.png,b', 'data1 has no C:/x.png'),
    ('file,class\na/003.png,b\na/003.png,', "line 3: a/003.png was there before with another answer, 'b'"),
    ('file,class\na/003.png,b/c', 'cannot be the name of a folder'), ('file,class\n,b', 'a row needs a file'),
    ('file,class\na/003.png,..', 'cannot be the name'), (b'PK\x03\x04', 'is a workbook'), ('', 'must name the columns'),
    ('file,class\n' + ''.join(f'{name}/{n:03}.png,\n' for name, m in (('a', 20), ('b', 10)) for n in range(m)),
     'leaves out all images')])
def test_tables_with_mistakes(tmp_path, source, text, words):
    """One line, and the split that is there stays as it is."""
    split()
    before = files_below(tmp_path / 'data')
    write(text)
    done = split()
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert 'corrections.csv' in done.stderr or 'data1' in done.stderr
    assert files_below(tmp_path / 'data') == before and not list(tmp_path.glob('.data.new'))


def test_a_class_needs_an_image_in_train(tmp_path, source):
    """A new one may have all its images in val, where they stay."""
    split()
    in_val = next(name for name, entry in by_source(tmp_path).items() if entry['side'] == 'val')
    before = files_below(tmp_path / 'data')
    write(HEADER + f'{in_val},new,,\n')
    done = split()
    assert done.returncode == 2 and 'corrections.csv leaves no image of new in train' in done.stderr
    assert files_below(tmp_path / 'data') == before


def test_a_table_that_is_named_must_be_there(tmp_path, source):
    done = split('--corrections', 'corection.csv')
    assert done.returncode == 2 and "CORRECTIONS = 'corection.csv' cannot be read" in done.stderr
    assert split('--corrections', 'none').returncode == 0


@pytest.mark.parametrize('times, label', [
    (('', ''), 'b'), (('2026-01-02T00:00:00.000Z', '2026-01-01T00:00:00.000Z'), 'c'),
    (('2026-01-01T00:00:00.000Z', '2026-01-02T00:00:00.000Z'), 'b'), (('2026-01-02T00:00:00.000Z', '1.1.26'), 'b')])
def test_of_several_people_the_later_decision_counts(tmp_path, source, times, label):
    draw_folder(source, {'c': 9}, seed=5)
    write(HEADER + f'a/001.png,c,a,{times[0]}\na/002.png,b,a,\n', 'anna.csv')
    write(HEADER + f'a/001.png,b,a,{times[1]}\na/002.png,b,a,\n', 'ben.csv')
    done = split('--corrections', 'anna.csv, ben.csv')
    assert by_source(tmp_path)['a/001.png']['class'] == label
    assert done.stdout.count('corrections differ') == 1
    assert f"on a/001.png: 'c' in anna.csv, 'b' in ben.csv; '{label}' counts, the later one\n" in done.stdout
    with open('data/corrections.csv', encoding='utf-8', newline='') as file:
        assert {row['file']: row['class'] for row in csv.DictReader(file)} == {'a/001.png': label, 'a/002.png': 'b'}


@pytest.mark.parametrize('options', [('--link',), ('--max-side', 16), ('--test-ratio', 0.2), ('--group', '^a.00[34]')])
def test_corrections_go_with_other_constants(tmp_path, source, options):
    write(HEADER + 'a/003.png,b,a,\na/004.png,,a,\n')
    for _ in range(2):
        assert split(*options).returncode == 0
    found = by_source(tmp_path)
    assert found['a/003.png']['class'] == 'b' and found['a/004.png']['file'] == ''


@pytest.mark.skipif(not (ROOT / 'extras' / 'folds').exists(), reason='there is no extras/folds')
def test_corrections_go_with_folds(tmp_path, source):
    """In a process of its own, since tests of an extra run without the others. There are more folds than sides."""
    write(HEADER + 'a/003.png,b,a,\n' + ''.join(f'a/{number:03}.png,,a,\n' for number in range(4, 14)))
    for _ in range(2):
        done = run_script('makedata.py', '--folds', 5, '--near-duplicates', 'false')
        assert done.returncode == 0, done.stderr
    found = [entry for entry in entries(tmp_path) if entry['source'] == 'data1/a/003.png']
    assert len(found) == 5 and all(Path('data', entry['file']).parts[3] == 'b' for entry in found)
    assert [entry['file'] for entry in entries(tmp_path) if entry['source'] == 'data1/a/004.png'] == ['']


def test_a_hundred_thousand_rows(tmp_path, source):
    """All of them name the same images again and again."""
    rows = ''.join(f'a/{number % 20:03}.png,b,a,2026-01-01T00:00:00.000Z\n' for number in range(100_000))
    write(HEADER + rows)
    done = split()
    assert done.returncode == 0 and '20 replaced' in done.stdout


def test_a_changed_mind_is_no_new_image(tmp_path, source):
    """data/ with corrections is replaced by one with others; nothing in it is taken for a stranger's file."""
    split()
    in_train = next(name for name, entry in by_source(tmp_path).items() if entry['side'] == 'train')
    for label in ('b', '', 'a', 'new'):
        write(HEADER + f'{in_train},{label},a,\n')
        assert split().returncode == 0
    assert by_source(tmp_path)[in_train]['class'] == 'new'


def test_labels_of_a_table_are_corrected_too(tmp_path, source):
    found = makedata.find_images(makedata.settings.read(makedata, []))
    found.class_depth = 0
    write(HEADER + 'a/003.png,b,a,\n')
    corrections = read_corrections(['corrections.csv'], found)
    assert corrections.decided['a/003.png'].label == 'b'


@settings(max_examples=int(os.environ.get('FUZZ', 200)), deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))
@given(beginning=st.sampled_from(['', 'file,class\n', 'file,class,when\na/001.png,']), text=st.text())
def test_any_text_is_a_table_or_refused_fuzz(tmp_path, source, beginning, text):
    table = tmp_path / 'x.csv'
    table.write_text(beginning + text, encoding='utf-8', errors='backslashreplace')
    with contextlib.suppress(UserError):
        found = read_corrections([str(table)], find_in_class_folders('data1'))
        assert all(re.match('[ab]/', file) for file in found.decided)
