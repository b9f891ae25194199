"""common/runtime/files.py: files that are whole or not there."""
import pytest

from common.runtime.errors import UserError
from common.runtime.files import replacing, writable_folder


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match="OUTPUT_DIR = .*file/x' cannot be written"):
        writable_folder(tmp_path / 'file' / 'x', 'OUTPUT_DIR')


def test_a_file_is_whole_or_the_old_one(tmp_path):
    (tmp_path / 'x').write_text('old')
    with pytest.raises(UserError, match='x cannot be written'), replacing(tmp_path / 'x') as aside:
        aside.write_text('half')
        raise OSError('disk full')
    assert (tmp_path / 'x').read_text() == 'old' and len(list(tmp_path.iterdir())) == 1
