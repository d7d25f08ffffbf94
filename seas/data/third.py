"""How many images of a type train: a third of them (Sec. 4.1), or a number drawn from it (Tab. 11)."""

from seas.data.settings import DataSettings
from seas.errors import InputError


def third_of(product: str, name: str, images: int, data: DataSettings) -> int:
    """The third of a type's images, in whole ones; all of fewer than three, if such a type may train untested.

    Raises InputError when it may not.
    """
    if images >= 3:
        return images // 3
    if data.train_only_small_types:
        return images
    raise InputError(
        f"{product}: the type '{name}' has {images} image{'s' * (images != 1)}; 3 are needed to train and to test "
        "(data.train_only_small_types lets such a type train untested)"
    )


def require_shots(product: str, name: str, third: int, data: DataSettings) -> None:
    """Raise InputError when more shots are wanted than a type's third has images."""
    if isinstance(data.shots, int) and data.shots > third:
        raise InputError(f"{product}: data.shots is {data.shots}, but a third of the type '{name}' has {third} images")
