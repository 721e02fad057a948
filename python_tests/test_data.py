"""Data sets: parsed exactly as torchvision does, normalised by the training split."""

import pytest
import torch
from data_files import REAL_ROOT, bz2_lines, libsvm_line, needs_real, needs_sklearn

from chaos_ext.data import load, sources
from chaos_ext.data.datasets import digits_split

pytestmark = pytest.mark.usefixtures("own_cache")

# --- what load returns ---


@needs_sklearn
def test_digits_is_a_fixed_split_of_the_1797_uci_digits():
    d = load("digits")
    assert d.x_train.shape == (1437, 1, 16, 16)
    assert d.x_test.shape == (360, 1, 16, 16)
    assert d.x_train.dtype == torch.float32
    assert d.y_train.dtype == torch.int64
    assert (d.name, d.classes) == ("digits", 10)
    # Pinned: a change of this value changes every published digits result.
    assert d.fingerprint() == "0532140962737a7a"


def test_digits_split_parts_all_samples():
    train, test = digits_split(1797)
    assert torch.cat([train, test]).sort().values.tolist() == list(range(1797))
    assert (len(train), len(test)) == (1437, 360)


@needs_sklearn
def test_digits_are_scikit_learns_upsampled():
    sklearn_datasets = pytest.importorskip("sklearn.datasets")
    bundle = sklearn_datasets.load_digits()
    train, test = digits_split(1797)
    pixels = torch.tensor(bundle.images, dtype=torch.float32).unsqueeze(1) / 16
    d = load("digits")
    for index, x, y in ((train, d.x_train, d.y_train), (test, d.x_test, d.y_test)):
        assert torch.equal(torch.tensor(bundle.target)[index], y)
        back = torch.nn.functional.avg_pool2d(x * d.std + d.mean, 2)
        # Averaging a bilinear upsampling by two blurs each pixel with its neighbours, 1/8 from each side.
        padded = torch.nn.functional.pad(pixels[index], (1, 1, 1, 1), mode="replicate")
        blur = torch.tensor([0.125, 0.75, 0.125])
        expected = torch.nn.functional.conv2d(padded, (blur[:, None] * blur).view(1, 1, 3, 3))
        torch.testing.assert_close(back, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [pytest.param("digits", marks=needs_sklearn), "usps", "fashion_mnist"])
def test_training_split_has_mean_zero_and_std_one(name, request):
    root = {"usps": "usps_root", "fashion_mnist": "fashion_root"}.get(name)
    d = load(name, request.getfixturevalue(root) if root else None)
    assert d.x_train.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert d.x_train.double().std().item() == pytest.approx(1, abs=1e-6)
    # The test split is moved by the training statistics, not by its own.
    assert abs(d.x_test.double().mean().item()) > 1e-6
    pixels = d.x_test.double() * d.std + d.mean
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6


@needs_sklearn
def test_to_changes_images_and_moves_labels_without_changing_their_type():
    d = load("digits").to(torch.float64)
    assert d.x_train.dtype == d.x_test.dtype == torch.float64
    assert d.y_train.dtype == d.y_test.dtype == torch.int64


@needs_sklearn
def test_statistics_do_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    try:
        seen = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            d = load("digits")
            seen.append((d.mean, d.std, d.fingerprint()))
    finally:
        torch.set_num_threads(threads)
    assert seen[0] == seen[1] == seen[2]


# --- parsing, against torchvision ---


def test_usps_text_becomes_what_torchvision_makes_of_it(usps_root):
    datasets = pytest.importorskip("torchvision.datasets")
    d = load("usps", usps_root)
    for train, x, y in ((True, d.x_train, d.y_train), (False, d.x_test, d.y_test)):
        official = datasets.USPS(str(usps_root / "usps"), train=train)
        assert torch.equal(
            (x * d.std + d.mean).mul(255).round().squeeze(1).to(torch.uint8), torch.tensor(official.data)
        )
        assert y.tolist() == official.targets


def test_usps_values_by_hand():
    row = [-1.0] * 254 + [0.0, 1.0]
    grey, labels = sources.parse_usps(bz2_lines([libsvm_line(10, row)]))
    assert grey.shape == (1, 1, 16, 16)
    assert grey.flatten().tolist() == [0] * 254 + [127, 255]
    assert labels.tolist() == [9]


@needs_real("usps")
def test_real_usps_equals_torchvision():
    datasets = pytest.importorskip("torchvision.datasets")
    for name, train, n in (("usps.bz2", True, 7291), ("usps.t.bz2", False, 2007)):
        grey, labels = sources.parse_usps((REAL_ROOT / "usps" / name).read_bytes())
        official = datasets.USPS(str(REAL_ROOT / "usps"), train=train)
        assert len(labels) == n
        assert torch.equal(grey.squeeze(1), torch.tensor(official.data))
        assert labels.tolist() == official.targets


def test_fashion_mnist_is_resized_as_torchvision_does(fashion_root):
    v2 = pytest.importorskip("torchvision.transforms.v2")
    d = load("fashion_mnist", fashion_root)
    raw = sources.parse_idx((fashion_root / "FashionMNIST/raw/t10k-images-idx3-ubyte.gz").read_bytes())
    expected = v2.functional.resize(raw.unsqueeze(1).float() / 255, [16, 16], antialias=True)
    torch.testing.assert_close(d.x_test * d.std + d.mean, expected, rtol=0, atol=1e-5)
    assert d.y_test.tolist() == list(range(10))


@needs_real("fashion_mnist")
def test_real_fashion_mnist_has_its_official_shape():
    folder = REAL_ROOT / "FashionMNIST" / "raw"
    assert sources.parse_idx((folder / "t10k-images-idx3-ubyte.gz").read_bytes()).shape == (10000, 28, 28)
    labels = sources.parse_idx((folder / "train-labels-idx1-ubyte.gz").read_bytes())
    assert labels.bincount().tolist() == [6000] * 10
