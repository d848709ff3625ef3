"""The chart under test, and Helm to render it with."""

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm/capvec"
OPTIONS = ROOT / "config/capvec.toml"
TOOLS = Path(os.environ["CAPVEC_HELM_TOOLS"])

# What the tests of single values stand on: all that is required, and nothing else.
LEAST = {
    "config": {
        "kafka": {"brokers": "kafka:9092", "group": "capvec"},
        "input": {"topic": "captions"},
        "output": {"topic": "vectors"},
    }
}
FILE = [{"name": "manifest.json", "sha256": "1" * 64}]


class Refused(Exception):
    """Helm's words where it renders nothing."""


def merged(base, over):
    """`over` on top of `base`, as Helm lays values over each other."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


class OneOfEachKey(yaml.SafeLoader):
    """YAML in which a key that comes twice is a fault; which of the two counts is chance."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        assert not twice, f"keys come twice: {twice}, {node.start_mark}"
        return super().construct_mapping(node, deep)


class Chart:
    """A copy of the chart alone, as one has it that is vendored: a link out of it would lead nowhere."""

    def __init__(self, source=CHART):
        self.folder = Path(tempfile.mkdtemp(prefix="capvec-chart-"))
        self.path = self.folder / "capvec"
        self.rendered = {}
        shutil.copytree(source, self.path, symlinks=True)

    def remove(self):
        shutil.rmtree(self.folder)

    def helm(self, *arguments):
        return subprocess.run(
            [TOOLS / "bin/helm", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
        )

    def render(self, values=None, file=None, kubernetes="1.34.0", release="release", notes=False, extra=()):
        """The objects that Helm would send, in order. `values` lie over those of `file`, or over LEAST."""
        key = repr((values, file, kubernetes, release, notes, extra))
        if key not in self.rendered:
            self.rendered[key] = self.render_anew(values, file, kubernetes, release, notes, extra)
        return self.rendered[key]

    def render_anew(self, values, file, kubernetes, release, notes, extra):
        arguments = ["--namespace", "somewhere", *extra]
        if not notes:
            arguments += ["--kube-version", kubernetes]
        if file:
            arguments += ["--values", file]
        given = values or {}
        if not file:
            given = merged(LEAST, given)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as written:
            yaml.safe_dump(given, written)
            written.flush()
            arguments += ["--values", written.name]
            if notes:
                done = self.helm("install", release, self.path, "--dry-run=client", *arguments)
            else:
                done = self.helm("template", release, self.path, *arguments)
        if done.returncode:
            raise Refused(done.stderr)
        if notes:
            return done.stdout.split("NOTES:", 1)[1]
        return [document for document in yaml.load_all(done.stdout, OneOfEachKey) if document]


def ci_files():
    return sorted((CHART / "ci").glob("*-values.yaml"))


def one(objects, kind):
    """The one object of a kind."""
    found = [item for item in objects if item["kind"] == kind]
    assert len(found) == 1, f"{len(found)} objects of kind {kind}"
    return found[0]


def kinds(objects):
    return {item["kind"] for item in objects}


def workload(objects):
    return next(item for item in objects if item["kind"] in ("Deployment", "StatefulSet"))


def pod_specs(objects):
    """Every pod that an object makes: (the object's kind and name, the pod's spec)."""
    for item in objects:
        name = f"{item['kind']} {item['metadata']['name']}"
        if item["kind"] in ("Deployment", "StatefulSet"):
            yield name, item["spec"]["template"]["spec"]
        elif item["kind"] == "Pod":
            yield name, item["spec"]


def worker(objects):
    return workload(objects)["spec"]["template"]["spec"]["containers"][0]


def file_at(pod, path, cluster=()):
    """The text that a pod's first container has at a path, as a kubelet puts it there: `pod` is an object with a spec or a
    template of pods, and `cluster` has the objects that there are when the container starts."""
    spec = pod["spec"]
    mount = next(m for part in ("containers", "initContainers") for c in spec.get(part, []) for m in c["volumeMounts"]
                 if path.startswith(m["mountPath"] + "/"))
    name = path.removeprefix(mount["mountPath"] + "/")
    volume = next(v for v in spec["volumes"] if v["name"] == mount["name"])
    if "configMap" in volume:
        named = volume["configMap"]["name"]
        return next(i["data"] for i in cluster if i["kind"] == "ConfigMap" and i["metadata"]["name"] == named)[name]
    item = next(item for item in volume["downwardAPI"]["items"] if item["path"] == name)
    key = re.fullmatch(r"metadata\.annotations\['(.*)'\]", item["fieldRef"]["fieldPath"])[1]
    return pod["metadata"]["annotations"][key]


def configuration(objects):
    """The worker's configuration, as its pods have it."""
    return file_at(workload(objects)["spec"]["template"], "/etc/capvec/config/capvec.toml", objects)


def options(objects):
    return tomllib.loads(configuration(objects))


def version_of(pattern, path):
    return re.search(pattern, (ROOT / path).read_text(), re.M)[1]
