"""What the chart says of the program, of the repository and of itself, held equal to them."""

import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import tomllib
from pathlib import Path

import jsonschema
import yaml

import restricted
from chart import CHART, LEAST, OPTIONS, ROOT, ci_files, configuration, kinds, options, version_of, worker
from harness import Skip


def generated(_):
    """the schema, the README's table and the files from dashboards/ follow what they are made of"""
    for script in ["chart-schema", "chart-readme", "dashboard"]:
        done = subprocess.run([ROOT / "scripts" / script, "--check"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def closed_schema(_):
    """the schema is closed: every object in it names its keys, or says what all of them hold"""
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)

    def walk(node, path):
        if isinstance(node, dict):
            if node.get("type") == "object" and "properties" in node:
                assert node.get("additionalProperties") is False, path
            for key, value in node.items():
                walk(value, f"{path}/{key}")
        elif isinstance(node, list):
            for item in node:
                walk(item, path)

    walk(schema, "")
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert not list(jsonschema.Draft7Validator(schema).iter_errors(values))
    # What the schema knows and values.yaml doesn't is undocumented, but for what belongs to a chart around this one.
    missing = set(schema["properties"]) - set(values) - {"enabled", "global"}
    assert not missing, missing


def version(_):
    """the chart installs the program of this repository"""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version_of(r'^version = "(.*)"', "Cargo.toml")


def defaults(_):
    """the defaults that templates rely on are the program's"""
    program = tomllib.loads(OPTIONS.read_text())
    text = "".join(path.read_text() for path in (CHART / "templates").rglob("*.*"))
    found = re.findall(r'dig "(\w+)" "(\w+)" "([^"]+)" [.$]', text)
    assert {"drain_timeout", "listen"} <= {key for _, key, _ in found}
    for section, key, default in found:
        assert program[section][key] == default, f"{section}.{key} is {program[section][key]!r}, not {default!r}"


def carried_files(chart):
    """`helm package` puts the repository's alerts and dashboard into the archive, whole"""
    with tempfile.TemporaryDirectory() as folder:
        done = chart.helm("package", CHART, "--destination", folder)
        assert done.returncode == 0, done.stderr
        (archive,) = Path(folder).iterdir()
        with tarfile.open(archive) as packed:
            for name in ["alerts.yaml", "capvec.json"]:
                member = packed.getmember(f"capvec/files/{name}")
                assert member.isfile(), f"{name} is a link, which leads nowhere elsewhere"
                assert packed.extractfile(member).read() == (ROOT / "dashboards" / name).read_bytes(), name
        on = "monitoring.dashboard.enabled=true,monitoring.prometheusRule.enabled=true"
        done = chart.helm("template", "x", archive, "--values", CHART / "ci/cpu-values.yaml", "--set", on)
        assert done.returncode == 0, done.stderr
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    (text,) = [i["data"]["capvec.json"] for i in objects if i["kind"] == "ConfigMap" and "capvec.json" in i["data"]]
    assert json.loads(text) == json.loads((ROOT / "dashboards/capvec.json").read_text())
    assert len(text) < 1 << 20, "a ConfigMap holds 1 MiB"


def inside_another(chart):
    """a chart that has this one inside turns it on and off by `condition: capvec.enabled`"""
    with tempfile.TemporaryDirectory() as folder:
        around = Path(folder)
        (around / "charts").mkdir()
        shutil.copytree(chart.path, around / "charts/capvec")
        (around / "Chart.yaml").write_text(yaml.safe_dump({
            "apiVersion": "v2", "name": "around", "version": "1.0.0",
            "dependencies": [{"name": "capvec", "version": "*", "condition": "capvec.enabled"}]}))
        for enabled in [True, False]:
            (around / "values.yaml").write_text(yaml.safe_dump({"capvec": {**LEAST, "enabled": enabled}}))
            done = chart.helm("template", "x", around)
            assert done.returncode == 0, done.stderr
            assert ("kind: Deployment" in done.stdout) == enabled, done.stdout


def program():
    """The newest capvec that was built, or none."""
    if given := os.environ.get("CAPVEC_PROGRAM"):
        return given
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    built = [path for path in (target / "debug/capvec", target / "release/capvec") if path.exists()]
    return max(built, key=lambda path: path.stat().st_mtime, default=None)


def environment(container):
    """The worker's variables as a kubelet sets them, with something for each secret."""
    variables = {}
    for entry in container.get("env", []):
        field = entry.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        value = entry.get("value", {"metadata.name": "capvec-0", "metadata.namespace": "somewhere"}.get(field, "secret"))
        variables[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], value)
    return variables


def mounted(text, folder):
    """The text, with the files of mounted Secrets in a folder that has them."""
    def file(match):
        (folder / match[1]).write_text("secret")
        return str(folder / match[1])
    return re.sub(r"/etc/capvec/kafka/([\w.-]+)", file, text)


def accepted_by_program(chart):
    """the program accepts the rendered configuration and variables of every ci/ file"""
    binary = program()
    if not binary:
        raise Skip("capvec isn't built; `make test` builds it, CAPVEC_PROGRAM names another")
    for file in ci_files():
        objects = chart.render(file=file, kubernetes="1.34.0")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "capvec.toml"
            path.write_text(mounted(configuration(objects), Path(folder)))
            variables = {name: mounted(value, Path(folder)) for name, value in environment(worker(objects)).items()}
            done = subprocess.run(
                [binary, "check", "--offline", "--config", path], env=variables, capture_output=True,
                text=True, timeout=60, check=False,
            )
        assert done.returncode == 0, f"{file.name}: {done.stdout}{done.stderr}"


def known_options(chart):
    """every option in a rendered configuration is documented in config/capvec.toml"""
    documented = tomllib.loads(OPTIONS.read_text())
    for file in ci_files():
        for section, keys in options(chart.render(file=file)).items():
            unknown = set(keys) - set(documented[section])
            assert not unknown, f"{file.name}: [{section}] {unknown}"


def documented_yaml(name):
    """The one YAML of a document."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / name).read_text(), re.S)
    return yaml.safe_load(text)


def documents(chart):
    """the values of docs/kubernetes.md render, and the pod of docs/image.md is admitted by \"restricted\""""
    objects = chart.render(documented_yaml("kubernetes.md"))
    assert {"PodMonitor", "PrometheusRule"} <= kinds(objects)
    spec = documented_yaml("image.md")["spec"]
    faults = [*restricted.faults({**spec, "enableServiceLinks": False})]
    assert not faults, faults
    (container,) = spec["containers"]
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
        assert container[probe]["httpGet"] == worker(objects)[probe]["httpGet"], probe


def missing_pip(_):
    """without pip scripts/helm-tools says what to type, and `make chart` looks for it before"""
    with tempfile.TemporaryDirectory() as folder:
        python = Path(folder) / "python3"
        python.write_text("#!/bin/sh\nexit 1\n")
        python.chmod(0o755)
        variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "CAPVEC_CACHE": f"{folder}/cache"}
        done = subprocess.run(
            [ROOT / "scripts/helm-tools"], env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "sudo apt-get install -y python3-pip" in done.stderr, done.stderr
    steps = re.search(r"^chart:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)[1].split("\n\t")
    assert steps[0].strip() == "@scripts/setup test", steps


def built_elsewhere(_):
    """the scripts that measure look for the program where CARGO_TARGET_DIR has it built"""
    variables = {**os.environ, "CARGO_TARGET_DIR": "/elsewhere"}
    for script in ["bench-delivery", "bench-memory"]:
        done = subprocess.run(
            [ROOT / "scripts" / script, "--help"], env=variables, capture_output=True, text=True, timeout=60, check=True)
        assert "/elsewhere/release/capvec" in done.stdout, f"{script}: {done.stdout}"
    # It builds first: a cargo that does nothing.
    with tempfile.TemporaryDirectory() as folder:
        cargo = Path(folder) / "cargo"
        cargo.write_text("#!/bin/sh\n")
        cargo.chmod(0o755)
        code = f"import runpy; print(runpy.run_path({str(ROOT / 'scripts/gpu-check')!r})['Check'].build(None))"
        for target, program in [("/elsewhere", "/elsewhere/release/capvec"), ("in-it", ROOT / "in-it/release/capvec")]:
            done = subprocess.run(
                ["python3", "-c", code], env={**variables, "CARGO_TARGET_DIR": target, "PATH": f"{folder}:{os.environ['PATH']}"},
                capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout.strip() == str(program), f"gpu-check: {done.stdout}"


ALL = [
    missing_pip, built_elsewhere, generated, closed_schema, version, defaults, carried_files, inside_another, known_options, accepted_by_program, documents,
]
