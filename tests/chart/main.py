"""Checks the Helm chart: scripts/check-chart runs it with the tools that it needs."""

import sys

import fetching
import logic
import nulls
import promises
import refusals
import restricted
import schemas
import upgrade
from chart import Chart, Refused, ci_files, merged, pod_specs
from harness import Report


def linted(chart, file):
    done = chart.helm("lint", "--strict", chart.path, "--values", file)
    assert done.returncode == 0, done.stdout + done.stderr


def renders_well(chart, file, version):
    """A values file on one version of Kubernetes: the schemas, and Pod Security's "restricted"."""
    if file.name == "image-volume-values.yaml" and version.startswith("1.30."):
        return  # Refused there, as refusals.py has it.
    objects = chart.render(file=file, kubernetes=version)
    names = [(item["kind"], item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names), f"an object comes twice: {sorted(names)}"
    faults = [fault for item in objects for fault in schemas.faults(item, version)]
    for name, spec in pod_specs(objects):
        faults += [f"{name}: {fault}" for fault in restricted.faults(spec)]
    assert not faults, "\n  " + "\n  ".join(faults)


def refused(chart, values, message, **more):
    try:
        chart.render(values, **more)
    except Refused as words:
        assert message in str(words), f"the message lacks {message!r}: {words}"
    else:
        raise AssertionError("rendered without a word")


def controls_bite():
    """A pod with one fault after the other, so that the checks themselves are known to see them."""
    good = {
        "automountServiceAccountToken": False, "enableServiceLinks": False,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}}],
    }
    assert not list(restricted.faults(good))
    bad_containers = [
        {"allowPrivilegeEscalation": True}, {"readOnlyRootFilesystem": False}, {"capabilities": {"drop": []}},
        {"capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]}}, {"runAsUser": 0}, {"runAsNonRoot": False},
        {"privileged": True}, {"seccompProfile": {"type": "Unconfined"}},
    ]
    for part in ["containers", "initContainers"]:
        for over in bad_containers:
            container = {"name": "c", "securityContext": merged(good["containers"][0]["securityContext"], over)}
            spec = {**good, part: [container]}
            assert list(restricted.faults(spec)), f"{part}: {over} isn't seen"
    for over in [{"hostNetwork": True}, {"automountServiceAccountToken": True}, {"enableServiceLinks": True},
                 {"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}]:
        assert list(restricted.faults({**good, **over})), f"{over} isn't seen"


def schemas_bite(version):
    """An object with a field that isn't known, of Kubernetes and of each custom resource."""
    kinds = [("apps/v1", "Deployment")]
    for path in schemas.CRDS.glob("*.json"):
        group, number, kind = path.stem.split("_")
        kinds.append((f"{group}/{number}", kind))
    for api, kind in kinds:
        item = {"apiVersion": api, "kind": kind, "metadata": {"name": "x"}, "spec": {"noSuchField": 1}}
        assert any("noSuchField" in fault for fault in schemas.faults(item, version)), f"{kind} takes an unknown field"


def main():
    chart = Chart()
    report = Report()
    check = report.check
    if sys.argv[1:] == ["--golden"]:
        upgrade.write_golden(chart)
        return 0
    newest = schemas.versions()[-1]

    with check("the checks of Pod Security see each fault"):
        controls_bite()
    with check("the schemas see an unknown field"):
        schemas_bite(newest)
    for file in ci_files():
        name = f"ci/{file.name}"
        with check(f"{name}: helm lint --strict"):
            linted(chart, file)
        with check(f"{name}: Kubernetes {schemas.versions()[0]} to {newest}, custom resources, Pod Security"):
            for version in schemas.versions():
                renders_well(chart, file, version)
    for module in (logic, promises, nulls, upgrade, fetching):
        for test in module.ALL:
            with check(test.__doc__.strip()):
                test(chart)
    for name, values, message in refusals.BAD:
        with check(f"refused: {name}"):
            refused(chart, values, message)
    for name, values, message in refusals.BAD_ON_OLD:
        with check(f"refused: {name}"):
            refused(chart, values, message, kubernetes="1.30.0")
    chart.remove()
    return report.end()


sys.exit(main())
