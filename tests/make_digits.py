"""Make xnet/digits.npz anew from scikit-learn's copy of the digits: python tests/make_digits.py."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

PATH = Path(__file__).parents[1] / "xnet" / "digits.npz"
LICENCE = (
    "Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak (1998), UCI Machine "
    "Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0, "
    "https://creativecommons.org/licenses/by/4.0/. Its 1,797 test samples, in another order."
)


def content():
    """What the file holds: pixels 0..16 (1797, 8, 8), labels (1797,), and where they are from.

    In an order of no meaning, always the same: the file's first four fifths are for training.
    """
    original = load_digits()
    order = np.random.default_rng(0).permutation(len(original.target))
    return {
        "images": original.images[order].astype(np.uint8),
        "labels": original.target[order].astype(np.uint8),
        "licence": np.array(LICENCE),
    }


if __name__ == "__main__":
    np.savez_compressed(PATH, **content())
