"""How a browser manages a review of thousands of candidates: what extras/review/README.md says of it.

    python tests/bench/review_page.py --photos PHOTOS --candidates 10000

makes the page of so many candidates, each a photograph of PHOTOS with a class drawn at random as its label, opens it in
Chromium by Playwright, and prints the size of the file, the seconds until a key can decide, the memory of the tab,
frames per second while the wall scrolls, and the time of decisions. Fewer photographs come several times.
"""
import itertools
import random
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import sync_playwright

from common import settings
from common.data.folders import find_in_class_folders
from common.data.images import open_image
from common.reporting.page import write_page
from extras.review.candidates import SUSPECT, Candidate, Choices
from extras.review.page import Review, review_section
from extras.review.pictures import Pictures

PHOTOS = 'data1'                  # One sub-folder for each class.
CANDIDATES = 10_000
PAGE = 'review.html'              # It is written here.
FRAMES = 600                      # While the wall scrolls.
SEED = 1

_SCROLL = '''async frames => {
  const wall = document.getElementById('review-wall')
  const times = []
  let last = performance.now()
  for (let number = 0; number < frames; number++) {
    wall.scrollTop += 120
    await new Promise(requestAnimationFrame)
    times.push(performance.now() - last)
    last = performance.now()
  }
  times.sort((one, other) => one - other)
  return times
}'''

_SHOWN = '''async () => {
  await document.querySelector('#review-pictures img').decode()
  await new Promise(resolve => requestAnimationFrame(() => requestAnimationFrame(resolve)))
}'''


def main(cfg):
    start = time.perf_counter()
    make_page(cfg)
    print(f'made in {time.perf_counter() - start:.1f} s: {Path(cfg.PAGE).stat().st_size / 1e6:.1f} MB')
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which('chromium'), args=['--no-sandbox'])
        measure(cfg, browser)
        browser.close()


def make_page(cfg):
    found = find_in_class_folders(cfg.PHOTOS)
    rng = random.Random(cfg.SEED)
    candidates = []
    paths = {}
    for number, (path, target) in zip(range(cfg.CANDIDATES), itertools.cycle(found.samples), strict=False):
        name = f'{number}/{Path(path).name}'
        paths[name] = path
        candidates.append(Candidate(SUSPECT, [name], [rng.choice(found.classes)], [found.classes[target]]))
    rng.shuffle(candidates)
    review = Review(candidates, found.classes, Choices(found.classes), {}, cfg.PHOTOS)
    section = review_section(review, Pictures(lambda name, side: open_image(paths[name], side)))
    write_page(Path(cfg.PAGE), 'A review', section['note'], [], [section])


def measure(cfg, browser):
    view = browser.new_page(viewport={'width': 1280, 'height': 800})
    start = time.perf_counter()
    view.goto(Path(cfg.PAGE).resolve().as_uri() + '#reviewing', wait_until='domcontentloaded')
    view.wait_for_function('document.querySelector("#review-pictures img")?.naturalWidth > 0')
    print(f'usable after {time.perf_counter() - start:.1f} s')
    start = time.perf_counter()
    for _ in range(100):
        view.keyboard.press('2')
        view.evaluate(_SHOWN)
    print(f'a decision takes {10 * (time.perf_counter() - start):.0f} ms, with the way from Playwright')
    view.keyboard.press('w')
    times = view.evaluate(_SCROLL, cfg.FRAMES)
    print(f'scrolling: {1000 * len(times) / sum(times):.0f} frames per second, median {times[len(times) // 2]:.1f} ms, '
          f'95 % within {times[95 * len(times) // 100]:.1f} ms')
    start = time.perf_counter()
    view.keyboard.press('Control+a')
    view.keyboard.press('2')
    view.wait_for_function('document.getElementById("review-left").textContent.startsWith("0 ")')
    print(f'{cfg.CANDIDATES - 100} at once: {time.perf_counter() - start:.2f} s')
    processes = browser.new_browser_cdp_session().send('SystemInfo.getProcessInfo')['processInfo']
    sizes = [resident(process['id']) for process in processes if process['type'] == 'renderer']
    print(f'memory of the tab: {max(sizes):.0f} MiB')
    start = time.perf_counter()
    view.reload(wait_until='domcontentloaded')
    view.wait_for_function('document.getElementById("review-left").textContent.startsWith("0 ")')
    print(f'reloaded with all decisions after {time.perf_counter() - start:.1f} s')


def resident(process):
    """MiB of memory of a process, under Linux."""
    for line in Path(f'/proc/{process}/status').read_text().splitlines():
        if line.startswith('VmRSS'):
            return int(line.split()[1]) / 1024
    return 0.


if __name__ == '__main__':
    settings.run(main)
