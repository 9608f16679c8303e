"""A manifest comes from an unknown client: each field is either read exactly or refused with a reason."""

from __future__ import annotations

import json
import uuid
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lipsyncd.errors import BadManifest, BadName, InputError, UnsafePath
from lipsyncd.jobs.manifest import (
    MAX_BYTES,
    MAX_DEPTH,
    Manifest,
    build,
    check_file_name,
    check_out_name,
    classify,
    clean_file_name,
    clean_out_name,
    parse,
    to_json,
)
from lipsyncd.jobs.values import canonical_id, nearest, parse_fps, quoted

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # CI machines are busy
ID = "0190b5a0-7c3e-7d2f-8a41-5f6e7d8c9b0a"


def manifest(**fields: object) -> bytes:
    """A manifest of a picture and a sound, with these fields besides."""
    return json.dumps({"image": "a.png", "audio": "a.wav", **fields}).encode()


# -- valid manifests ---------------------------------------------------------------------------------------------------


def test_each_field_is_read_with_its_own_type():
    read = parse(
        json.dumps(
            {
                "image": "https://pictures.example.org/anna.jpg?size=2",
                "text": "Guten Tag.",
                "voice": "de",
                "ssml": True,
                "id": ID.upper(),
                "out_name": "anna says hello.mp4",
                "renderer": "preview",
                "stitch": False,
                "resolution": 512,
                "fps": 29.97,
                "motion": "lively",
                "av_offset_ms": -40,
                "priority": -7,
                "user_data": {"scene": [7, None]},
                "webhook": "http://hooks.example.org:8080/done?key=1",
                "lipsyncd": {"extra_margin": 12},
            }
        ).encode()
    )

    assert read == Manifest(
        image="https://pictures.example.org/anna.jpg?size=2",
        text="Guten Tag.",
        voice="de",
        ssml=True,
        id=ID,
        out_name="anna says hello",
        renderer="preview",
        stitch=False,
        resolution=512,
        fps=Fraction(30000, 1001),
        motion="lively",
        av_offset_ms=-40,
        priority=-7,
        user_data={"scene": [7, None]},
        webhook="http://hooks.example.org:8080/done?key=1",
        options={"extra_margin": 12},
    )


def test_a_byte_order_mark_and_null_fields_are_harmless():
    read = parse(b'\xef\xbb\xbf{"image": "\xc3\xa4.png", "audio": "a.wav", "voice": null, "fps": null}')

    assert read == Manifest(image="ä.png", audio="a.wav")


def test_an_upload_is_named_by_its_canonical_id():
    assert parse(manifest(image=f"upload:{ID.upper()}")).image == f"upload:{ID}"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("a.png", "file"),
        ("-i.wav", "file"),
        ("upload.png", "file"),
        ("http.png", "file"),
        ("https://example.org/a.png", "url"),
        ("HTTP://example.org/a.png", "url"),
        (f"upload:{ID}", "upload"),
    ],
)
def test_a_source_is_a_file_an_address_or_an_upload(source, kind):
    assert classify(source) == kind
    assert parse(manifest(image=source)).image == source


# -- refused manifests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"image": None}, "image", "names no image"),
        ({"image": 7}, "image", "7"),
        ({"image": ""}, "image", "''"),
        ({"image": "ftp://example.org/a.png"}, "image", "http or https"),
        ({"image": "https://"}, "image", "http or https"),
        ({"image": "https://me:secret@example.org/a.png"}, "image", "without a user name"),
        ({"image": "https://example.org:0/a.png"}, "image", "http or https"),
        ({"image": "https://example.org:99999/a.png"}, "image", "http or https"),
        ({"image": "https://[::1/a.png"}, "image", "http or https"),
        ({"image": "https://example.org/a\n.png"}, "image", "http or https"),
        ({"image": "https://example.org/" + "a" * 5000}, "image", "4096 characters"),
        ({"image": "upload:../../etc/passwd"}, "image", "UUID"),
        ({"audio": None}, "audio", "neither audio nor text"),
        ({"text": "hello"}, "text", "both audio and text"),
        ({"audio": None, "text": " \n "}, "text", "something to speak"),
        ({"audio": None, "text": "a\0b"}, "text", "NUL"),
        ({"audio": None, "text": "a" * 40_001}, "text", "40000"),
        ({"voice": "en-us"}, "voice", "goes with text"),
        ({"audio": None, "text": "a", "voice": "mb/en1"}, "voice", "'/'"),
        ({"audio": None, "text": "a", "voice": "-f"}, "voice", "'-'"),
        ({"ssml": True}, "ssml", "goes with text"),
        ({"ssml": "false"}, "ssml", "true or false"),
        ({"id": "7"}, "id", "36"),
        ({"id": ID[:-1] + "g"}, "id", "UUID"),
        ({"id": ID.replace("-", "0")}, "id", "UUID"),
        ({"renderer": "muse\ntalk"}, "renderer", "control"),
        ({"stitch": 1}, "stitch", "true or false"),
        ({"motion": "wild"}, "motion", "one of none, subtle, lively"),
        ({"motion": 1}, "motion", "one of none, subtle, lively"),
        ({"av_offset_ms": 201}, "av_offset_ms", "a whole number from -200 to 200"),
        ({"av_offset_ms": 20.5}, "av_offset_ms", "a whole number from -200 to 200"),
        ({"resolution": True}, "resolution", "whole number"),
        ({"resolution": 256.0}, "resolution", "whole number"),
        ({"resolution": 257}, "resolution", "even number from 64 to 2048"),
        ({"resolution": 62}, "resolution", "64 to 2048"),
        ({"resolution": 2050}, "resolution", "64 to 2048"),
        ({"fps": 0}, "fps", "1 to 120"),
        ({"priority": True}, "priority", "whole number"),
        ({"priority": 101}, "priority", "-100 to 100"),
        ({"user_data": "x" * 4097}, "user_data", "4096 bytes"),
        ({"user_data": ["é" * 2048]}, "user_data", "4096 bytes"),
        ({"webhook": "a.example.org"}, "webhook", "http or https"),
        ({"lipsyncd": "fast"}, "lipsyncd", "object"),
        ({"rest": []}, "rest", "an object"),
        ({"rest": {"name": "x" * 20_000}}, "rest", "16384 bytes"),
        ({"rest": {"unknown": 1}}, "rest", "source_url"),
        ({"rest": {"created_ms": "now"}}, "rest", "created_ms is of the type int"),
        ({"rest": {"created_ms": True}}, "rest", "created_ms is of the type int"),
        ({"rest": {"created_ms": -1}}, "rest", "created_ms is from 0"),
        ({"rest": {"created_ms": 10**15}}, "rest", "created_ms is from 0"),
        ({"rest": {"config": [1]}}, "rest", "config is of the type dict"),
        ({"rest": {"uploads": [[]]}}, "rest", "uploads are texts"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_field_is_named_with_what_is_allowed(fields, field, reason):
    with pytest.raises(BadManifest) as refusal:
        parse(manifest(**fields))

    assert field in refusal.value.message
    assert reason in refusal.value.message
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b" \r\n", "empty"),
        (b"\x00\x01", "NUL bytes.*save the manifest as UTF-8"),
        (b'{"image": "a.png"', "not JSON"),
        (b'["a.png"]', "one object"),
        (b"[" * 900 + b"]" * 900, "one object"),
        (b"[" * 60_000, "nested deeper"),
        (b'{"image":' * 6_000, "nested deeper"),
        ('{"image": "a.png"}'.encode("utf-16-le"), "UTF-16 without a byte order mark.*save the manifest as UTF-8"),
        ('{"image": "a.png"}'.encode("utf-16-be"), "UTF-16 without a byte order mark.*save the manifest as UTF-8"),
        ('{"image": "a.png"}'.encode("utf-32"), "UTF-32.*save the manifest as UTF-8"),
        (b"\xff\xfe\x00\xd8", "not UTF-8.*save the manifest as UTF-8"),
        (b'{"image": "\xff.png"}', "not UTF-8.*save the manifest as UTF-8"),
        (b'{"image": "a.png", "image": "b.png", "audio": "a.wav"}', "'image' is in the manifest twice"),
        (manifest(lipsyncd={"a": {}})[:-2] + b', "a": 1}}', "'a' is in the manifest twice"),
        (b'{"user_data": NaN}', "NaN is not a JSON number"),
        (b'{"user_data": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"fps": 1e999}', "too large"),
        (b'{"priority": ' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"user_data": ' + b"9" * 33 + b"}", "33 digits"),
        (b'{"user_data": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b" " * (MAX_BYTES + 1), "65537 bytes"),
        (manifest(lipsyncd=json.loads('{"a":' * MAX_DEPTH + "1" + "}" * MAX_DEPTH)), "nested deeper than 16"),
    ],
)
def test_bytes_that_are_not_a_json_object_are_refused_with_the_reason(data, reason):
    with pytest.raises(BadManifest, match=reason):
        parse(data)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-8"])
def test_a_manifest_is_read_by_its_byte_order_mark(encoding):
    text = "\ufeff" + '{"image": "jos\u00e9 \U0001f600.png", "audio": "a.wav"}'
    assert parse(text.encode(encoding)).image == "jos\u00e9 \U0001f600.png"


def test_the_deepest_nesting_that_is_allowed_is_read():
    options = json.loads('{"a":' * (MAX_DEPTH - 1) + "1" + "}" * (MAX_DEPTH - 1))

    assert parse(manifest(lipsyncd=options)).options == options


@pytest.mark.parametrize(
    ("word", "meant"),
    [("stich", "stitch"), ("Image", "image"), ("outname", "out_name"), ("userdata", "user_data"), ("FPS", "fps")],
)
def test_an_unknown_field_is_answered_with_the_nearest_known_one(word, meant):
    with pytest.raises(BadManifest, match=f"unknown field '{word}'; did you mean '{meant}'"):
        parse(manifest(**{word: 1}))


def test_a_very_long_unknown_field_is_shortened_in_the_message():
    with pytest.raises(BadManifest) as refusal:
        parse(manifest(**{"z" * 60_000: 1}))

    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/passwd", "../a.png", "..", ".", ".hidden.png", "sub/a.png", "a\0.png", "a" * 256, "./a.png", "../../x"),
        "C:\\Users\\anna\\x.png",
        "c:x.png",
        "pictures\\x.png",
        "\\\\nas\\x.png",
        "a.png ",
        "a.png\t",
        "a.png\u00a0",
        " ",
    ],
)
def test_a_file_outside_the_inbox_is_refused(name):
    with pytest.raises(UnsafePath):
        parse(manifest(image=name))
    with pytest.raises(UnsafePath):
        check_file_name(name)


@pytest.mark.parametrize("name", ["./a.png", "file:///srv/inbox/a.png", "FILE:a.png"])
def test_a_path_that_may_lead_into_the_inbox_is_refused_with_what_to_write(name):
    with pytest.raises(UnsafePath, match=r"is a path, not a file name; .*write its name alone"):
        parse(manifest(image=name))


@pytest.mark.parametrize(
    "name", ["-rf.png", "a b.png", "naïve\n.png", "a..png", "日本.png", " a.png", "ab:c.png", "a" * 255]
)
def test_an_unusual_file_name_is_not_changed(name):
    assert parse(manifest(image=name)).image == name


@pytest.mark.parametrize("stem", ["C:\\Users\\anna", "c:x", "we\\ird", "anna"])
def test_a_cleaned_file_name_can_be_named(stem):
    name = clean_file_name(stem) + ".png"
    assert check_file_name(name) == name


def test_an_error_escapes_control_characters_in_a_value():
    with pytest.raises(UnsafePath) as refusal:
        parse(manifest(image="/\x1b[2J\n\u202egpj.exe"))

    assert str(refusal.value).isprintable()
    assert "\\x1b[2J\\n\\u202e" in str(refusal.value)


# -- random input ------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
words = st.sampled_from([*Manifest.__dataclass_fields__, "lipsyncd", "nonsense"])
anything = json_values | st.sampled_from(["a.png", "https://example.org/x", f"upload:{ID}", ID, 25, 256, "29.97", True])


@patient
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    try:
        parse(data)
    except InputError as refusal:
        assert str(refusal).isprintable()


@patient
@given(st.dictionaries(words, anything, max_size=8))
def test_any_object_is_read_or_refused(fields):
    try:
        read = parse(json.dumps(fields).encode())
    except InputError as refusal:
        assert str(refusal).isprintable()
    else:
        assert parse(to_json(read)) == read


file_names = st.from_regex(r"[A-Za-z0-9ä_-][^:/\\\x00-\x1f]{0,40}", fullmatch=True).filter(
    lambda name: classify(name) == "file" and name == name.rstrip()
)
uuids = st.uuids().map(str)
sources = file_names | uuids.map("upload:{}".format) | st.just("https://example.org/a.wav?b=1#c")
spoken = st.text(min_size=1, max_size=300).filter(lambda text: text.strip() and "\0" not in text)
out_names = st.text(max_size=60).map(clean_out_name) | st.sampled_from(["x.mp4", "X.MP4.mp4"]).map(check_out_name)
rates = st.sampled_from([Fraction(24000, 1001), Fraction(25), Fraction(120), Fraction(25, 2)])


def or_absent(strategy):
    return st.none() | strategy


manifests = st.builds(
    Manifest,
    image=sources,
    audio=sources,
    id=or_absent(uuids),
    out_name=or_absent(out_names),
    renderer=or_absent(st.sampled_from(["preview", "musetalk"])),
    stitch=or_absent(st.booleans()),
    resolution=or_absent(st.integers(32, 1024).map(lambda half: 2 * half)),
    fps=or_absent(rates),
    motion=or_absent(st.sampled_from(["none", "subtle", "lively"])),
    av_offset_ms=or_absent(st.integers(-200, 200)),
    priority=or_absent(st.integers(-100, 100)),
    user_data=json_values,
    webhook=or_absent(st.just("http://127.0.0.1:9/hook")),
    options=st.dictionaries(st.text(max_size=5), json_values, max_size=3),
) | st.builds(Manifest, image=sources, text=spoken, voice=or_absent(st.just("de")), ssml=st.booleans())


@patient
@given(manifests)
def test_a_manifest_is_unchanged_after_writing_and_reading(original):
    assert parse(to_json(original)) == original


def test_an_output_name_that_ends_in_mp4_twice_loses_one_of_them():
    named = parse(manifest(out_name="take.mp4.mp4"))

    assert named.out_name == "take.mp4"
    assert parse(to_json(named)) == named


def test_false_or_empty_user_data_is_returned_unchanged():
    for value in (False, 0, "", [], {}):
        assert parse(to_json(Manifest(image="a.png", audio="a.wav", user_data=value))).user_data == value


def test_a_written_manifest_has_only_the_fields_that_are_set():
    assert to_json(Manifest(image="ä.png", audio="a.wav")) == '{"image": "ä.png", "audio": "a.wav"}\n'.encode()


def test_a_manifest_too_large_for_intake_is_not_written():
    with pytest.raises(BadManifest, match="bytes, at most 65536"):
        to_json(Manifest(image="a.png", text="日" * 30_000))


def test_fields_that_do_not_come_from_json_are_checked_in_the_same_way():
    assert build({"image": "a.png", "audio": "a.wav", "fps": Fraction(25)}).fps == 25
    with pytest.raises(BadManifest, match="surrogate"):
        build({"image": "a.png", "audio": "a.wav", "user_data": "\ud800"})


# -- names and ids -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        (".mp4", "empty"),
        ("a/b", "'/'"),
        ("../a", "starts with '.'"),
        (".hidden", "starts with '.'"),
        ("-rf", "starts with '-'"),
        ("a\nb", r"'\\n'"),
        ("a\x7fb", r"'\\x7f'"),
        ("a\u2028b", r"'\\u2028'"),
        ("a\udcffb", r"'\\udcff'"),
        ("é" * 101, "202 bytes"),
    ],
)
def test_a_bad_output_name_is_refused_with_its_reason(name, reason):
    with pytest.raises(BadName, match=reason):
        check_out_name(name)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a.mp4", "a"),
        ("a.MP4", "a"),
        ("a", "a"),
        ("a.mp4.mp4", "a.mp4"),
        ("é" * 100 + ".mp4", "é" * 100),
        ("a b-.", "a b-."),
    ],
)
def test_a_good_output_name_loses_only_its_suffix(name, stem):
    assert check_out_name(name) == stem
    assert parse(manifest(out_name=name)).out_name == stem


def test_a_bad_output_name_in_a_manifest_raises_bad_name():
    with pytest.raises(BadName):
        parse(manifest(out_name="../../etc/cron.d/x"))


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("anna", "anna"),
        ("..-hidden", "hidden"),
        ("a/b\nc", "a_b_c"),
        ("clip.mp4", "clip"),
        ("clip.mp4.MP4", "clip"),
        ("", "job"),
        ("...", "job"),
        ("caf\udce9", "caf_"),
        ("日" * 100, "日" * 66),
    ],
)
def test_a_stem_becomes_a_valid_output_name(stem, name):
    assert clean_out_name(stem) == name


@patient
@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_a_cleaned_name_is_always_valid(stem):
    name = clean_out_name(stem)

    assert check_out_name(name) == name
    assert clean_out_name(name) == name


@patient
@given(st.uuids())
def test_each_spelling_of_an_id_gives_the_same_canonical_id(value: uuid.UUID):
    assert canonical_id(str(value)) == str(value)
    assert canonical_id(str(value).upper()) == str(value)
    assert canonical_id(f"tlk_{value.hex}") == str(value)


# -- frame rates and small helpers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_rate", "rate"),
    [
        (25, Fraction(25)),
        ("25", Fraction(25)),
        (" 25.0 ", Fraction(25)),
        (12.5, Fraction(25, 2)),
        (23.976, Fraction(24000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        ("59.940", Fraction(60000, 1001)),
        ("60000/1001", Fraction(60000, 1001)),
        ("2997/100", Fraction(2997, 100)),
        (Fraction(24000, 1001), Fraction(24000, 1001)),
        (1, Fraction(1)),
        (120, Fraction(120)),
    ],
)
def test_a_frame_rate_is_exact(given_rate, rate):
    assert parse_fps(given_rate) == rate
    assert parse_fps(str(rate)) == rate


NO_RATES = (0, 0.99, 121, -25, 10**5000, float("nan"), float("inf"), True, None, [], "", "120.001", "119.123456789")
NO_NUMBERS = ("fast", "25fps", "25/", "1/0", "inf", "nan", "1e2", "1e999999999", "٢٥", "9999999/9999998")


@pytest.mark.parametrize("value", [*NO_RATES, *NO_NUMBERS], ids=quoted)
def test_an_invalid_frame_rate_is_refused(value):
    with pytest.raises(ValueError, match="from 1 to 120"):
        parse_fps(value)


def test_nearest_ignores_case_and_always_gives_a_word():
    assert nearest("RENDERER", ["resolution", "renderer"]) == "renderer"
    assert nearest("???", ["only"]) == "only"


HARD_TO_SHOW = (
    "x" * 1000,
    "\x1b[31m\n",
    "\ud800",
    {"a": ["b" * 100]},
    10**30,
    10**5000,
    None,
    Manifest("a.png", "a.wav"),
)


@pytest.mark.parametrize("value", HARD_TO_SHOW, ids=quoted)
def test_a_value_is_shown_short_and_on_one_line(value):
    assert quoted(value).isprintable()
    assert len(quoted(value)) <= 61


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://me:secret@host/a.png", "'http://...@host/a.png'"),
        ("https://host/a.png?sig=secret", "'https://host/a.png?...'"),
        ("HTTP:/me:secret@host#secret", "'HTTP:/...@host?...'"),
        (["https://a/?secret", "b?c"], '["https://a/?...", "b?c"]'),
        ("what?.png", "'what?.png'"),
        ("me@host.png", "'me@host.png'"),
    ],
)
def test_an_address_is_shown_without_user_password_and_query(value, shown):
    assert quoted(value) == shown


def test_a_manifest_whose_address_has_a_password_is_refused_without_repeating_it():
    with pytest.raises(BadManifest) as caught:
        parse(b'{"image": "http://me:secret@host/a.png", "audio": "a.wav"}')
    assert "secret" not in str(caught.value)
    assert "host/a.png" in str(caught.value)
