"""Settings come from five places; the last one that speaks wins, and each wrong word stops the start with one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lipsyncd.errors import ConfigError
from lipsyncd.settings import Output, Paths, Render, Settings, load
from lipsyncd.settings.reference import describe, reference_toml
from lipsyncd.settings.rules import UNSET
from lipsyncd.settings.values import SECTIONS, SETTINGS

TOP = Path(__file__).parents[2]
ORIGINAL = {  # the original service's variable -> the setting, the default, and another value with what it reads as
    "HOST": ("web.host", "127.0.0.1", "0.0.0.0", "0.0.0.0"),
    "PORT": ("web.port", 8003, "9000", 9000),
    "STORAGE_DIR": ("paths.storage", None, "/srv/talks", Path("/srv/talks")),
    "MODELS_DIR": ("weights.dir", None, "/srv/models", Path("/srv/models")),
    "LAZY_LOAD": ("render.lazy_load", True, "False", False),
    "UNLOAD_IDLE_SECONDS": ("render.unload_idle_s", 300.0, "0", 0.0),
    "MAX_VRAM_GB": ("render.max_vram_gb", 14.0, "7.5", 7.5),
    "CLEAR_CACHE_AFTER_GENERATION": ("render.clear_cache", True, "no", False),
    "OUTPUT_RESOLUTION": ("output.resolution", 256, "512", 512),
    "OUTPUT_FPS": ("output.fps", "25", "29.97", "29.97"),
    "MAX_CONCURRENT_JOBS": ("render.max_concurrent_jobs", 2, "1", 1),
    "JOB_TIMEOUT_SECONDS": ("render.job_timeout_s", 600.0, "90", 90.0),
    "MAX_QUEUE_SIZE": ("web.max_queue", 10, "3", 3),
}


@pytest.fixture
def read(tmp_path):
    """Load with this file content and these variables, in an empty home, far from the machine's own settings."""

    def read(toml: str | None = None, **environ: str) -> Settings:
        config = None
        if toml is not None:
            config = tmp_path / "some.toml"
            config.write_text(toml)
        return load(config, {"HOME": str(tmp_path), **environ}, cwd=tmp_path, system_file=tmp_path / "none.toml")

    return read


def value_of(settings: Settings, name: str) -> object:
    section, _, key = name.rpartition(".")
    return getattr(getattr(settings, section.replace(".", "_")), key)


# -- which word wins ---------------------------------------------------------------------------------------------------


def test_without_a_word_from_anybody_everything_is_at_its_default(read, tmp_path):
    settings = read()

    assert settings == Settings(paths=Paths(storage=tmp_path / ".local/share/lipsyncd"))
    assert settings.paths.inbox == tmp_path / ".local/share/lipsyncd/inbox"
    assert settings.weights.dir == tmp_path / ".local/share/lipsyncd/models"
    assert set(settings.origins.values()) == {"default"}
    assert settings.file is None
    assert settings.notes == ()


@pytest.mark.parametrize(("variable", "case"), ORIGINAL.items(), ids=ORIGINAL)
def test_a_variable_of_the_original_service_works_under_its_name(read, variable, case):
    name, default, text, value = case

    assert default is None or value_of(read(), name) == default
    assert value_of(read(**{variable: text}), name) == value
    assert read(**{variable: text}).origins[name] == f"environment {variable}"


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_given_as_a_variable_of_ours(read, name):
    setting = SETTINGS[name]
    current = value_of(Settings(), name)
    unset = "" if current == UNSET else str(current)
    text = ",".join(current) if isinstance(current, tuple) else unset
    settings = read(**{setting.variable: text})

    assert value_of(settings, name) == current
    assert settings.origins[name] == (f"environment {setting.variable}" if text else "default")


def test_later_places_win_and_each_value_knows_its_own(read, tmp_path):
    toml = "[output]\nresolution = 512\nfps = 30\ncrf = 20\n[web]\nport = 1\n"
    settings = read(toml, OUTPUT_FPS="24", PORT="2", LIPSYNCD_WEB_PORT="3")

    assert (settings.output.resolution, settings.output.fps, settings.web.port) == (512, "24", 3)
    assert settings.file == tmp_path / "some.toml"
    assert settings.origins["output.resolution"] == str(tmp_path / "some.toml")
    assert settings.origins["output.fps"] == "environment OUTPUT_FPS"
    assert settings.origins["web.port"] == "environment LIPSYNCD_WEB_PORT"
    assert settings.origins["output.preset"] == "default"


def test_an_empty_variable_is_not_set(read):
    settings = read(PORT="", HOST=" ", LIPSYNCD_RENDER_RENDERER="", LIPSYNCD_NONSENSE="", MUSETALK_DIR="")

    assert settings == read()
    assert settings.origins == read().origins
    assert settings.notes == ()


@pytest.mark.parametrize("text", ["true", "1", "YES", " on "])
def test_a_switch_can_be_thrown_in_several_words(read, text):
    assert read(LIPSYNCD_OUTPUT_STITCH=text).output.stitch is True


def test_a_list_is_given_with_commas(read):
    assert read(LIPSYNCD_RENDER_DEVICES="cuda:0, cuda:1").render.devices == ("cuda:0", "cuda:1")
    assert read('[render]\ndevices = ["cpu"]').render.devices == ("cpu",)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("cuda", "cuda:0"),
        ("cuda:00", "cuda:0"),
        ("cuda:01, cuda", "cuda:1 cuda:0"),
        ("cpu:0", "cpu"),
        ("cpu, cuda", "cpu cuda:0"),
    ],
)
def test_each_device_has_one_name_however_it_is_written(read, written, meant):
    assert read(LIPSYNCD_RENDER_DEVICES=written).render.devices == tuple(meant.split())


def test_renderers_of_ones_own_are_named_with_their_class(read):
    assert read(LIPSYNCD_RENDER_RENDERERS="mine=pkg.mod:Mine").render.renderers == ("mine=pkg.mod:Mine",)
    with pytest.raises(ConfigError, match=r"render\.renderers is .*allowed: entries such as"):
        read('[render]\nrenderers = ["pkg.mod:Mine"]')


def test_a_frame_rate_may_be_a_number_or_a_fraction(read):
    assert read("[output]\nfps = 29.97").output.rate == Fraction(30000, 1001)
    assert read('[output]\nfps = "24000/1001"').output.rate == Fraction(24000, 1001)


def test_a_byte_order_mark_does_no_harm(read):
    assert read("\ufeff[web]\nport = 1").web.port == 1


def test_values_have_their_useful_forms(read):
    settings = read('[intake]\nbackground = "#10Ff00"\n[output]\nfile_mode = "0640"')

    assert settings.intake.background_rgb == (16, 255, 0)
    assert settings.output.mode_bits == 0o640


# -- folders -----------------------------------------------------------------------------------------------------------


def test_folders_start_at_the_file_or_at_the_working_folder(read, tmp_path):
    settings = read('[paths]\nstorage = "store"\ninbox = "~/in"\noutbox = "/mnt/out"', LIPSYNCD_PATHS_FAILED="bad")

    assert settings.paths.storage == tmp_path / "store"
    assert settings.paths.inbox == tmp_path / "in"
    assert settings.paths.outbox == Path("/mnt/out")
    assert settings.paths.failed == tmp_path / "bad"
    assert settings.paths.spool == tmp_path / "store/spool"


def test_a_unit_of_systemd_stores_in_its_state_folder(read):
    settings = read(STATE_DIRECTORY="/var/lib/lipsyncd:/var/lib/other")

    assert settings.paths.inbox == Path("/var/lib/lipsyncd/inbox")
    assert settings.origins["paths.storage"] == "environment STATE_DIRECTORY"
    assert read(STATE_DIRECTORY="/var/lib/x", STORAGE_DIR="/srv").paths.storage == Path("/srv")


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        ({"OUTBOX": "/s/inbox"}, ("paths.outbox", "'/s/inbox'", "LIPSYNCD_PATHS_OUTBOX", "paths.inbox")),
        ({"OUTBOX": "/s/inbox/done"}, ("paths.outbox", "'/s/inbox/done'", "LIPSYNCD_PATHS_OUTBOX", "paths.inbox")),
        ({"SPOOL": "/s"}, ("paths.spool", "'/s'", "LIPSYNCD_PATHS_SPOOL", "paths.inbox")),
        ({"INBOX": "/"}, ("paths.inbox", "'/'", "LIPSYNCD_PATHS_INBOX", "paths.outbox")),
        ({"ARCHIVE": "/s/x/../failed"}, ("paths.archive", "LIPSYNCD_PATHS_ARCHIVE", "paths.failed")),
    ],
    ids=str,
)
def test_folders_that_touch_each_other_are_refused(read, paths, named):
    variables = {f"LIPSYNCD_PATHS_{name}": path for name, path in paths.items()}

    with pytest.raises(ConfigError) as refusal:
        read(STORAGE_DIR="/s", **variables)

    assert all(word in str(refusal.value) for word in named)
    assert "\n" not in str(refusal.value)


def test_folders_that_touch_through_a_link_are_refused(read, tmp_path):
    (tmp_path / "store/inbox").mkdir(parents=True)
    (tmp_path / "elsewhere").symlink_to(tmp_path / "store")

    with pytest.raises(ConfigError, match=r"paths\.outbox"):
        read(STORAGE_DIR=str(tmp_path / "store"), LIPSYNCD_PATHS_OUTBOX=str(tmp_path / "elsewhere/inbox/out"))


def test_folders_whose_names_only_begin_alike_are_apart(read):
    assert read(STORAGE_DIR="/s", LIPSYNCD_PATHS_OUTBOX="/s/inbox-done").paths.outbox == Path("/s/inbox-done")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "text", "named"),
    [
        ("PORT", "abc", ("web.port", "'abc'", "0 to 65535", "environment PORT")),
        ("PORT", "65536", ("web.port", "'65536'", "0 to 65535")),
        ("PORT", "80.0", ("web.port", "a whole number")),
        ("PORT", "9" * 5000, ("web.port", "a whole number")),
        ("LAZY_LOAD", "maybe", ("render.lazy_load", "'maybe'", "true or false")),
        ("UNLOAD_IDLE_SECONDS", "-1", ("render.unload_idle_s", "'-1'", "a number from 0 up")),
        ("UNLOAD_IDLE_SECONDS", "nan", ("render.unload_idle_s", "a number from 0 up")),
        ("UNLOAD_IDLE_SECONDS", "inf", ("render.unload_idle_s", "a number from 0 up")),
        ("OUTPUT_RESOLUTION", "257", ("output.resolution", "even number from 64 to 2048")),
        ("OUTPUT_RESOLUTION", "4096", ("output.resolution", "even number from 64 to 2048")),
        ("OUTPUT_FPS", "0", ("output.fps", "1 to 120")),
        ("LIPSYNCD_OUTPUT_PRESET", "turbo", ("output.preset", "one of ultrafast,")),
        ("LIPSYNCD_OUTPUT_FILE_MODE", "0999", ("output.file_mode", "octal")),
        ("LIPSYNCD_INTAKE_BACKGROUND", "white", ("intake.background", "#rrggbb")),
        ("LIPSYNCD_RENDER_DEVICES", "auto,cuda:0", ("render.devices", "auto alone")),
        ("LIPSYNCD_RENDER_DEVICES", "cpu,cpu", ("render.devices", "different devices")),
        ("LIPSYNCD_RENDER_DEVICES", "cuda, cuda:0", ("render.devices", "'cuda, cuda:0'", "different devices")),
        ("LIPSYNCD_RENDER_DEVICES", "cpu,cpu:0", ("render.devices", "'cpu,cpu:0'", "different devices")),
        ("LIPSYNCD_RENDER_DEVICES", "cpu:1", ("render.devices", "'cpu:1'", "such as cuda:0, cuda:1, cpu")),
        ("LIPSYNCD_RENDER_DEVICES", ",", ("render.devices", "auto alone")),
        ("LIPSYNCD_RENDER_DEVICES", "gpu", ("render.devices", "cuda:0")),
        ("LIPSYNCD_WEB_HOST", "local\nhost", ("web.host", r"'local\nhost'", "an address")),
        ("LIPSYNCD_LOG_LEVEL", "loud\n<0>forged", ("log.level", r"'loud\n<0>forged'", "one of debug")),
    ],
)
def test_a_wrong_variable_is_one_line_with_setting_value_bounds_and_origin(read, variable, text, named):
    with pytest.raises(ConfigError) as refusal:
        read(**{variable: text})

    line = str(refusal.value)
    assert all(word in line for word in (*named, f"environment {variable}"))
    assert line.isprintable()
    assert len(line) < 300
    assert refusal.value.exit_status == 78


@pytest.mark.parametrize(
    ("toml", "named"),
    [
        ('[web]\nport = "8003"', ("web.port", "'8003'", "a whole number", "some.toml")),
        ("[web]\nport = true", ("web.port", "true", "a whole number")),
        ("[web]\nport = 80.0", ("web.port", "80.0", "a whole number")),
        ("[web]\nport = 2026-11-22", ("web.port", "2026", "a whole number")),
        ("[render]\nlazy_load = 1", ("render.lazy_load", "true or false")),
        ("[render]\nunload_idle_s = inf", ("render.unload_idle_s", "a number")),
        (f"[render]\nunload_idle_s = {'9' * 400}", ("render.unload_idle_s", "a number")),
        ('[render]\ndevices = "cpu"', ("render.devices", "'cpu'")),
        ("[render]\ndevices = [0]", ("render.devices", "[0]")),
        ("[output]\nfile_mode = 0o664", ("output.file_mode", "octal text")),
        ("[output]\nfps = true", ("output.fps", "1 to 120")),
        ("[output.fps]\nrate = 25", ("output.fps", "1 to 120")),
        ('[paths]\ninbox = "a\\u0000b"', ("paths.inbox", "path of a folder")),
        ("[paths]\ninbox = 7", ("paths.inbox", "path of a folder")),
        ("web = 7", ("web is 7", "[web]", "some.toml")),
        ("[web\nport = 1", ("not TOML", "line 1", "some.toml")),
        ("[web]\nport = 1\nport = 2", ("not TOML", "overwrite")),
        ("[web]\nport = 0x" + "f" * 9000, ("web.port", "too large to show", "a whole number")),
        ("a = " + "[" * 5000, ("not TOML", "some.toml")),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_wrong_word_in_a_file_is_one_line_too(read, toml, named):
    with pytest.raises(ConfigError) as refusal:
        read(toml)

    assert all(word in str(refusal.value) for word in named)
    assert str(refusal.value).isprintable()


def test_every_wrong_word_is_told_at_once_each_with_its_origin(read, tmp_path):
    toml = """
        web = 7
        [output]
        resolution = 65
        resolutoin = 64
        [nonsense]
        [queue."a b"]
        [queue.night]
        fps = 0
        urgency = 1
        renderer = "nosuch"
        [paths]
        inbox = "in"
        outbox = "in/out"
    """
    with pytest.raises(ConfigError) as refusal:
        read(toml, PORT="many", LIPSYNCD_LOG_LEVLE="info", LIPSYNCD_RENDER_RENDERER="musetalkk")

    lines, file = refusal.value.lines, str(tmp_path / "some.toml")
    starts = [
        f"web is 7, read from {file}",
        f"unknown setting 'output.resolutoin', read from {file}",
        f"unknown setting 'nonsense', read from {file}",
        "unknown setting 'LIPSYNCD_LOG_LEVLE', read from the environment",
        f"output.resolution is 65, read from {file}",
        "web.port is 'many', read from environment PORT",
        f"a queue is called 'a b', read from {file}",
        f"queue.night.fps is 0, read from {file}",
        f"unknown setting queue.night.urgency, read from {file}",
        "render.renderer is 'musetalkk', read from environment LIPSYNCD_RENDER_RENDERER",
        f"queue.night.renderer is 'nosuch', read from {file}",
        "paths.",
    ]
    assert all(any(line.startswith(start) for line in lines) for start in starts), lines
    assert len(lines) == len(starts)
    assert all(line.isprintable() and ("allowed: " in line or "did you mean" in line) for line in lines)
    assert str(refusal.value).startswith("12 settings are wrong: ")


@pytest.mark.parametrize(
    ("toml", "environ", "line"),
    [
        ("[web\n", {"LIPSYNCD_RENDER_RENDERER": "mine"}, "is not TOML"),
        ('[render]\nrenderers = ["mine"]\nrenderer = "mine"', {}, "render.renderers is"),
    ],
    ids=["no TOML", "no entry"],
)
def test_a_fault_is_not_told_twice_under_another_name(read, toml, environ, line):
    """The renderer may be one that the faulty part was to add."""
    with pytest.raises(ConfigError, match=line) as refusal:
        read(toml, **environ)

    assert len(refusal.value.lines) == 1


def test_a_renderer_that_there_is_not_is_refused_with_those_that_there_are(read):
    with pytest.raises(ConfigError) as refusal:
        read('[render]\nrenderers = ["mine=a.b:C"]', LIPSYNCD_RENDER_RENDERER="nosuch")

    assert refusal.value.remedy == "allowed: one of mine, musetalk, preview; render.renderers adds others"
    assert read('[render]\nrenderers = ["mine=a.b:C"]\nrenderer = "mine"').render.renderer == "mine"


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "a.toml", {"HOME": "/"})


@pytest.mark.parametrize(
    ("toml", "seen", "meant"),
    [
        ("[render]\nrendrer = 1", "render.rendrer", "render.renderer"),
        ("[output]\nfsp = 1", "output.fsp", "output.fps"),
        ("[Web]\nport = 1", "Web", "web"),
        ("[watcher]\n", "watcher", "watch"),
        ("[output]\nwords_per_minute = 1", "output.words_per_minute", "speech.words_per_minute"),
        ('renderer = "preview"', "renderer", "render.renderer"),
    ],
)
def test_an_unknown_name_in_a_file_is_answered_with_the_nearest(read, toml, seen, meant):
    with pytest.raises(ConfigError) as refusal:
        read(toml)

    assert f"unknown setting '{seen}', read from" in str(refusal.value)
    assert str(refusal.value).endswith(f"did you mean {meant}?")


def test_an_unknown_variable_is_answered_with_the_nearest(read):
    with pytest.raises(ConfigError, match=r"'LIPSYNCD_RENDER_RENDRER'.* did you mean LIPSYNCD_RENDER_RENDERER\?$"):
        read(LIPSYNCD_RENDER_RENDRER="preview")


def test_variables_that_are_no_settings_do_no_harm(read):
    kubernetes = {
        "LIPSYNCD_SERVICE_HOST": "10.0.0.1",
        "LIPSYNCD_SERVICE_PORT_HTTP": "8003",
        "LIPSYNCD_PORT": "tcp://10.0.0.1:8003",
        "LIPSYNCD_PORT_8003_TCP_ADDR": "10.0.0.1",
    }

    assert read(LIPSYNCD_FAIL="publish:2", LIPSYNCDX="1", **kubernetes) == read()
    with pytest.raises(ConfigError, match="LIPSYNCD_WEB_PORT"):
        read(LIPSYNCD_PORT="8003")


# What a variable can hold: text, and bytes that are none, as Python shows them. No other surrogate can be in one.
OF_VARIABLES = st.characters(codec="utf-8", exclude_characters="\0") | st.characters(
    min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]
)


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.sampled_from(list(SETTINGS)), st.text(OF_VARIABLES, min_size=1, max_size=30))
def test_any_text_in_a_variable_is_a_value_or_one_line(read, name, text):
    try:
        settings = read(**{SETTINGS[name].variable: text})
    except ConfigError as refusal:
        assert name in str(refusal)
        assert str(refusal).isprintable()
    else:
        assert (settings.origins[name] == "default") is (not text.strip())


# -- which file --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["local", "personal"])
def places(tmp_path, request):
    """Load with a named file, the variable's, the system's and one of the caller's own, as far as they were written."""
    system, local, personal = tmp_path / "etc.toml", tmp_path / "here", tmp_path / ".config/lipsyncd"
    for folder in (local, personal):
        folder.mkdir(parents=True)

    def load_from(config: Path | None = None, **environ: str) -> Settings:
        return load(config, {"HOME": str(tmp_path), **environ}, cwd=local, system_file=system)

    return load_from, system, {"local": local, "personal": personal}[request.param] / "lipsyncd.toml"


def test_the_first_file_that_there_is_counts_alone(places, tmp_path):
    load_from, system, local = places
    named, by_variable = tmp_path / "named.toml", tmp_path / "variable.toml"
    for port, path in enumerate((named, by_variable, system, local), start=1):
        path.write_text(f"[web]\nport = {port}\n")
    local.write_text("[web]\nport = 4\nmax_queue = 99\n")

    assert load_from(named, LIPSYNCD_CONFIG=str(by_variable)).web.port == 1
    assert load_from(LIPSYNCD_CONFIG=str(by_variable)).web.port == 2
    assert load_from(LIPSYNCD_CONFIG="").web.port == 3
    assert load_from().file == system
    assert load_from().web.max_queue == 10
    system.unlink()
    assert load_from().web.port == 4
    assert load_from().file == local


def test_the_personal_file_comes_before_the_local_one_and_may_be_elsewhere(tmp_path):
    def port(**environ: str) -> int:
        return load(None, {"HOME": str(tmp_path), **environ}, cwd=tmp_path, system_file=tmp_path / "none").web.port

    for number, folder in enumerate((tmp_path, tmp_path / ".config/lipsyncd", tmp_path / "xdg/lipsyncd"), start=1):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lipsyncd.toml").write_text(f"[web]\nport = {number}\n")
    assert port() == 2
    assert port(XDG_CONFIG_HOME=str(tmp_path / "xdg")) == 3
    assert port(XDG_CONFIG_HOME=str(tmp_path / "nowhere")) == 1
    assert port(XDG_CONFIG_HOME="relative") == 2


def test_a_named_file_must_be_there(places, tmp_path):
    load_from, _, _ = places

    with pytest.raises(ConfigError, match=r"cannot read .*gone\.toml: No such file"):
        load_from(tmp_path / "gone.toml")
    with pytest.raises(ConfigError, match=r"cannot read .*gone\.toml: No such file"):
        load_from(LIPSYNCD_CONFIG=str(tmp_path / "gone.toml"))
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        load_from(tmp_path)


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_local_file_that_others_may_write_is_passed_over_with_a_note(places, mode):
    load_from, _, local = places
    local.write_text("[web]\nport = 4\n")
    local.chmod(mode)
    settings = load_from()

    assert settings.web.port == 8003
    assert settings.notes == (f"{local} ignored: others may write it; `chmod go-w` it, or name it with --config",)
    local.chmod(0o644)
    assert load_from().web.port == 4


def test_a_local_link_or_pipe_is_passed_over_with_a_note(places, tmp_path):
    load_from, _, local = places
    (tmp_path / "other.toml").write_text("[web]\nport = 4\n")
    local.symlink_to(tmp_path / "other.toml")
    assert load_from().web.port == 8003
    assert "ignored" in load_from().notes[0]

    local.unlink()
    os.mkfifo(local)
    assert load_from().notes == (f"{local} ignored: it is no regular file",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_a_local_file_of_another_user_is_ignored_with_a_note(places):
    load_from, _, local = places
    local.write_text("[web]\nport = 4\n")
    os.chown(local, 65534, -1)

    assert load_from().web.port == 8003
    assert load_from().notes == (f"{local} ignored: it belongs to user 65534, not to 0",)


# -- notes and what is shown -------------------------------------------------------------------------------------------


def test_a_checkout_of_the_original_is_accepted_and_not_needed(read):
    [note] = read(MUSETALK_DIR="/opt/MuseTalk").notes

    assert "MUSETALK_DIR" in note
    assert "not needed" in note


def test_more_jobs_than_devices_are_accepted_with_one_note(read):
    assert len(read(MAX_CONCURRENT_JOBS="3").notes) == 1
    assert read(MAX_CONCURRENT_JOBS="1").notes == ()
    assert read(MAX_CONCURRENT_JOBS="2", LIPSYNCD_RENDER_DEVICES="cuda:0,cuda:1").notes == ()


def test_the_reference_file_shows_every_setting_at_its_default_under_its_sentence():
    text = (TOP / "lipsyncd.toml").read_text(encoding="utf-8")

    assert text == reference_toml()
    for setting in SETTINGS.values():
        assert re.search(rf"^# {re.escape(setting.rule.help)}\n(# \(.*\)\n)?{setting.key} = ", text, re.MULTILINE)
    tables = tomllib.loads(text)
    for name in ("split", "ray"):
        tables[f"executor.{name}"] = tables["executor"].pop(name)
    assert {section: list(table) for section, table in tables.items()} == {
        section: [s.key for s in SETTINGS.values() if s.section == section] for section in SECTIONS
    }


def test_the_reference_file_changes_nothing(read):
    assert read(reference_toml()) == read()
    assert all(len(line) <= 120 for line in reference_toml().splitlines())


@pytest.mark.parametrize(
    ("name", "renderer", "devices"), [("preview", "preview", ("cpu",)), ("gpu", "musetalk", ("cuda:0",))]
)
def test_a_variant_that_we_ship_loads(tmp_path, name, renderer, devices):
    settings = load(TOP / f"config/{name}.toml", {"HOME": str(tmp_path)})

    assert (settings.render.renderer, settings.render.devices) == (renderer, devices)
    assert settings.notes == ()


def test_describe_gives_every_value_with_its_origin_as_plain_json(read):
    rows = {row.name: row for row in describe(read("[render]\ndevices = ['cuda:1']", PORT="1"))}

    assert list(rows) == list(SETTINGS)
    assert rows["web.port"][1:3] == (1, "environment PORT")
    assert rows["render.devices"].value == ["cuda:1"]
    assert rows["paths.inbox"].value.endswith("/.local/share/lipsyncd/inbox")
    assert rows["render.unload_idle_s"].help == SETTINGS["render.unload_idle_s"].rule.help


def test_every_setting_says_what_it_is_in_one_sentence():
    for setting in SETTINGS.values():
        assert re.fullmatch(r"[A-Z].*[^.]\.", setting.rule.help), setting.name
        assert ". " not in setting.rule.help, setting.name


def test_sections_can_be_made_directly(tmp_path):
    settings = Settings(paths=Paths(storage=tmp_path), render=Render(renderer="preview"), output=Output(fps="30"))

    assert settings.paths.outbox == tmp_path / "outbox"
    assert settings.weights.dir == tmp_path / "models"
    assert Paths(storage=tmp_path, inbox=Path("in")).inbox == Path.cwd() / "in"


def test_a_working_folder_that_is_gone_is_reported(tmp_path):
    program = f"""
import os
from lipsyncd.errors import ConfigError
from lipsyncd.settings import load
os.mkdir({str(tmp_path / "gone")!r})
os.chdir({str(tmp_path / "gone")!r})
os.rmdir({str(tmp_path / "gone")!r})
try:
    load(environ={{"HOME": "/"}})
except ConfigError as refusal:
    print(refusal)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=TOP).stdout

    assert output == "the working folder does not exist any more; change to another one\n"


def test_reading_settings_loads_nothing_heavy():
    program = "import sys, lipsyncd.settings, lipsyncd.log; print(*sorted(m.partition('.')[0] for m in sys.modules))"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=TOP).stdout
    third_party = set(output.split()) - set(sys.stdlib_module_names) - {"lipsyncd"}

    assert not {name for name in third_party if not name.startswith("_")}
