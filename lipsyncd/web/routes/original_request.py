"""The form of `POST /generate-video`: the original service's fields become an `Order`."""

from __future__ import annotations

from collections.abc import Mapping

from lipsyncd.storage.uploads import Upload
from lipsyncd.web.orders import Fields, Order, address, boolean, user_data, whole_number


def read_generate(form: Mapping[str, str], image: Upload | None, audio: Upload | None) -> Order:
    """The order in the form; `image` and `audio` are the files in it, stored as uploads.

    Raises `ApiError` with every field that is wrong.
    """
    fields = Fields(form)
    source_url, audio_url = fields.get("source_url", address), fields.get("audio_url", address)
    for name, file, url, either in (
        ("source_image", image, source_url, "source_image or source_url"),
        ("audio_data", audio, audio_url, "audio_data or audio_url"),
    ):
        if (file is None) == (url is None) and not fields.faults:
            fields.faults[f"body.{name}"] = f"send exactly one of {either}"
    options = {
        "stitch": fields.get("stitch", boolean),
        "resolution": fields.get("resolution", whole_number),
        "fps": form.get("fps") or None,
        "renderer": form.get("renderer") or None,
        "motion": form.get("motion") or None,
        "av_offset_ms": fields.get("av_offset_ms", whole_number),
    }
    data, webhook = fields.get("user_data", user_data), fields.get("webhook", address)
    fields.check()
    rest = {
        "api": "generate-video",
        "source_url": source_url,
        "audio_url": audio_url,
        "name": image.name.rpartition(".")[0] if image else None,
        "image_sha256": image.sha256 if image else None,
        "audio_sha256": audio.sha256 if audio else None,
    }
    return Order(
        image=image.reference if image else source_url,
        audio=audio.reference if audio else audio_url,
        name=image.name.rpartition(".")[0] if image else "",
        user_data=data,
        webhook=webhook,
        options={key: value for key, value in options.items() if value is not None},
        rest={key: value for key, value in rest.items() if value is not None},
    )
