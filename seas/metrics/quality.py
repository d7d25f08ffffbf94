"""How real generated images look to a classifier: Inception Score and Kernel Inception Distance."""

from torch import Tensor
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from seas.seeding import seed_of


def inception_score(logits: Tensor, splits: int) -> float:
    """exp of the mean KL divergence of p(class | image) from p(class), mean over consecutive splits; 1 to the classes.

    ``logits`` (images, classes), at least ``splits`` images. (Salimans et al. 2016, as torch-fidelity computes it.)
    """
    return isc_features_to_metric(logits, splits, shuffle=False)[KEY_METRIC_ISC_MEAN]


def kid(real: Tensor, generated: Tensor, subset_size: int, *, seed: int, subsets: int = 100) -> float:
    """The unbiased squared MMD with the kernel (x·y / channels + 1)³, mean over random subsets; about 0 or above.

    ``real`` and ``generated`` are features (images, channels), each with at least ``subset_size`` >= 2 images.
    (Bińkowski et al. 2018, as torch-fidelity computes it.)
    """
    found = kid_features_to_metric(
        real.double(),
        generated.double(),
        kid_subsets=subsets,
        kid_subset_size=subset_size,
        kid_kernel="poly",
        kid_kernel_poly_degree=3,
        kid_kernel_poly_gamma=None,
        kid_kernel_poly_coef0=1.0,
        rng_seed=seed_of(seed, "kid subsets") % 2**32,
        verbose=False,
    )
    return found[KEY_METRIC_KID_MEAN]
