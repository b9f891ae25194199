"""TEACHER: what is learnt is a trained network's word of the very image, and unlabelled images learn along."""
import errno
import importlib
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, TINY, build, configure, draw_folder, result, run, untrained

import models
import train
from common.data.datasets import ImageFolder
from common.data.transforms import Transform
from common.evaluation.predictor import FORMAT, load_network, restore
from common.runtime.errors import UserError
from common.training import run_length
from common.training.page import RunPage
from extras.teacher import Member, Teacher, add_unlabelled, build_teacher, load_teachers
from models import token_label_loss

CPU = torch.device('cpu')
OWN = Transform([32, 32], [0.5] * 3, [0.3] * 3)
OTHER = Transform([32, 32], [0.2, 0.4, 0.6], [0.1, 0.2, 0.4])


def save(path, model, **kwargs):
    """A network of three classes with random weights; returns the path."""
    torch.manual_seed(1)
    net = models.create_model(model, num_classes=3, img_size=32, **kwargs)
    torch.nn.init.normal_(net.get_classifier().weight)
    torch.save({'format': FORMAT, 'model': model, 'model_kwargs': kwargs, 'classes': list('abc'),
                'transform': OWN.as_dict(), 'state_dict': net.state_dict(), 'settings': {},
                'best': {'temperature': 2.}}, path)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save('x.pth', 'volo_d1', **TINY, return_dense=True)


def network(path):
    return restore(path, load_network(path)).eval()


def test_the_word_is_that_of_the_network_for_the_same_image():
    """Normalised for the one that learns; the temperature is that of its calibration."""
    pictures = torch.rand(4, 3, 32, 32)

    def normalised(transform):
        return (pictures - torch.tensor(transform.mean)[:, None, None]) / torch.tensor(transform.std)[:, None, None]

    found = Member('x.pth', load_network('x.pth'), OTHER, None, CPU)(normalised(OTHER))
    with torch.no_grad():
        expected = (network('x.pth')(normalised(OWN)) / 2).softmax(1)
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad and found.std(0).max() > 0.01


def test_images_are_resized_to_those_of_the_teacher():
    images = torch.randn(2, 3, 48, 80)
    found = Member('x.pth', load_network('x.pth'), OWN, None, CPU)(images)
    resized = F.interpolate(images, (32, 32), mode='bilinear', antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(found, (network('x.pth')(resized) / 2).softmax(1))


def test_several_are_averaged_and_leave_room_for_the_label():
    a, b = torch.tensor([[1., 0.], [0., 1.]]), torch.tensor([[0., 1.], [0., 1.]])
    teacher = Teacher([lambda images: a, lambda images: b], 0.5, 0.)
    assert teacher(None, torch.tensor([[1., 0.], [1., 0.]])).equal(torch.tensor([[0.75, 0.25], [0.5, 0.5]]))


def test_a_volo_says_what_each_token_shows():
    images = torch.randn(3, 3, 32, 32)
    found = Member('x.pth', load_network('x.pth'), OWN, (2, 2), CPU)(images)
    net = network('x.pth')
    assert found.shape == (3, 1 + 4, 3)
    with torch.no_grad():
        torch.testing.assert_close(found[:, 0], (net(images) / 2).softmax(1))
        net.training = True
        torch.testing.assert_close(found[:, 1:], (net(images)[1] / 2).softmax(2))


def test_a_teacher_that_was_trained_with_token_labels_mixes_nothing():
    member = Member('m.pth', load_network(save('m.pth', 'volo_d1', **TINY, return_dense=True, mix_token=True)), OWN,
                    (4, 4), CPU)
    images = torch.randn(4, 3, 64, 64)
    member.size = (64, 64)
    for seed in range(5):
        torch.manual_seed(seed)
        assert member(images).equal(member(images))


def test_so_does_a_convolutional_network():
    """The places of its last map are classified like whole images: the mean of their logits is the image's."""
    member = Member('c.pth', load_network(save('c.pth', 'test_resnet')), OWN, (4, 2), CPU)
    images = torch.randn(2, 3, 64, 64)
    member.size = (64, 64)
    with torch.no_grad():
        logits, maps = member.look_at_places(images)
        features = member.net.forward_features(images)
        torch.testing.assert_close(maps[:, :, 0, 1], member.net.fc(features[:, :, 0, 1]))
    assert maps.shape == (2, 3, 2, 2) and member(images).shape == (2, 1 + 8, 3)
    torch.testing.assert_close(maps.mean((2, 3)), logits)
    torch.testing.assert_close(member(images).sum(2), torch.ones(2, 9))


def test_a_coarser_grid_leaves_no_place_out(monkeypatch):
    member = Member('x.pth', load_network('x.pth'), OWN, (1, 1), CPU)
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 0, 0, 0] = 99.
    monkeypatch.setattr(member, 'look_at_places', lambda images: (torch.zeros(1, 3), maps))
    found = member(torch.zeros(1, 3, 32, 32))
    torch.testing.assert_close(found[0, 0], torch.full((3,), 1 / 3))
    assert found[0, 1, 0] > 0.34


def test_targets_of_tokens_are_those_of_the_image_where_they_are_alike():
    torch.manual_seed(0)
    outputs = torch.randn(4, 3), torch.randn(4, 6, 3), (0, 1, 2, 2)
    targets = torch.rand(4, 3).softmax(1)
    alike = targets[:, None].expand(-1, 7, -1)
    torch.testing.assert_close(token_label_loss(outputs, alike), token_label_loss(outputs, targets))
    each = torch.rand(4, 7, 3).softmax(2)
    dense = -(each[:, 1:] * outputs[1].log_softmax(2)).sum(2).mean(1)
    whole = token_label_loss(outputs, each[:, 0], dense_weight=0.)
    torch.testing.assert_close(token_label_loss(outputs, each), whole + 0.5 * dense)


@pytest.fixture
def data(tmp_path):
    for side, count in (('train', 8), ('val', 2)):
        draw_folder(tmp_path / 'data' / side, dict.fromkeys('abc', count), seed=count)
    return tmp_path / 'data'


@pytest.mark.parametrize('changes, shape', [
    ({'mixup_prob': 1}, (8, 3)), ({'mixup_prob': 0, 'token_label': 'true'}, (8, 1 + 4, 3))])
def test_what_is_learnt_is_said_of_the_very_image(data, changes, shape):
    """That of the batch, turned and mixed as it is."""
    cfg, batches, state = build(teacher='x.pth', **changes)
    model = state.model
    given = []

    def noted(images, targets):
        given.append((images, targets))
        return model(images, targets)

    state.model = noted
    train.train_one_epoch(cfg, state, batches, 0, lambda result, batches: setattr(state.progress, 'updates', 9))
    [(images, targets)] = given
    assert targets.shape == shape and targets.equal(state.teach.members[0](images))
    assert state.teach(*run_length.blank_batch(batches, CPU)).shape == shape


def test_a_teacher_sees_images_of_its_own_size(data, monkeypatch):
    """Of 32 pixels; a network of 16 gets the same ones reduced, and is validated with its own."""
    seen = {True: [], False: []}  # by whether it trains
    plain = []
    validate = train.validate
    forward = models.VOLO.forward
    asked = Member.forward

    def noted_forward(net, x):
        seen[net.training].append(x.shape[2:])
        return forward(net, x)

    def noted_validate(model, loader, *rest):
        plain.extend(loader)
        return validate(model, loader, *rest)

    monkeypatch.setattr(models.VOLO, 'forward', noted_forward)
    monkeypatch.setattr(train, 'measure_batch_norm', lambda nets, loader, *rest: plain.extend(loader))
    monkeypatch.setattr(train, 'validate', noted_validate)
    run(teacher='x.pth', img_size=16, epochs=1, mixup_prob=0)
    assert {*seen[True]} == {(16, 16)} and {*seen[False]} == {(16, 16), (32, 32)}
    assert len(plain) > 3 and all(images.shape[2:] == (16, 16) for images, _ in plain)
    shapes = []

    def noted_question(member, x):
        shapes.append(x.shape[2:])
        return asked(member, x)

    monkeypatch.setattr(Member, 'forward', noted_question)
    run(teacher='x.pth', img_size=16, epochs=2, mixup_prob=0, resume='true')
    assert shapes.count((16, 16)) == 1 and {*shapes} == {(16, 16), (32, 32)}, 'the smaller ones are of its check'


def test_of_several_sizes_the_largest_is_taken(data, monkeypatch):
    saved = load_network(save('wide.pth', 'test_resnet'))
    saved['transform']['img_size'] = [16, 48]
    torch.save(saved, 'wide.pth')
    sizes = []
    real = train.build_data

    def noted(*given):
        sizes.append(given[3].img_size)
        return real(*given)

    monkeypatch.setattr(train, 'build_data', noted)
    run(teacher='x.pth,wide.pth', img_size='16,64', epochs=1)
    assert sizes == [[32, 64]]


def test_a_run_with_a_teacher_counts_its_compute_and_can_be_balanced(data):
    flop = [build(**changes)[2].image_flop for changes in ({}, {'teacher': 'x.pth'}, {'teacher': 'x.pth,x.pth'})]
    assert flop[0] < flop[1] and flop[2] - flop[1] == flop[1] - flop[0]
    run(epochs=1, teacher='x.pth', mixup_prob=0, token_label='true', balance='weights', time_budget=0.05)
    assert result()['settings']['TEACHER'] == 'x.pth'


def test_the_bench_counts_it_too(data, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tests' / 'bench')
    recipes, images = importlib.import_module('recipes'), ImageFolder(data / 'train')
    alone, taught, twice = (recipes.image_flop(configure(optimizer='adamw', **changes), images, (32, 32))
                            for changes in ({}, {'teacher': 'x.pth'}, {'teacher': 'x.pth,x.pth'}))
    assert alone < taught and twice - taught == pytest.approx(taught - alone)


def test_a_time_budget_counts_the_time_of_the_teacher(data, monkeypatch):
    asked = []
    real = Teacher.__call__
    monkeypatch.setattr(Teacher, '__call__', lambda *given: asked.append(1) or real(*given))
    monkeypatch.setattr(run_length, 'REHEARSAL_SECONDS', 0)
    _, _, state = build(teacher='x.pth', time_budget=1, accumulate_steps=3)
    assert len(asked) == 1 + 3 * state.clock.count


def test_the_initial_weights_are_those_without_a_teacher(data, monkeypatch):
    draw_folder(data / 'unlabelled', {'x': 2}, seed=9)
    save('c.pth', 'test_resnet')
    first = []
    monkeypatch.setattr(train, 'train_epochs', lambda cfg, state, *others: first.append(state.net.state_dict()))
    monkeypatch.setattr(train.log, 'print_result', lambda *given: None)
    run()
    run(teacher='c.pth')
    assert all(first[0][name].equal(value) for name, value in first[1].items())


def test_unlabelled_images_learn_along(data, capsys, monkeypatch):
    """With the class that the teacher gives them; what is no image is left out, and none is suspected."""
    draw_folder(data / 'unlabelled', {'from a camera': 5}, seed=9)
    for name in ('bad.png', 'notes.txt'):
        (data / 'unlabelled' / name).write_text('no image')
    monkeypatch.setattr('common.evaluation.suspects.Margins.suspects', lambda self: [(i, 0, -.5) for i in range(29)])
    run(teacher='x.pth', epochs=1)
    out = capsys.readouterr().out
    assert '5 images, each labelled by TEACHER' in out and 'checking 29 images for training' in out
    assert 'left out: data/unlabelled/bad.png: not a readable image' in out
    assert 'left out of data/unlabelled: 1 .txt, 1 not readable' in out
    rows = [line for line in Path('out/suspects.csv').read_text('utf-8').splitlines() if 'train/' in line]
    assert len(rows) == 24
    with pytest.raises(UserError, match="last.pth was trained with TEACHER = 'x.pth': set it back"):
        run(epochs=2, resume='true')
    run(teacher='x.pth', epochs=2, resume='true')


def test_a_run_goes_on_where_the_teacher_decides_otherwise(data, capsys):
    """As it may on another machine, by rounding."""
    draw_folder(data / 'unlabelled', {'x': 5}, seed=9)
    run(teacher='x.pth', epochs=1)
    saved = load_network('x.pth')
    for name in ('head.weight', 'head.bias', 'aux_head.weight', 'aux_head.bias'):
        saved['state_dict'][name] = -saved['state_dict'][name]
    torch.save(saved, 'x.pth')
    run(teacher='x.pth', epochs=2, resume='true')
    (data / 'unlabelled' / 'x' / '000.png').unlink()
    with pytest.raises(UserError, match='other images than DATA_DIR has now'):
        run(teacher='x.pth', epochs=3, resume='true')


def test_the_page_shows_unlabelled_images_too(data):
    draw_folder(data / 'unlabelled', {'x': 40}, seed=9)
    run(teacher='x.pth', epochs=1)
    page = Path('out/report.html').read_text('utf-8')
    assert page[page.index('As the network saw them</h2>'):].count('data:image/jpeg') == 2 * 8


@pytest.mark.parametrize('changes', [{}, {'token_label': 'true'}])
def test_the_page_says_what_the_teacher_says(data, changes):
    """In place of the labels, which are not learnt then."""
    cfg, batches, state = build(teacher='x.pth', mixup_prob=0, **changes)
    word = torch.tensor([0.25, 0.05, 0.7]).expand(8, 3)
    state.teach = lambda images, targets: word[:, None].expand(8, 5, 3) if changes else word
    pictures = RunPage({'settings': vars(cfg)}, state, batches, data).batch_section(0)['pictures']
    assert [picture['lines'] for picture in pictures] == [[('', 'c 70%, a 25%')]] * 8


def test_a_hiccup_of_the_disk_loses_no_unlabelled_image(data, monkeypatch):
    draw_folder(data / 'unlabelled', {'x': 2}, seed=9)
    failures = [1]
    real = os.stat

    def stat(path, **options):
        if str(path).endswith('unlabelled') and failures:
            failures.pop()
            raise OSError(errno.EIO, 'the network is away')
        return real(path, **options)

    monkeypatch.setattr(os, 'stat', stat)
    split = train.open_split('data')
    add_unlabelled(split, load_teachers('x.pth', split.classes, Path('out')), 0, False)
    assert len(split.train) == 24 + 2 and not failures


def test_damaged_images_are_no_change_of_the_folder(data, capsys):
    draw_folder(data / 'unlabelled', {'x': 2}, seed=9)
    (data / 'train' / 'a' / 'bad.png').write_text('no image')
    run(teacher='x.pth', epochs=1)
    out = capsys.readouterr().out
    assert 'checking 27 images for training' in out and '1 files are left out' in out


def test_what_cannot_teach_is_refused_at_once(data):
    untrained('other.pth', classes=('a', 'b', 'd'))
    with pytest.raises(UserError, match='TEACHER: other.pth: its classes, a, b, d, are not those of DATA_DIR'):
        run(teacher='other.pth')
    with pytest.raises(UserError, match='TEACHER: nowhere.pth: no such file'):
        run(teacher='nowhere.pth')
    save('plain.pth', 'volo_d1', **TINY, return_dense=False)
    with pytest.raises(UserError, match='TEACHER: plain.pth does not say what each part of an image shows'):
        build_teacher('plain.pth', 1., OWN, True, CPU, False)


def test_a_teacher_with_non_finite_logits_is_refused(data):
    """Else every update would be skipped, and LR would be blamed."""
    saved = load_network('x.pth')
    saved['state_dict']['head.bias'][1] = float('nan')
    torch.save(saved, 'nan.pth')
    with pytest.raises(UserError, match='TEACHER: nan.pth: its weights give non-finite logits'):
        run(teacher='x.pth, nan.pth')


def test_a_run_does_not_learn_from_itself(data):
    """A checkpoint in OUTPUT_DIR is replaced by those of the run, from which a resumed one would then learn."""
    run(epochs=1, use_ema='false')
    for path in ('out/best.pth', Path('out/best.pth').absolute()):
        with pytest.raises(UserError, match='TEACHER: .*best.pth lies in OUTPUT_DIR'):
            run(teacher=path)
    assert not Path('out/previous_best.pth').exists()
