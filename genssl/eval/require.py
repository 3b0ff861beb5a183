"""What an evaluation asks of the run and the data it is given."""

from genssl.data.split import Split
from genssl.errors import UserError
from genssl.models.ddpm import DDPM
from genssl.models.method import Method
from genssl.models.vae import VAE


def require_vae(method: Method, what: str) -> VAE:
    """The method as a VAE.

    Raises:
        UserError: it is another method.
    """
    if not isinstance(method, VAE):
        raise UserError(f"{what} needs a vae, and this is a {method.config.method}; choose another run")
    return method


def require_ddpm(method: Method, what: str) -> DDPM:
    """The method as a DDPM.

    Raises:
        UserError: it is another method.
    """
    if not isinstance(method, DDPM):
        raise UserError(f"{what} needs a ddpm, and this is a {method.config.method}; choose another run")
    return method


def check_size(method: Method, split: Split) -> None:
    """Refuse images of another size than the method was trained on.

    Raises:
        UserError: the sizes differ.
    """
    size, found = method.config.image_size, split.images.shape[-1]
    if found != size:
        raise UserError(f"the run was trained on {size}x{size} images, the data are {found}x{found}")
