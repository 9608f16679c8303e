"""Which files belong together: the table of the cases, and what holds for any inbox at all."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lipsyncd.errors import BadManifest, InputError, UnsafePath
from lipsyncd.inbox.pairing import Found, Grouping, group, pairing_key
from lipsyncd.jobs.job import AUDIO, IMAGE, MANIFEST, OTHER, Identity
from lipsyncd.jobs.manifest import Manifest
from lipsyncd.log import printable

TIMEOUT_S = 100.0
ROLES = {"png": IMAGE, "jpg": IMAGE, "wav": AUDIO, "mp3": AUDIO, "json": MANIFEST}


def found(name: str | bytes, **facts: Any) -> Found:
    text = os.fsdecode(name)
    role = ROLES.get(text.rpartition(".")[2].lower(), OTHER)
    return Found(os.fsencode(name), role, Identity(1, abs(hash(text)), 1, 1, 1), **facts)


def sorted_out(
    *files: Found,
    manifests: dict[str, Manifest | InputError] | None = None,
    unusable: dict[bytes, InputError] | None = None,
) -> Grouping:
    contents = {os.fsencode(name): content for name, content in (manifests or {}).items()}
    return group(files, contents, unusable=unusable or {}, pair_timeout_s=TIMEOUT_S)


def drops(result: Grouping) -> list[tuple[dict[str, str], str]]:
    """Each drop as its files by role and the code of its refusal."""
    return [({r: f.text for r, f in d.files.items()}, d.refusal.code if d.refusal else "") for d in result.drops]


def waits(result: Grouping) -> dict[str, str]:
    return {w.name: w.why for w in result.waiting}


PAIR = {IMAGE: "anna.png", AUDIO: "anna.wav"}


# -- pairs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("anna.png", "anna.wav"), ("anna.wav", "anna.png")])
def test_two_halves_of_a_stem_are_a_pair_in_any_order(order: tuple[str, str]) -> None:
    result = sorted_out(*(found(name, age_s=10.0 * n) for n, name in enumerate(order)))
    assert drops(result) == [(PAIR, "")]
    assert result.drops[0].name == "anna"
    assert result.waiting == []


def test_a_half_waits_and_is_refused_after_the_timeout() -> None:
    assert waits(sorted_out(found("anna.png", age_s=99.9))) == {"anna.png": "waits for a sound of the same stem"}
    assert waits(sorted_out(found("anna.wav"))) == {"anna.wav": "waits for a picture of the same stem"}
    assert drops(sorted_out(found("anna.png", age_s=100))) == [({IMAGE: "anna.png"}, "missing-half")]
    assert drops(sorted_out(found("anna.wav", age_s=100))) == [({AUDIO: "anna.wav"}, "missing-half")]


def test_a_pair_may_come_together_long_after_its_first_half() -> None:
    assert drops(sorted_out(found("anna.png", age_s=1e9), found("anna.wav"))) == [(PAIR, "")]


def test_three_of_a_stem_are_refused_together_and_named() -> None:
    result = sorted_out(found("anna.jpg"), found("anna.png"), found("anna.wav"))
    assert drops(result) == [({IMAGE: "anna.jpg", "extra-1": "anna.png", "extra-2": "anna.wav"}, "ambiguous-pair")]
    assert "anna.jpg, anna.png, anna.wav" in str(result.drops[0].refusal)


def test_two_pictures_wait_for_a_sound_like_one() -> None:
    assert set(waits(sorted_out(found("anna.jpg"), found("anna.png")))) == {"anna.jpg", "anna.png"}
    late = sorted_out(found("anna.jpg"), found("anna.png", age_s=100))
    assert drops(late) == [({IMAGE: "anna.jpg", "extra-1": "anna.png"}, "missing-half")]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Anna", "anna", True),
        ("STRASSE", "straße", True),
        ("jos\u00e9", "jose\u0301", True),
        ("JOS\u00c9", "jose\u0301", True),
        ("anna", "anna ", False),
        ("anna", "anna.1", False),
        ("a.b", "a", False),
        ("jose", "jos\u00e9", False),
    ],
)
def test_stems_are_compared_as_people_read_them(one: str, other: str, same: bool) -> None:
    assert (pairing_key(one) == pairing_key(other)) is same
    assert len(sorted_out(found(f"{one}.PNG"), found(f"{other}.wav")).drops) == (1 if same else 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("bob (1).png", "bob.wav"),
        ("bob - copy.png", "bob.wav"),
        ("bob.png", "bob.png.wav"),
        ("anna .png", "anna.wav"),
        ("09.41.00\u202fPM.png", "09.41.00 PM.wav"),
        ("\u200eanna.png", "anna.wav"),
        ("\uff21nna.png", "anna.wav"),
    ],
)
def test_a_half_that_waits_names_the_one_that_was_perhaps_meant(one: str, other: str) -> None:
    seen = waits(sorted_out(found(one), found(other), found("carl.wav"), found("carl (2).wav")))
    assert seen == {
        one: f"waits for a sound of the same stem, and {other!r} has almost that name",
        other: f"waits for a picture of the same stem, and {printable(one)!r} has almost that name",
        "carl.wav": "waits for a picture of the same stem",
        "carl (2).wav": "waits for a picture of the same stem",
    }


def test_names_that_are_no_utf_8_pair_by_their_bytes() -> None:
    result = sorted_out(found(b"bad\xff.png"), found(b"bad\xff.wav"), found(b"bad\xfe.wav"))
    assert [{r: f.name for r, f in d.files.items()} for d in result.drops] == [
        {IMAGE: b"bad\xff.png", AUDIO: b"bad\xff.wav"}
    ]


def test_nothing_of_a_stem_is_touched_while_one_of_it_is_being_written() -> None:
    for unsettled in ("anna.png", "anna.wav", "anna.mp3"):
        files = [found(n, settled=n != unsettled, age_s=1e9) for n in ("anna.png", "anna.wav", "anna.mp3")]
        result = sorted_out(*files)
        assert result.drops == []
        assert waits(result) == {unsettled: "still being written"}


def test_what_a_job_has_taken_pairs_no_more() -> None:
    result = sorted_out(found("anna.png", taken=True), found("anna.wav", age_s=5))
    assert result.drops == []
    assert waits(result) == {"anna.wav": "waits for a picture of the same stem"}


# -- manifests ---------------------------------------------------------------------------------------------------------

NAMES_BOTH = Manifest(image="face.png", audio="voice.wav")


def test_a_manifest_brings_together_what_no_stem_does() -> None:
    result = sorted_out(
        found("order.json"), found("face.png"), found("voice.wav"), manifests={"order.json": NAMES_BOTH}
    )
    assert drops(result) == [({MANIFEST: "order.json", IMAGE: "face.png", AUDIO: "voice.wav"}, "")]
    assert (result.drops[0].name, result.drops[0].manifest) == ("order", NAMES_BOTH)


def test_a_manifest_may_come_long_before_its_files() -> None:
    early = sorted_out(found("order.json"), found("face.png"), manifests={"order.json": NAMES_BOTH})
    assert early.drops == []
    assert waits(early) == {"order.json": "waits for 'voice.wav'"}
    late = sorted_out(found("order.json", age_s=100), found("face.png"), manifests={"order.json": NAMES_BOTH})
    assert drops(late) == [({MANIFEST: "order.json", "extra-1": "face.png"}, "missing-file")]
    alone = sorted_out(found("order.json", age_s=100), manifests={"order.json": NAMES_BOTH})
    assert drops(alone) == [({MANIFEST: "order.json"}, "missing-file")]


def test_a_manifest_decides_over_the_stems() -> None:
    """face.png has a partner of its own stem; the manifest wants it with another sound."""
    files = [found("face.png"), found("face.wav"), found("voice.wav"), found("order.json")]
    result = sorted_out(*files, manifests={"order.json": NAMES_BOTH})
    assert drops(result) == [({MANIFEST: "order.json", IMAGE: "face.png", AUDIO: "voice.wav"}, "")]
    assert waits(result) == {"face.wav": "waits for a picture of the same stem"}


def test_a_manifest_settles_which_two_of_three_belong_together() -> None:
    files = [found("anna.png"), found("anna.jpg"), found("anna.wav"), found("anna.json")]
    result = sorted_out(*files, manifests={"anna.json": Manifest(image="anna.jpg", audio="anna.wav")})
    assert drops(result) == [({MANIFEST: "anna.json", IMAGE: "anna.jpg", AUDIO: "anna.wav"}, "")]


def test_one_portrait_serves_several_manifests_at_once() -> None:
    manifests: dict[str, Manifest | InputError] = {
        f"{n}.json": Manifest(image="face.png", audio=f"voice{n}.wav") for n in range(3)
    }
    files = [found("face.png"), *map(found, manifests), *(found(f"voice{n}.wav") for n in range(3))]
    result = sorted_out(*files, manifests=manifests)
    assert [roles[IMAGE] for roles, _ in drops(result)] == ["face.png"] * 3
    assert {roles[AUDIO] for roles, _ in drops(result)} == {"voice0.wav", "voice1.wav", "voice2.wav"}


def test_a_portrait_that_another_job_has_taken_still_serves_a_manifest() -> None:
    files = [found("face.png", taken=True), found("voice.wav"), found("order.json")]
    assert len(sorted_out(*files, manifests={"order.json": NAMES_BOTH}).drops) == 1


def test_a_manifest_that_a_job_has_taken_is_done() -> None:
    files = [found("order.json", taken=True), found("face.png"), found("voice.wav")]
    assert sorted_out(*files, manifests={"order.json": NAMES_BOTH}).drops == []


def test_a_manifest_that_is_being_written_holds_its_stem_back() -> None:
    result = sorted_out(found("anna.json", settled=False), found("anna.png"), found("anna.wav"), found("bert.png"))
    assert result.drops == []
    assert waits(result)["anna.json"] == "still being written"


def test_a_manifest_waits_until_its_files_are_no_longer_written() -> None:
    files = [found("order.json"), found("face.png"), found("voice.wav", settled=False)]
    result = sorted_out(*files, manifests={"order.json": NAMES_BOTH})
    assert result.drops == []
    assert waits(result) == {
        "order.json": "its files are still being written",
        "voice.wav": "still being written",
    }


@pytest.mark.parametrize(
    ("reason", "code"),
    [(UnsafePath("a link"), "unsafe-path"), (BadManifest("900 MB"), "bad-manifest")],
)
def test_a_manifest_that_names_what_cannot_be_used_is_refused_at_once(reason: InputError, code: str) -> None:
    files = [found("order.json"), found("face.png")]
    result = sorted_out(*files, manifests={"order.json": NAMES_BOTH}, unusable={b"voice.wav": reason})
    assert drops(result) == [({MANIFEST: "order.json", "extra-1": "face.png"}, code)]
    assert result.drops[0].refusal is reason


BROKEN = BadManifest("a comma too many")


def test_a_broken_manifest_takes_the_files_of_its_stem_along() -> None:
    files = [found("anna.json"), found("Anna.png"), found("anna.wav"), found("bert.png")]
    result = sorted_out(*files, manifests={"anna.json": BROKEN})
    assert drops(result) == [({MANIFEST: "anna.json", "extra-1": "Anna.png", "extra-2": "anna.wav"}, "bad-manifest")]
    assert set(waits(result)) == {"bert.png"}


def test_a_broken_manifest_takes_no_file_that_is_still_written() -> None:
    """The sound is on its way: taking it now would cut it off and throw the rest of it away."""
    result = sorted_out(
        found("anna.json"), found("anna.png"), found("anna.wav", settled=False), manifests={"anna.json": BROKEN}
    )
    assert result.drops == []
    assert waits(result)["anna.json"] == "its files are still being written"


def test_a_manifest_of_addresses_needs_no_files() -> None:
    manifest = Manifest(image="https://example.com/a.png", audio="upload:00000000-0000-7000-8000-000000000000")
    assert drops(sorted_out(found("order.json"), manifests={"order.json": manifest})) == [
        ({MANIFEST: "order.json"}, "")
    ]


def test_a_manifest_may_name_one_file_twice() -> None:
    manifest = Manifest(image="face.png", audio="face.png")
    result = sorted_out(found("order.json"), found("face.png"), manifests={"order.json": manifest})
    assert drops(result) == [({MANIFEST: "order.json", IMAGE: "face.png", AUDIO: "face.png"}, "")]


def test_a_manifest_names_files_of_any_suffix_and_no_pair_does() -> None:
    manifest = Manifest(image="face.jfif", audio="voice.wave")
    files = [found("order.json"), found("face.jfif"), found("voice.wave"), found("voice.png")]
    result = sorted_out(*files, manifests={"order.json": manifest})
    assert drops(result) == [({MANIFEST: "order.json", IMAGE: "face.jfif", AUDIO: "voice.wave"}, "")]
    assert set(waits(result)) == {"voice.png"}


def test_a_name_is_found_in_another_unicode_form_when_it_is_the_only_one() -> None:
    composed, decomposed = "jos\u00e9.png", "jose\u0301.png"
    manifests: dict[str, Manifest | InputError] = {"o.json": Manifest(image=composed, text="hello")}
    result = sorted_out(found("o.json"), found(decomposed), manifests=manifests)
    assert drops(result) == [({MANIFEST: "o.json", IMAGE: decomposed}, "")]
    both = sorted_out(found("o.json"), found(decomposed), found(composed), manifests=manifests)
    assert drops(both) == [({MANIFEST: "o.json", IMAGE: composed}, "")]


@pytest.mark.parametrize(
    ("wanted", "there", "taken"),
    [
        ("c06_case.jpg", ["C06_Case.JPG"], "C06_Case.JPG"),
        ("Jos\u00c9.png", ["jose\u0301.png"], "jose\u0301.png"),
        ("STRASSE.png", ["Stra\u00dfe.png"], "Stra\u00dfe.png"),
        ("anna.png", ["Anna.png", "anna.png"], "anna.png"),
        ("jos\u00e9.png", ["JOS\u00c9.png", "jose\u0301.png"], "jose\u0301.png"),
        (" anna.png", ["anna.png"], "anna.png"),
        ("anna.png", [" Anna.png"], " Anna.png"),
        (" anna.png", ["anna.png", " anna.png"], " anna.png"),
        ("anna.png", ["Anna.png", "ANNA.png"], None),
        ("anna.png", ["anna.jpg"], None),
    ],
)
def test_a_name_is_found_exactly_or_composed_or_without_case_when_that_is_one_file(
    wanted: str, there: list[str], taken: str | None
) -> None:
    manifests: dict[str, Manifest | InputError] = {"o.json": Manifest(image=wanted, text="hello")}
    result = sorted_out(found("o.json"), *map(found, there), manifests=manifests)
    assert drops(result) == ([({MANIFEST: "o.json", IMAGE: taken}, "")] if taken else [])


def test_a_manifest_that_names_what_cannot_be_used_in_another_case_is_refused() -> None:
    manifests: dict[str, Manifest | InputError] = {"o.json": Manifest(image="anna.png", text="hello")}
    unusable: dict[bytes, InputError] = {b"Anna.PNG": UnsafePath("a folder")}
    assert drops(sorted_out(found("o.json"), manifests=manifests, unusable=unusable)) == [
        ({MANIFEST: "o.json"}, "unsafe-path")
    ]


def film(name: str) -> Found:
    return replace(found(name), role=IMAGE, film=True)


def second(name: str, role: str) -> Found:
    return replace(found(name), role=role, gives_way=True)


@pytest.mark.parametrize(
    ("files", "image", "audio", "left"),
    [
        ([film("a.mp4"), found("a.wav")], "a.mp4", "a.wav", []),
        ([film("a.mp4"), found("a.png")], "a.png", "a.mp4", []),
        ([second("a.heic", IMAGE), film("a.mov")], "a.heic", "a.mov", []),
        ([second("a.heic", IMAGE), film("a.mov"), found("a.wav")], "a.mov", "a.wav", ["a.heic"]),
        ([second("a.heic", IMAGE), found("a.jpg"), found("a.wav")], "a.jpg", "a.wav", ["a.heic"]),
        ([second("a.heic", IMAGE), second("a.avif", IMAGE), found("a.jpg"), found("a.wav")], "a.jpg", "a.wav",
         ["a.avif", "a.heic"]),
        ([found("a.jpg"), second("a.aac", AUDIO), found("a.wav")], "a.jpg", "a.wav", ["a.aac"]),
        ([found("a.jpg"), second("a.aac", AUDIO)], "a.jpg", "a.aac", []),
    ],
)  # fmt: skip
def test_films_can_be_either_half_and_new_kinds_give_way(
    files: list[Found], image: str, audio: str, left: list[str]
) -> None:
    result = sorted_out(*files)
    assert drops(result) == [({IMAGE: image, AUDIO: audio}, "")]
    assert [f.text for f, _ in result.left] == left
    assert result.waiting == []


@pytest.mark.parametrize(
    "files",
    [
        [second("a.heic", IMAGE), second("a.avif", IMAGE), found("a.wav")],
        [film("a.mp4"), found("a.png"), found("a.wav")],
        [found("a.jpg"), found("a.png"), second("a.heic", IMAGE), found("a.wav")],
    ],
)
def test_too_many_of_a_stem_are_still_refused(files: list[Found]) -> None:
    [drop] = sorted_out(*files).drops
    assert drop.refusal is not None
    assert drop.refusal.code == "ambiguous-pair"
    assert len(drop.files) == len(files)


def test_two_sounds_under_the_names_of_a_pair_are_no_halves_that_wait() -> None:
    files = [replace(found("a.png"), role=AUDIO, named_for=IMAGE), replace(found("a.wav"), named_for=AUDIO)]
    assert drops(sorted_out(*files)) == [({IMAGE: "a.png", AUDIO: "a.wav"}, "")]


def test_a_film_alone_waits_for_either_half() -> None:
    assert waits(sorted_out(film("a.mp4"))) == {"a.mp4": "waits for a picture or a sound of the same stem"}


# -- any inbox ---------------------------------------------------------------------------------------------------------

STEMS = st.sampled_from(["a", "A", "b", "\u00e9", "e\u0301"])
FILES = st.builds(
    lambda stem, suffix, facts: replace(found(f"{stem}.{suffix}"), **facts),
    STEMS,
    st.sampled_from(list(ROLES)),
    st.fixed_dictionaries(
        {"settled": st.booleans(), "taken": st.booleans(), "age_s": st.sampled_from([0.0, 50.0, 200.0])}
    ),
)
INBOXES = st.lists(FILES, max_size=10, unique_by=lambda f: f.name)
SOURCES = st.builds(lambda stem, suffix: f"{stem}.{suffix}", STEMS, st.sampled_from(list(ROLES)))
CONTENTS = st.builds(Manifest, image=SOURCES, audio=SOURCES) | st.just(BROKEN)


@given(inbox=INBOXES, data=st.data())
def test_no_inbox_breaks_the_rules(inbox: list[Found], data: st.DataObject) -> None:
    names = [f.text for f in inbox if f.role == MANIFEST and f.settled and not f.taken]
    manifests = {name: data.draw(CONTENTS) for name in names}

    result = sorted_out(*inbox, manifests=manifests)

    for drop in result.drops:
        assert all(f.settled for f in drop.files.values()), "no file is taken while it is written"
        if drop.refusal is None and drop.manifest is None:
            assert set(drop.files) == {IMAGE, AUDIO}
            assert {pairing_key(f.stem) for f in drop.files.values()} == {drop.files[IMAGE].key}
        if drop.refusal is not None:
            assert not any(f.taken for f in drop.files.values())
    named = {pairing_key(s) for m in manifests.values() if isinstance(m, Manifest) for s in (m.image, m.audio) if s}
    used = Counter(f.name for drop in result.drops for f in drop.files.values() for _ in [0])
    for file in inbox:
        shared = pairing_key(file.text) in named
        assert used[file.name] <= 1 or shared, "only manifests may share a file"
        accounted = used[file.name] or file.taken or file.text in waits(result) or file.role != MANIFEST
        assert accounted, "no manifest is forgotten"


@given(inbox=INBOXES.map(lambda files: [f for f in files if f.role != MANIFEST and not f.taken]))
def test_without_manifests_each_stem_has_one_of_four_fates(inbox: list[Found]) -> None:
    result = sorted_out(*inbox)
    fates = {frozenset(f.name for f in d.files.values()): d.refusal.code if d.refusal else "" for d in result.drops}
    for key in {f.key for f in inbox}:
        members = [f for f in inbox if f.key == key]
        kinds = sorted(f.role for f in members)
        names = frozenset(f.name for f in members)
        if not all(f.settled for f in members):
            expected = "waits"
        elif kinds == [AUDIO, IMAGE]:
            expected = ""
        elif len(set(kinds)) == 2:
            expected = "ambiguous-pair"
        else:
            expected = "missing-half" if max(f.age_s for f in members) >= TIMEOUT_S else "waits"
        assert fates.pop(names, "waits") == expected
        assert expected != "waits" or {f.text for f in members} & waits(result).keys()
    assert fates == {}


@given(inbox=INBOXES, data=st.data())
def test_the_order_of_the_listing_does_not_matter(inbox: list[Found], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(inbox))
    names = [f.text for f in inbox if f.role == MANIFEST and f.settled and not f.taken]
    manifests = {name: data.draw(CONTENTS) for name in names}

    def grouped(files: list[Found]) -> tuple[Any, Any]:
        result = sorted_out(*files, manifests=manifests)
        return sorted(map(repr, drops(result))), sorted(map(repr, waits(result).items()))

    assert grouped(inbox) == grouped(shuffled)


def test_two_broken_manifests_of_one_stem_take_its_files_along_once() -> None:
    torn = BadManifest("torn")
    files = [found(name) for name in ("a.json", "A.json", "a.png", "a.wav")]
    result = sorted_out(*files, manifests={"a.json": torn, "A.json": torn})
    taken = sorted((sorted(f.text for f in drop.files.values()) for drop in result.drops), key=len)
    assert taken == [["a.json"], ["A.json", "a.png", "a.wav"]]


def test_many_broken_manifests_are_sorted_out_in_the_time_of_many_files() -> None:
    """Each was compared with every other file: 20,000 of them held up the whole inbox for minutes."""
    torn = BadManifest("torn")
    files = [found(f"{number}.json") for number in range(20_000)] + [found("a.png"), found("7.png")]
    began_s = time.monotonic()
    result = sorted_out(*files, manifests={f"{number}.json": torn for number in range(20_000)})
    assert time.monotonic() - began_s < 20
    assert len(result.drops) == 20_000
    assert [w.name for w in result.waiting] == ["a.png"]
