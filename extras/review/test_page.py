"""The review in a real browser: keys, thumbs, many at once, undo, a reload, and a table that the four steps take."""
import csv
import json
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, classify, draw_folder, entries, run, run_script, split
from PIL import Image

import makedata
from common.reporting.page import write_page
from extras.review.candidates import MISTAKE, SUSPECT, TWINS, UNSURE, Candidate, Choices
from extras.review.corrections import Correction
from extras.review.page import Review, review_section
from extras.review.pictures import Pictures

ODD = ["Fat Hen's <script>alert(1)<∕script>", '玉米 "Mais" & <b>co', '{{ 7 * 7 }} $x$', '=cmd, or; so']


def picture(name, side):
    """A picture that differs from name to name."""
    level = sum(name.encode()) % 200
    return Image.new('RGB', (60, 40), (level, 255 - level, 90))


def make(path, classes, count=12, unlabelled=False, **options):
    """A page of candidates: a pair first, then suspects with the label number % classes and the next as suggestion."""
    candidates = [] if unlabelled else [
        Candidate(TWINS, ['twin/0.png', 'twin/1.png'], [classes[0], classes[1]], [classes[1]])]
    for number in range(count - len(candidates)):
        label, perhaps = (classes[(number + step) % len(classes)] for step in (0, 1))
        if unlabelled:
            candidates.append(Candidate(UNSURE, [f'{number}.png'], [None], [perhaps, label], 0.4))
        else:
            kind = MISTAKE if number % 3 == 2 else SUSPECT
            sure = 0.9 if kind == MISTAKE else None
            candidates.append(Candidate(kind, [f'x/{number}.png'], [label], [perhaps], sure))
    review = Review(candidates, classes, Choices(classes), {name: [f'typical {name}'] * 3 for name in classes},
                    str(path.parent), makes_labels=unlabelled, **options)
    section = review_section(review, Pictures(picture))
    write_page(path, 'A review', 'of a test', [], [section])
    return section


def start(view):
    view.click('#review-start')
    view.wait_for_selector('#review-app', state='visible')
    return view


def press(view, *keys):
    for key in keys:
        view.keyboard.press(key)


def download(view, how=None):
    """The rows of the table that the page hands out."""
    with view.expect_download() as waiting:
        how() if how else view.click('#review-download')
    with open(waiting.value.path(), newline='', encoding='utf-8-sig') as file:
        return list(csv.DictReader(file))


def answers(view):
    return {row['file']: row['class'] for row in download(view)}


def left(view):
    return view.text_content('#review-left')


def shown(view):
    return view.text_content('#review-why .soft')


@pytest.mark.parametrize('classes', [ODD, [f'class {n}' for n in range(200)]], ids=['odd names', '200 classes'])
def test_every_key(tmp_path, show, classes):
    make(tmp_path / 'x.html', classes)
    view = start(show(tmp_path / 'x.html'))
    assert left(view) == '12 of 12 left' and shown(view) == 'twin/0.png · twin/1.png'
    press(view, '2')                       # both are of the second class
    assert left(view) == '11 of 12 left' and shown(view) == 'x/0.png'
    press(view, '1')                       # the label is right
    press(view, '2')                       # the suggestion is
    press(view, '3')
    press(view, '0')                       # leave out
    press(view, 'ArrowRight', 'ArrowRight', 'ArrowLeft')
    assert shown(view) == 'x/5.png'
    press(view, '/')
    view.keyboard.type('Äpfel "& <i>')     # a class that is new
    press(view, 'Enter')
    press(view, 'ArrowLeft', 'ArrowLeft')
    press(view, 'k')                       # of the one that was passed over: keep
    with_undo = left(view)
    press(view, '2', 'u', '2', 'Control+z')
    assert left(view) == with_undo == '5 of 12 left'
    press(view, '/')
    view.keyboard.type(classes[3][:7])
    press(view, 'Enter')
    rows = download(view, lambda: press(view, 'd'))
    third = [name for name in classes if name not in (classes[2], classes[3])][0]
    assert {row['file']: (row['class'], row['was']) for row in rows} == {
        'twin/0.png': (classes[1], classes[0]), 'twin/1.png': (classes[1], classes[1]),
        'x/0.png': (classes[0], classes[0]), 'x/1.png': (classes[2], classes[1]), 'x/2.png': (third, classes[2]),
        'x/3.png': ('', classes[3]), 'x/5.png': ('Äpfel "& <i>', classes[5 % len(classes)]),
        'x/4.png': (classes[4 % len(classes)], classes[4 % len(classes)]),
        'x/6.png': (view.evaluate(FIRST_WITH, classes[3][:7]), classes[6 % len(classes)])}
    assert all(row['when'].endswith('Z') for row in rows)
    press(view, 'Escape')
    view.wait_for_selector('#review-app', state='hidden')
    assert not view.problems and view.locator('#review-app b, #review-app i').count() == 0


# The first class of the page that begins with a text, in the order of the list.
FIRST_WITH = '''typed => JSON.parse(document.getElementById('review-data').textContent).all
                .find(name => name.toLowerCase().startsWith(typed.toLowerCase()))'''


def test_thumbs_on_a_phone(tmp_path, show):
    make(tmp_path / 'x.html', ODD)
    view = show(tmp_path / 'x.html', 390, 'dark', has_touch=True, is_mobile=True)
    view.tap('#review-start')
    for _ in range(2):
        view.tap('#review-choices button.perhaps')
    view.tap('#review-choices button.keep')
    view.tap('#review-choices button.out')
    view.tap('#review-undo')
    view.tap('#review-next')
    assert shown(view) == 'x/3.png'
    for begin, end, file in ((300, 100, 'x/4.png'), (100, 300, 'x/3.png'), (200, 180, 'x/3.png')):
        view.evaluate(SWIPE, [begin, end])
        assert shown(view) == file
    view.tap('#review-mode')
    for number in (0, 2):
        view.locator('.cell').nth(number).tap()
    view.tap('#review-choices button.perhaps')
    assert answers(view) == {'twin/0.png': ODD[1], 'twin/1.png': ODD[1], 'x/0.png': ODD[1], 'x/1.png': ODD[1],
                             'x/2.png': ODD[3], 'x/4.png': ODD[1]}
    for button in view.locator('#review-choices button:visible').all():
        box = button.bounding_box()
        assert box['height'] >= 44 and box['x'] >= 0 and box['x'] + box['width'] <= 390
    assert view.evaluate('document.documentElement.scrollWidth') <= 390 and not view.problems


SWIPE = '''([begin, end]) => {
  const stage = document.getElementById('review-stage')
  const at = x => [new Touch({identifier: 1, target: stage, clientX: x, clientY: 300})]
  stage.dispatchEvent(new TouchEvent('touchstart', {touches: at(begin), changedTouches: at(begin)}))
  stage.dispatchEvent(new TouchEvent('touchend', {touches: [], changedTouches: at(end)}))
}'''


def test_a_reload_or_another_window_loses_nothing(tmp_path, show):
    make(tmp_path / 'x.html', ODD)
    view = start(show(tmp_path / 'x.html'))
    press(view, '2', '0', '1')
    before = answers(view)
    view.reload()  # as if the browser had been closed
    assert left(view) == '9 of 12 left' and answers(view) == before  # and the review is open, as it was
    press(view, 'u', 'u')
    assert left(view) == '11 of 12 left' and set(answers(view)) == {'twin/0.png', 'twin/1.png'}
    other = view.context.new_page()
    other.goto(view.url)
    assert left(other) == '11 of 12 left'
    press(view, '2')
    other.wait_for_selector('#review-left:text-is("10 of 12 left")')
    other.close()


def test_many_at_once(tmp_path, show):
    """Of thousands of cells only those on the screen are there."""
    make(tmp_path / 'x.html', [f'class {number}' for number in range(12)], count=3000)
    view = start(show(tmp_path / 'x.html'))
    press(view, 'w')
    few = view.locator('.cell').count()
    assert 10 < few < 100
    view.locator('.cell').nth(1).click()
    view.locator('.cell').nth(4).click(modifiers=['Shift'])
    assert view.text_content('#review-choices .count') == '4 selected'
    press(view, '2')
    press(view, 'Home', ' ', 'ArrowRight', 'Shift+ArrowRight', '0')
    found = answers(view)
    assert [found[f'x/{number}.png'] for number in range(4)] == [f'class {number}' for number in range(1, 5)]
    assert {file for file, label in found.items() if not label} == {'twin/0.png', 'twin/1.png', 'x/4.png', 'x/5.png'}
    press(view, 'u')
    assert len(answers(view)) == 4
    view.select_option('#review-perhaps', label='class 3')
    press(view, 'Control+a')
    view.focus('#review-grid')
    press(view, 'Control+a', '1')
    assert left(view) == '0 of 250 left'
    assert sorted(set(answers(view).values())) == ['class 1', 'class 2', 'class 3', 'class 4']
    view.select_option('#review-perhaps', label='any suggestion')
    view.select_option('#review-state', value='decided')
    assert view.locator('.cell.decided').count() == view.locator('.cell').count()
    view.select_option('#review-state', value='todo')
    view.focus('#review-grid')
    press(view, 'End')
    view.wait_for_selector('.cell[title="x/2998.png"]')
    press(view, 'PageUp', 'PageUp', 'PageUp', 'PageUp', 'End')
    assert view.locator('.cell').count() < 1.5 * few
    press(view, 'Enter')
    assert shown(view) == 'x/2998.png' and not view.problems


def test_filters(tmp_path, show):
    make(tmp_path / 'x.html', ODD)
    view = start(show(tmp_path / 'x.html'))
    view.select_option('#review-label', label=ODD[2])
    assert left(view) == '3 of 3 left' and shown(view) == 'x/2.png'
    view.select_option('#review-kind', label='confident mistake')
    assert left(view) == '1 of 1 left'
    assert 'classified as' in view.text_content('#review-why') and '90 %' in view.text_content('#review-why')
    press(view, '1')
    assert 'All decided' in view.text_content('#review-why')
    view.select_option('#review-label', label=ODD[3])
    assert left(view) == '0 of 0 left'
    press(view, 'k', '1', '0', '/')  # nothing to decide on
    assert len(answers(view)) == 1 and not view.problems


def test_a_digit_decides_right_after_a_filter_was_chosen(tmp_path, show):
    make(tmp_path / 'x.html', ['cat', '2 horses', 'dog'])
    view = start(show(tmp_path / 'x.html'))
    view.focus('#review-label')
    view.select_option('#review-label', label='cat')
    press(view, '2')
    view.focus('#review-label')
    press(view, 'u')  # letters look for a class there
    assert len(answers(view)) == 2 and view.input_value('#review-label') == '0'  # the pair


def test_keys_of_other_keyboards(tmp_path, show):
    """A digit that needs Shift, as on French ones; and / on Shift and 7, as on German ones."""
    make(tmp_path / 'x.html', [f'class {number}' for number in range(12)])
    view = start(show(tmp_path / 'x.html'))
    view.evaluate(KEY, {'key': 'é', 'code': 'Digit2'})
    assert answers(view) == {'twin/0.png': 'class 1', 'twin/1.png': 'class 1'}
    view.evaluate(KEY, {'key': '/', 'code': 'Digit7', 'shiftKey': True})
    assert view.is_visible('#review-picker')
    view.click('#review-cancel')
    assert len(answers(view)) == 2


KEY = 'key => document.body.dispatchEvent(new KeyboardEvent("keydown", {bubbles: true, cancelable: true, ...key}))'


def test_a_key_that_is_held_decides_once(tmp_path, show):
    make(tmp_path / 'x.html', ODD)
    view = start(show(tmp_path / 'x.html'))
    for key in ('1', '0', 'k'):
        before = int(left(view).split()[0])
        view.keyboard.down(key)
        view.keyboard.down(key)  # which repeats it
        view.keyboard.up(key)
        assert int(left(view).split()[0]) == before - 1
    view.keyboard.down('u')
    view.keyboard.down('u')
    view.keyboard.up('u')
    assert left(view) == '11 of 12 left'


def test_a_selection_begins_in_what_the_filter_shows(tmp_path, show):
    make(tmp_path / 'x.html', [f'class {number}' for number in range(12)], count=300)
    view = start(show(tmp_path / 'x.html'))
    press(view, 'w', 'End')
    view.select_option('#review-perhaps', label='class 3')
    view.focus('#review-grid')
    press(view, 'Shift+ArrowRight')
    assert view.text_content('#review-choices .count') == '2 selected'
    press(view, '2')  # which leaves fewer
    press(view, 'Shift+ArrowRight')
    assert view.text_content('#review-choices .count') == '2 selected' and not view.problems


def test_enter_takes_the_class_that_was_typed(tmp_path, show):
    make(tmp_path / 'x.html', ['Common wheat', 'caterpillar', 'other'])
    view = start(show(tmp_path / 'x.html'))
    press(view, '/')
    view.keyboard.type('cat')
    view.click('#review-classes button:has-text("New class: cat")')
    press(view, '/')
    view.keyboard.type('cat')
    view.evaluate('document.getElementById("review-search").dispatchEvent('
                  'new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true}))')
    assert view.is_visible('#review-picker')  # Enter ended a word of an input method
    press(view, 'Enter')
    assert set(answers(view).values()) == {'cat'}


def test_made_up_classes_keep_their_keys(tmp_path, show):
    make(tmp_path / 'x.html', ['cat', 'dog'])
    view = start(show(tmp_path / 'x.html'))
    for name in ('zebra', 'ape', 'yak'):
        press(view, '/')
        view.keyboard.type(name)
        press(view, 'Enter')
    keys = view.locator('#review-choices button').all_inner_texts()
    view.reload()
    assert view.locator('#review-choices button').all_inner_texts() == keys
    assert [name in text for name, text in zip(('zebra', 'ape', 'yak'), keys[2:5], strict=True)] == [True] * 3


def test_the_focus_and_what_to_do_next(tmp_path, show):
    """The keys' own page, with Forget, is there on a phone, too; what to do with the table stays on the screen."""
    make(tmp_path / 'x.html', ODD)
    view = start(show(tmp_path / 'x.html', 390))
    assert view.evaluate('document.activeElement.id') == 'review-app'
    press(view, '1')
    download(view)
    view.wait_for_timeout(1500)
    assert 'corrections.csv' in view.text_content('#review-status')
    assert view.evaluate("getComputedStyle(document.getElementById('review-status')).opacity") > '0.9'
    view.click('#review-help')
    assert view.is_visible('#review-forget')
    view.keyboard.press('Escape')
    press(view, 'Escape')
    view.wait_for_selector('#review-start:focus')  # after the event hashchange


def test_labels_of_images_that_have_none(tmp_path, show):
    """Earlier labels and their groups stay in the table; what is left out has no class."""
    earlier = [Correction('old.png', 'dog', '', '', ''), Correction('2.png', 'cat', '', '', '')]
    make(tmp_path / 'x.html', ['cat', 'dog'], 5, unlabelled=True, earlier=earlier, groups={'old.png': 'plant 7'})
    view = start(show(tmp_path / 'x.html'))
    assert left(view) == '4 of 4 left'
    press(view, '1', '0', '/')
    view.keyboard.type('bird')
    press(view, 'Enter', '3')
    assert {row['file']: (row['class'], row['group']) for row in download(view)} == {
        'old.png': ('dog', 'plant 7'), '2.png': ('cat', ''), '0.png': ('dog', ''), '1.png': ('', ''),
        '3.png': ('bird', ''), '4.png': ('bird', '')}


def test_the_later_of_an_earlier_table_and_the_browser_counts(tmp_path, show):
    """Rows of earlier corrections stay in the table, unless a decision here is newer."""
    times = ('2020-01-01T00:00:00.000Z', '2999-01-01T00:00:00.000Z')
    earlier = [Correction('x/0.png', ODD[3], ODD[0], times[1], ''), Correction('gone.png', '', ODD[0], times[0], '')]
    make(tmp_path / 'x.html', ODD)
    view = start(show(tmp_path / 'x.html'))
    press(view, '1', '1', '1')
    make(tmp_path / 'x.html', ODD, earlier=earlier)
    view.reload()
    assert answers(view) == {'x/0.png': ODD[3], 'gone.png': '', 'twin/0.png': ODD[0], 'twin/1.png': ODD[0],
                             'x/1.png': ODD[1]}


@pytest.mark.parametrize('time', [None, '', '31.01.2020 09:30'])
def test_what_was_changed_in_the_table_by_hand_stays(tmp_path, show, time):
    """Whatever stands for its time: that of the decision here (None), none, or as a spreadsheet writes it."""
    make(tmp_path / 'x.html', ['cat', 'dog'])
    view = start(show(tmp_path / 'x.html'))
    press(view, '2', '2')
    row = next(row for row in download(view) if row['file'] == 'x/0.png')
    edited = Correction('x/0.png', 'bird', 'cat', row['when'] if time is None else time, '')
    make(tmp_path / 'x.html', ['cat', 'dog'], earlier=[edited])
    view.reload()
    assert answers(view)['x/0.png'] == 'bird'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """data1 of classes with odd names, in which two byte-identical pictures lie in two classes; split and trained."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(makedata, 'NEAR_DUPLICATES', False)
    draw_folder(tmp_path / 'data1', dict.fromkeys(ODD, 12), size=(40, 48))
    for number in (1, 2):
        shutil.copy(tmp_path / 'data1' / ODD[0] / f'00{number}.png', tmp_path / 'data1' / ODD[1] / f'copy{number}.png')
    for name in ('plot_training', 'plot_confusion', 'plot_reliability'):
        monkeypatch.setattr(f'common.training.log.{name}', lambda *arguments: None)
    monkeypatch.setattr('common.training.setup.work_out_cost', lambda *arguments: None)
    assert split().returncode == 0
    run(epochs=1)
    return tmp_path


def test_the_four_steps_follow_what_a_person_decides(project, show):
    """An oracle looks at everything; the next split and training run to the end, and ask nothing twice."""
    view = start(show(project / 'out' / 'report.html'))
    asked = []
    while not left(view).startswith('0 '):
        files = shown(view).split(' · ')
        asked.extend(files)
        true = ODD[0] if len(files) == 2 else files[0].split('/')[0]
        view.locator('#review-choices button:not(.out)', has_text=true).first.click()
    assert {f'{ODD[0]}/001.png', f'{ODD[1]}/copy1.png', f'{ODD[0]}/002.png', f'{ODD[1]}/copy2.png'} <= set(asked)
    with view.expect_download() as waiting:
        view.click('#review-download')
    waiting.value.save_as(project / 'corrections.csv')
    done = split()
    assert done.returncode == 0, done.stderr
    assert f'corrections.csv: 2 replaced, 0 left out, {len(asked) - 2} confirmed' in done.stdout
    assert 'the same image in' not in done.stdout
    found = {entry['source'].removeprefix('data1/'): entry for entry in entries(project)}
    assert Path(found[f'{ODD[1]}/copy1.png']['file']).parts[1] == ODD[0]
    run(epochs=1)
    page = (project / 'out' / 'report.html').read_text(encoding='utf-8')
    if 'id="review-data"' in page:
        data = json.loads(page.partition('id="review-data">')[2].partition('</script>')[0])
        assert set(asked).isdisjoint(file for item in data['items'] for file in item['files'])
        assert {row['file'] for row in data['earlier']} == set(asked)
    assert not view.problems


@pytest.mark.skipif(not (ROOT / 'extras' / 'labels').exists(), reason='there is no extras/labels')
def test_unlabelled_images_are_labelled_and_trained_on(project, show):
    """Two rounds: the second page asks for none of the first one's images, and hands out the labels of both.

    makedata.py has a process of its own, since tests of an extra run without the others.
    """
    shutil.rmtree(project / 'data')
    (project / 'new').mkdir()
    truth = {}
    for number, path in enumerate(sorted((project / 'data1').rglob('0*.png'))):
        shutil.copy(path, project / 'new' / f'{number}.png')
        truth[f'{number}.png'] = path.parent.name
    labelled = set()
    for _ in range(2):
        classify('--test-dir', 'new', '--review', 12, '--checkpoint', 'out/best.pth', '--print', 'none')
        view = start(show(project / 'predictions' / 'report.html'))
        assert left(view) == '12 of 12 left'
        for _ in range(12):
            file = shown(view)
            assert file not in labelled
            labelled.add(file)
            view.locator('#review-choices button:not(.out)', has_text=truth[file]).first.click()
        with view.expect_download() as waiting:
            view.click('#review-download')
        waiting.value.save_as(project / 'labels.csv')
        done = run_script('makedata.py', '--source-dir', 'new', '--labels', 'labels.csv', '--near-duplicates', 'false')
        assert done.returncode == 0, done.stderr
        run(epochs=1)
    assert labelled == {Path(entry['source']).name for entry in entries(project)}
