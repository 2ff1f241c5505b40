"""Settings of a server that do not depend on a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemwright.images.masks import MaskDecoder

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Settings:
    """Who may use a server, and the limits of a request.

    Attributes:
        api_keys: Keys of which a request must bear one; none are required if it is empty.
        cors_origins: Origins of web pages, apart from the server's own, that may use it; "*" for any.
        max_body: Maximum size of a request's body in bytes.
        max_images: Maximum number of images of a request.
        max_pixels: Maximum number of pixels of all images of a request.
        page: Whether the web page is served.
        mask_decoder: Decodes the masks that the page draws; without it, boxes are drawn alone.
        ping_seconds: Time without an event after which a stream sends a comment, so that proxies keep it open.
    """

    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body: int = 10 * MEGABYTE
    max_images: int = 16
    max_pixels: int = 25_000_000
    page: bool = True
    mask_decoder: "MaskDecoder | None" = None
    ping_seconds: float = 15.0
