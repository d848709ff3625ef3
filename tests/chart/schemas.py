"""Rendered objects against the schemas of Kubernetes and of custom resources, unknown fields refused."""

import json
from functools import cache
from pathlib import Path

import jsonschema
import kubernetes_validate
import referencing
import referencing.jsonschema

CRDS = Path(__file__).parent / "crds"
KUBERNETES = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
OLDEST = (1, 30)


def versions():
    """The versions of Kubernetes that there are schemas for, from the oldest that the chart supports."""
    names = [folder.name for folder in KUBERNETES.iterdir() if folder.name.endswith("-local-strict")]
    numbers = sorted(tuple(map(int, name[1:].split("-")[0].split("."))) for name in names)
    return [".".join(map(str, number)) for number in numbers if number[:2] >= OLDEST]


@cache
def registry(version):
    """The types that the schemas of a version refer to."""
    path = KUBERNETES / f"v{version}-local-strict/_definitions.json"
    contents = json.loads(path.read_text())
    resource = referencing.Resource.from_contents(contents, default_specification=referencing.jsonschema.DRAFT202012)
    # The schemas call it by this name.
    return referencing.Registry().with_resource("/api/_definitions.json", resource).crawl()


@cache
def validator(api_version, kind, version):
    group, _, number = api_version.rpartition("/")
    custom = CRDS / f"{group}_{number}_{kind}.json"
    if custom.exists():
        return jsonschema.Draft202012Validator(json.loads(custom.read_text()))
    # apps/v1 is in deployment-apps-v1.json, networking.k8s.io/v1 in networkpolicy-networking-v1.json.
    name = "-".join(filter(None, [kind.lower(), group.split(".")[0], number]))
    path = KUBERNETES / f"v{version}-local-strict/{name}.json"
    assert path.exists(), f"there is no schema for {api_version} {kind} in Kubernetes {version}"
    return jsonschema.Draft202012Validator(json.loads(path.read_text()), registry=registry(version))


def faults(item, version):
    """What is wrong with an object, a line each."""
    for error in validator(item["apiVersion"], item["kind"], version).iter_errors(item):
        where = "/".join(map(str, error.absolute_path))
        yield f"{item['kind']} {item['metadata']['name']}: {where}: {error.message[:300]}"
