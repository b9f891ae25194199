"""What BALANCE brings where half of the classes have a tenth of their pictures: what docs/trust.md says of it.

    python tests/bench/balance.py --photos PHOTOS --balance weights --seed 1

trains as train.py does, from scratch, with so much compute, and prints what the averaged weights of the last epoch get
right on data/val, which keeps all pictures. A run that was interrupted goes on.
"""
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from recipes import run_train

import makedata
import mean_std
from common import settings
from common.data.folders import list_images
from common.evaluation.metrics import scores
from common.evaluation.predictor import Predictor

PHOTOS = 'data1'                  # one sub-folder for each class
BALANCE = 'none'                  # or 'weights', 'sampler'
PFLOP = 0.077
SEED = 1
OPTIONS = '--view above'
WORK_DIR = 'bench'


def main(cfg):
    photos, work = Path(cfg.PHOTOS).resolve(), Path(cfg.WORK_DIR)
    work.mkdir(exist_ok=True)
    os.chdir(work)
    makedata.main(settings.read(makedata, [
        '--source-dir', str(photos), '--link', 'true', '--near-duplicates', 'false']))
    for folder in sorted(Path('data/train').iterdir())[::2]:
        for number, path in enumerate(list_images(folder)):
            if number % 10:
                os.unlink(path)
    mean_std.main(settings.read(mean_std, ['--data-dir', 'data/train']))
    trained = run_train(f'{cfg.OPTIONS} --balance {cfg.BALANCE}', cfg.PFLOP, cfg.SEED)
    saved = trained.weights['ema']
    found = [prediction for prediction in Predictor({'ema': saved})(list_images('data/val')) if not prediction.error]
    targets = [saved['classes'].index(Path(prediction.image).parent.name) for prediction in found]
    result = scores(torch.stack([prediction.logits for prediction in found]), torch.tensor(targets), saved['classes'])
    recalls = [result['report'][name]['recall'] for name in saved['classes']]
    print(json.dumps({'balance': cfg.BALANCE, 'seed': cfg.SEED, 'pflop': round(trained.pflop, 4),
                      'balanced_accuracy': round(result['balanced_accuracy'], 2), 'acc1': round(result['acc1'], 2),
                      'recall_few': round(100 * sum(recalls[::2]) / len(recalls[::2]), 2),
                      'recall_many': round(100 * sum(recalls[1::2]) / len(recalls[1::2]), 2)}))


if __name__ == '__main__':
    settings.run(main)
