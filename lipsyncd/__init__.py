"""lipsyncd turns a portrait and a voice into a lip-synced MP4.

    import lipsyncd

    video = lipsyncd.render("ada.jpg", "hello.wav", out="ada.mp4", renderer="preview")

An import of the package loads none of its parts: each name below is loaded when it is first used. `__init__.pyi` has
their types; docs/python.md shows them at work. Every jailed program waits for this module, so it imports nothing.
"""

__version__ = "0.1.0"

_PLACES = {
    "AsyncClient": "client.asynchronous",
    "Check": "standalone.python",
    "Client": "client.client",
    "Event": "client.facts",
    "Job": "client.client",
    "Progress": "standalone.session",
    "Result": "client.client",
    "Video": "results.video_file",
    "check": "standalone.python",
    "errors": "",
    "frames": "standalone.python",
    "render": "standalone.python",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> object:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if not place:
        return import_module(f"{__name__}.{name}")
    found = globals()[name] = getattr(import_module(f"{__name__}.{place}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
