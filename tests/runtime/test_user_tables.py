"""Tables as people write them and spreadsheets save them."""
import pytest

from common.runtime.errors import UserError
from common.runtime.user_tables import read_user_table, tidy


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def read(content, **options):
    with open('table.csv', 'wb') as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    rows = read_user_table('table.csv', 'LABELS', required=('file', 'class'), optional=('group',), **options)
    return [(place.rpartition(' ')[2], *(tidy(cells[name]) for name in ('file', 'class', 'group')))
            for place, cells in rows]


ROWS = [('2', 'x.jpg', 'Fat Hen', 'p 1'), ('3', 'ö.jpg', 'café', '')]
PLAIN = 'file,class,group\nx.jpg,Fat Hen,p 1\nö.jpg,café,\n'


@pytest.mark.parametrize('content', [
    PLAIN, PLAIN.replace(',', ';'), PLAIN.replace(',', '\t'), PLAIN.replace(',', '|'), PLAIN.replace(',', ', '),
    PLAIN.replace(',', ' ; '), PLAIN.replace('\n', '\r\n'), PLAIN.replace('\n', '\r'), PLAIN.rstrip(),
    PLAIN.replace('file,class,group', 'FILE,Class, GROUP '), PLAIN.replace('Fat Hen', '"Fat Hen"'),
    PLAIN.replace(',', ', ').replace('Fat Hen', '"Fat Hen"'), PLAIN.replace('café', 'cafe\u0301'),
    PLAIN.replace('Fat Hen', '\u00a0Fat Hen \t'), f'{PLAIN},,\n\n \n', PLAIN.encode('utf-8-sig'),
    PLAIN.replace(',', '\t').encode('utf-16'), PLAIN.encode('utf-16-le').join([b'\xff\xfe', b'']),
    b'\xfe\xff' + PLAIN.encode('utf-16-be'),
    '\ufeff"file","class","group"\n"x.jpg","Fat Hen","p 1"\n"ö.jpg","café",""'])
def test_every_way_to_save_a_table(content):
    assert read(content) == ROWS


def test_columns_in_any_order_among_others_and_a_note_of_excel():
    content = 'sep=;\nnote;group;class;file\n"a; b";p 1;Fat Hen;x.jpg\nc;;café;ö.jpg\n'
    assert read(content) == [(str(int(line) + 1), *cells) for line, *cells in ROWS]
    assert read('class,file\na,x.jpg') == [('2', 'x.jpg', 'a', '')]


def test_a_text_with_a_comma_stands_in_quotation_marks():
    assert read('file,class\n"a, b.jpg","Hen, fat"') == [('2', 'a, b.jpg', 'Hen, fat', '')]
    with pytest.raises(UserError, match="^LABELS = 'table.csv', line 3: it has 3 cells, and the first line has 2: put"):
        read('file,class\nx.jpg,a,\ny.jpg,Hen, fat')


@pytest.mark.parametrize('content, words', [
    ('picture,label\nx.jpg,a', 'must name the columns file and class, as in "file,class", but is "picture,label"'),
    ('sep=;\nbild;klasse\nx.jpg;a', 'but is "bild;klasse"'), ('x.jpg,a\ny.jpg,b', 'but is "x.jpg,a"'), ('', 'is ""'),
    ('file\tklass\n', 'but is "file.tklass"'), (f'{300 * "n"}\n', f'but is "{80 * "n"}"$'),
    ('file,class,CLASS\nx,a,b', 'more than one column class'), ('file,class\n\nx.jpg, \n', 'line 3: a row needs a f'),
    ('file,class\n,a', 'line 2: a row needs a file and a class'), ('file,class\nx.jpg', 'line 2: a row needs a f'),
    (b'PK\x03\x04workbook', 'is a workbook: save it as "CSV UTF-8"'),
    ('文件,类'.encode('gbk'), 'it is not in UTF-8; a spreadsheet saves it as "CSV UTF-8"'),
    ('file,class\nx,é'.encode('cp1252'), 'not in UTF-8'),
    (f'file,class\nx,"{200_000 * "n"}"', 'cannot be read: field')])
def test_mistakes_are_one_line_that_names_the_file(content, words):
    with pytest.raises(UserError, match=words) as error:
        read(content)
    assert str(error.value).startswith("LABELS = 'table.csv'") and '\n' not in str(error.value)


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match="^LABELS = 'gone.csv' cannot be read: No such file"):
        list(read_user_table('gone.csv', 'LABELS', required=('file',)))
