"""Step 4: name the class of every picture in a folder, with the weights that train.py kept.

    python test.py                                              data/val, with the best weights
    python test.py --test-dir photos --checkpoint best.pth      any folder, flat or nested, or a single picture

needs the checkpoint and nothing else: classes, image size and normalisation come out of it. Writes predictions.csv,
predictions.json and the contact sheet predictions.png to OUTPUT_DIR; where the sub-folders of TEST_DIR are named like
classes, also ACC1, ACC5 and a report per class.
"""
from collections import namedtuple
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from common import settings
from common.data import transforms as augment
from common.data.cache import Pictures
from common.data.folders import list_images
from common.data.images import BadImage, open_image
from common.data.loaders import init_worker
from common.evaluation.metrics import scores
from common.reporting import plots as report
from common.reporting.tables import write_scores
from common.runtime.console import Bar, printable
from common.runtime.device import choose_amp_dtype, choose_device, describe_device
from common.runtime.errors import UserError, explain_failures
from common.runtime.files import writable_folder, write_csv, write_json
from common.runtime.machine import retain_freed_memory, worker_count
from common.runtime.parallel import parallel
from common.training import checkpoint
from models import WeightsError, check_saved, restore_model

CHECKPOINT = 'checkpoints/volo_d1/best.pth'  # what train.py wrote
TEST_DIR = 'data/val'             # a folder of pictures, flat or nested, or one picture
OUTPUT_DIR = 'predictions'        # where the tables and the contact sheet go
BATCH_SIZE = 32                   # pictures at a time; the predictions do not depend on it
NUM_WORKERS: int | str = 'auto'   # processes that read pictures; 'auto' takes one for each core
USE_AMP = True                    # mixed precision, where the processor gains from it, as in training
USE_DP = True                     # DataParallel, when there are several GPUs
_SHEET = 36                       # pictures on the contact sheet

Prediction = namedtuple('Prediction', 'path logits error')  # logits is None where error says why


def main(cfg):
    if cfg.BATCH_SIZE < 1:
        raise UserError(f'BATCH_SIZE = {cfg.BATCH_SIZE} must be at least 1')
    retain_freed_memory()
    saved = checkpoint.load(cfg.CHECKPOINT)
    try:
        check_saved(saved)
    except WeightsError as error:
        raise UserError(f'{cfg.CHECKPOINT}: {error}') from None
    paths = find_pictures(cfg.TEST_DIR)
    out = writable_folder(cfg.OUTPUT_DIR, 'OUTPUT_DIR')
    with explain_failures('lower BATCH_SIZE', 'nothing was written'):
        predictions = predict(cfg, saved, paths)
    rows = [describe_prediction(p, cfg.TEST_DIR, saved['classes']) for p in predictions]
    again = (out / 'predictions.json').exists()  # then the reports in that folder are of an earlier run
    write_tables(out, rows)
    for row in rows:
        result = row['error'] or f'{row["class"]} ({row["confidence"]:.1%})'
        print(f'{printable(row["path"])} → {printable(result)}')
    truth = true_classes(paths, cfg.TEST_DIR, saved['classes'])
    draw_sheet(out, predictions, rows, truth, saved['classes'])
    for name in ('report.txt', 'report.json', 'confusion.png'):
        if again and (out / name).is_file():
            (out / name).unlink()
    if truth:
        report_accuracy(out, predictions, truth, saved['classes'])
    failed = sum(bool(row['error']) for row in rows)
    print(f'\n{len(rows) - failed} pictures named, {failed} unreadable; see {out}/predictions.csv, .json and .png')


def find_pictures(test_dir):
    path = Path(test_dir)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f'TEST_DIR = {test_dir!r}: no such file or folder')
    paths = list_images(path)
    if not paths:
        raise UserError(f'TEST_DIR = {test_dir!r}: no pictures in it')
    return paths


class Folder(Dataset):
    """(transformed picture, '') for every path, or (None, what is wrong with the file)."""

    def __init__(self, paths, settings):
        self.paths, self.transform = paths, augment.eval_transform(settings)
        self.open = Pictures(augment.fit(settings), settings['img_size'], augment.least_side(settings))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        try:
            return self.transform(self.open(self.paths[index])), ''
        except BadImage as error:
            return None, str(error)


def collate(items):
    """(batch of the readable pictures or None, [error or '' for each item])."""
    images = [image for image, _ in items if image is not None]
    return default_collate(images) if images else None, [error for _, error in items]


@torch.no_grad()  # not inference_mode, which the threads of DataParallel would leave
def predict(cfg, saved, paths):
    """A Prediction for every path, in the same order."""
    device = choose_device()
    dtype = choose_amp_dtype(device) if cfg.USE_AMP else None
    print(describe_device(device, dtype))
    loader = DataLoader(Folder(paths, saved['transform']), cfg.BATCH_SIZE, collate_fn=collate,
                        pin_memory=device.type == 'cuda', num_workers=min(worker_count(cfg.NUM_WORKERS), len(paths)),
                        worker_init_fn=init_worker)
    batches = iter(loader)  # reading begins while the network is built
    try:
        net = restore_model(saved)
    except WeightsError as error:
        raise UserError(f'{cfg.CHECKPOINT}: {error}') from error
    model = parallel(net.to(device), device, dtype, cfg.USE_DP).eval()
    predictions = []
    with Bar(total=len(paths), desc='predicting', unit='img') as bar:
        for images, errors in batches:
            logits = iter(())
            if images is not None:
                logits = model(images.to(device, non_blocking=True)).float().cpu()
                if not logits.isfinite().all():
                    raise UserError(f'{cfg.CHECKPOINT}: what its weights compute is no number')
                logits = iter(logits)
            for error in errors:
                predictions.append(Prediction(paths[len(predictions)], None if error else next(logits), error))
            bar.update(len(errors))
    return predictions


def describe_prediction(prediction, test_dir, classes):
    """A row for the tables: path below TEST_DIR, class, confidence, the five most probable classes, error."""
    path = prediction.path.name if Path(test_dir).is_file() else prediction.path.relative_to(test_dir).as_posix()
    if prediction.error:
        return {'path': path, 'class': '', 'confidence': None, 'top5': [], 'error': prediction.error}
    shares, indices = prediction.logits.softmax(0).topk(min(5, len(classes)))
    top = [{'class': classes[i], 'confidence': round(share, 6)}
           for share, i in zip(shares.tolist(), indices.tolist(), strict=True)]
    return {'path': path, **top[0], 'top5': top, 'error': ''}


def write_tables(out, rows):
    write_json(out / 'predictions.json', rows)
    write_csv(out / 'predictions.csv', [
        {**row, 'top5': '; '.join(f'{top["class"]} {top["confidence"]:.4f}' for top in row['top5'])} for row in rows])


def true_classes(paths, test_dir, classes):
    """{path: class index} for the pictures in sub-folders named like classes, {} where there are none."""
    if Path(test_dir).is_file():
        return {}
    folders = {path: path.relative_to(test_dir).parts[0] for path in paths if path.parent != Path(test_dir)}
    truth = {path: classes.index(name) for path, name in folders.items() if name in classes}
    unknown = sorted({name for path, name in folders.items() if name not in classes})
    if truth and unknown:
        print(f'not counted in the accuracy, since the network knows no such class: {", ".join(unknown)}')
    return truth


def draw_sheet(out, predictions, rows, truth, classes):
    """Up to _SHEET of the pictures, evenly over the list; green is right, red is wrong, black has no known truth."""
    cells = []
    pairs = list(zip(predictions, rows, strict=True))
    count = min(_SHEET, len(pairs))
    for prediction, row in (pairs[i * len(pairs) // count] for i in range(count)):
        if prediction.error:
            cells.append((None, f'{row["path"][-24:]}\nunreadable', 'black'))
            continue
        text, colour = f'{row["class"]} {row["confidence"]:.0%}', 'black'
        if prediction.path in truth:
            expected = classes[truth[prediction.path]]
            colour = 'green' if row['class'] == expected else 'red'
            text += '' if row['class'] == expected else f'\nis {expected}'
        try:
            image = open_image(prediction.path, at_least=256)
        except BadImage as error:  # it was readable a moment ago
            cells.append((None, str(error)[-24:], 'black'))
            continue
        image.thumbnail((256, 256))
        cells.append((image, text, colour))
    report.contact_sheet(out / 'predictions.png', cells, f'{len(cells)} of {len(rows)} predictions')


def report_accuracy(out, predictions, truth, classes):
    known = [p for p in predictions if p.path in truth and not p.error]
    if not known:
        return
    result = scores(torch.stack([p.logits for p in known]), torch.tensor([truth[p.path] for p in known]), classes)
    text = write_scores(out, result, classes, {'pictures': len(known)})
    print(f'\n{text}, on {len(known)} pictures\n\n{result["report_text"]}')


if __name__ == '__main__':
    settings.run(main)
