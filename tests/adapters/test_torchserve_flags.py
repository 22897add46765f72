"""What `launch` makes of TorchServe's own flags and settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from strongroom.adapters.torchserve import properties as java
from strongroom.adapters.torchserve.flags import (
    REFUSED_PROPERTIES,
    read_command,
    read_properties,
    size_limits,
    write_properties,
)
from strongroom.errors import LaunchRefused


@pytest.fixture
def store(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    for name in ("digits.mar", "other.mar"):
        (folder / name).write_bytes(b"")
    return folder


def read(store, *flags):
    return read_command(["torchserve", "--start", "--ncs", "--model-store", str(store), *flags])


def test_the_usual_command_is_read_as_torchserve_reads_it(store, tmp_path):
    config = tmp_path / "config.properties"
    config.write_text("inference_address=http://127.0.0.1:8080\ndefault_workers_per_model=2\n")
    wanted = read(store, "--ts-config", str(config), "--models", "d=digits.mar", "other.mar")
    assert wanted.models == {"d": store / "digits.mar", "other": store / "other.mar"}
    assert wanted.properties["default_workers_per_model"] == "2"


def test_all_means_every_archive_of_the_store(store):
    assert set(read(store, "--models", "ALL").models) == {"digits", "other"}


@pytest.mark.parametrize(
    "flag",
    [
        ["--plugins-path", "/plugins"],
        ["--enable-model-api"],
        ["--workflow-store", "/flows"],
        ["--log-config", "/log4j2.xml"],
        ["--stop"],
    ],
)
def test_a_flag_that_would_weaken_the_server_is_refused_with_a_reason(store, flag):
    with pytest.raises(LaunchRefused, match="is refused: ") as refusal:
        read(store, *flag, "--models", "digits.mar")
    assert refusal.value.hint


@pytest.mark.parametrize("model", ["http://host/x.mar", "x=../digits.mar", "/etc/passwd", "x=s3://bucket/x.mar"])
def test_a_model_from_outside_the_store_is_refused(store, model):
    with pytest.raises(LaunchRefused):
        read(store, "--models", model)


def test_a_model_that_is_not_there_is_refused(store):
    with pytest.raises(LaunchRefused, match="does not exist"):
        read(store, "--models", "absent.mar")


def test_another_server_than_torchserve_is_refused(store):
    with pytest.raises(LaunchRefused, match="not 'bash'"):
        read_command(["bash", "-c", "true"])


@pytest.mark.parametrize("name", sorted(REFUSED_PROPERTIES))
def test_each_dangerous_property_is_refused_with_its_reason(tmp_path, name):
    config = tmp_path / "config.properties"
    config.write_text(f"{name}=true\n")
    with pytest.raises(LaunchRefused, match=name):
        read_properties(config)


def test_an_unknown_property_is_refused(tmp_path):
    config = tmp_path / "config.properties"
    config.write_text("some_future_setting=1\n")
    with pytest.raises(LaunchRefused, match="some_future_setting"):
        read_properties(config)


@pytest.mark.parametrize(
    "line",
    [
        "vmargs=-javaagent:/evil.jar",
        "vmargs=-Xmx1g -Dlog4j2.formatMsgNoLookups=false",
        "plugins\\u005fpath=x",
        "a:b",
        "plugins_path /x",
    ],
)
def test_a_line_that_loads_code_is_refused_in_every_spelling_that_java_reads(tmp_path, line):
    config = tmp_path / "config.properties"
    config.write_text(line + "\n")
    with pytest.raises(LaunchRefused):
        read_properties(config)


def test_memory_sizes_reach_the_jvm(store, tmp_path):
    config = tmp_path / "config.properties"
    config.write_text("vmargs=-Xmx1g -Xms256m\n")
    assert read_properties(config)["vmargs"] == "-Xmx1g -Xms256m"
    write_properties(read(store, "--ts-config", str(config), "--models", "digits.mar"), tmp_path / "out.properties")
    written = dict(line.split("=", 1) for line in (tmp_path / "out.properties").read_text().splitlines())
    assert written["vmargs"].startswith("-Xmx1g -Xms256m -XX:+DisableAttachMechanism")


def test_a_models_table_over_several_lines_is_joined_as_java_joins_it(tmp_path):
    config = tmp_path / "config.properties"
    config.write_text('models={\\\n  "digits": {\\\n    "1.0": {"marName": "digits.mar"}\\\n  }\\\n}\n')
    assert read_properties(config)["models"] == '{"digits": {"1.0": {"marName": "digits.mar"}}}'


def test_what_torchserve_gets_ends_with_the_forced_settings(store, tmp_path):
    config = tmp_path / "config.properties"
    config.write_text("install_py_dep_per_model=false\ninference_address=http://127.0.0.1:1\n")
    wanted = read(store, "--ts-config", str(config), "--models", "digits.mar")
    write_properties(wanted, tmp_path / "out.properties")
    written = dict(line.split("=", 1) for line in (tmp_path / "out.properties").read_text().splitlines())
    assert written["inference_address"] == "http://127.0.0.1:1"
    assert written["install_py_dep_per_model"] == "false"
    assert written["enable_envvars_config"] == "false"
    assert "-XX:+DisableAttachMechanism" in written["vmargs"].split()
    assert written["allowed_urls"].startswith("file://strongroom")


def test_the_server_gets_room_for_what_sealing_adds_and_the_worker_keeps_the_limits(store, tmp_path):
    config = tmp_path / "config.properties"
    config.write_text("max_request_size=1000000\nmax_response_size=2000000\n")
    wanted = read(store, "--ts-config", str(config), "--models", "digits.mar")
    assert size_limits(wanted) == (1_000_000, 2_000_000)
    write_properties(wanted, tmp_path / "out.properties")
    written = dict(line.split("=", 1) for line in (tmp_path / "out.properties").read_text().splitlines())
    assert int(written["max_request_size"]) > 1_000_000
    assert int(written["max_response_size"]) > 2_000_000 + 2_000_000 // 400


@pytest.mark.parametrize("size", ["0", "-1", "many", "4294967296"])
def test_a_size_limit_that_is_no_size_is_refused(store, tmp_path, size):
    config = tmp_path / "config.properties"
    config.write_text(f"max_response_size={size}\n")
    with pytest.raises(LaunchRefused, match="max_response_size"):
        size_limits(read(store, "--ts-config", str(config), "--models", "digits.mar"))


def test_a_service_envelope_is_refused_with_the_place_where_it_belongs(tmp_path):
    config = tmp_path / "config.properties"
    config.write_text("service_envelope=kserve\n")
    with pytest.raises(LaunchRefused, match=r"worker\.envelopes"):
        read_properties(config)


def test_a_working_folder_with_lines_in_its_name_writes_no_settings(tmp_path, monkeypatch):
    """A relative path of config.properties begins with the folder in which the launcher was started."""
    hostile = tmp_path / "a\nplugins_path=" / "tmp" / "jars\nvmargs=-javaagent:" / "tmp"
    (hostile / "store").mkdir(parents=True)
    (hostile / "store" / "digits.mar").write_bytes(b"")
    (hostile / "c.properties").write_text("keystore=ks.p12\n")
    monkeypatch.chdir(hostile)
    wanted = read("store", "--ts-config", "c.properties", "--models", "digits.mar")
    with pytest.raises(LaunchRefused, match="keystore") as refusal:
        write_properties(wanted, tmp_path / "out.properties")
    assert "folder" in refusal.value.hint
    assert not (tmp_path / "out.properties").exists()


def test_a_folder_of_any_script_is_found_by_java(store, tmp_path, monkeypatch):
    (tmp_path / "jürgen").mkdir()
    monkeypatch.chdir(tmp_path / "jürgen")
    Path("c.properties").write_text("keystore=ks.p12\n")
    write_properties(read(store, "--ts-config", "c.properties", "--models", "digits.mar"), tmp_path / "out.properties")
    written = java.read((tmp_path / "out.properties").read_bytes(), "it")
    assert written["keystore"] == str(tmp_path / "jürgen" / "ks.p12")


def test_forced_settings_come_last_and_once(store, tmp_path):
    config = tmp_path / "config.properties"
    config.write_text("vmargs=-Xmx1g\nmax_request_size=1000\ninference_address=http://127.0.0.1:1\n")
    write_properties(read(store, "--ts-config", str(config), "--models", "digits.mar"), tmp_path / "out.properties")
    names = [line.split("=")[0] for line in (tmp_path / "out.properties").read_text().splitlines()]
    assert names[0] == "inference_address" and sorted(names) == sorted(set(names))


def test_the_wrapper_of_torchserve_reads_the_same_settings(store, tmp_path):
    from ts.model_server import load_properties

    config = tmp_path / "config.properties"
    config.write_text('vmargs: -Xmx1g\nmodels={\\\n "a": "b"}\nkeystore /x/y\n')
    write_properties(read(store, "--ts-config", str(config), "--models", "digits.mar"), tmp_path / "out.properties")
    out = tmp_path / "out.properties"
    assert load_properties(str(out)) == java.read(out.read_bytes(), "it")


def test_without_a_flag_the_present_folders_configuration_counts_as_with_torchserve_alone(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not read(store, "--models", "digits.mar").unnamed
    Path("config.properties").write_text("inference_address=http://127.0.0.1:9\n")
    wanted = read(store, "--models", "digits.mar")
    assert wanted.unnamed and wanted.properties["inference_address"] == "http://127.0.0.1:9"
    Path("other.properties").write_text("")
    named = read(store, "--ts-config", "other.properties", "--models", "digits.mar")
    assert not named.unnamed and not named.properties


def test_the_present_folders_configuration_passes_the_same_check(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.properties").write_text("plugins_path=/evil\n")
    with pytest.raises(LaunchRefused, match="plugins_path"):
        read(store, "--models", "digits.mar")
