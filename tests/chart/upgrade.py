"""Fields that Kubernetes doesn't let an upgrade change, against immutable.json and the last release's chart."""

import json
import subprocess
import tempfile
from pathlib import Path

from chart import ROOT, Chart, Refused, ci_files
from harness import Skip

GOLDEN = Path(__file__).parent / "immutable.json"
# What may be changed in a StatefulSet; nothing else may.
STATEFUL_MUTABLE = {
    "replicas", "ordinals", "template", "updateStrategy", "persistentVolumeClaimRetentionPolicy", "minReadySeconds",
    "revisionHistoryLimit",
}


def immutable(objects):
    """The fields of each object that stay for its life, by kind and name."""
    fields = {}
    for item in objects:
        name = f"{item['kind']}/{item['metadata']['name']}"
        spec = item.get("spec", {})
        if item["kind"] == "Deployment":
            fields[name] = {"selector": spec["selector"]}
        elif item["kind"] == "StatefulSet":
            fields[name] = {key: value for key, value in spec.items() if key not in STATEFUL_MUTABLE}
        elif item["kind"] == "Service":
            fields[name] = {"clusterIP": spec.get("clusterIP"), "type": spec.get("type", "ClusterIP")}
    return fields


def of_ci_files(chart, files):
    return {file.name: immutable(chart.render(file=file)) for file in files}


def against_golden(chart):
    """no field that can't be changed differs from immutable.json"""
    golden = json.loads(GOLDEN.read_text())
    for file, fields in of_ci_files(chart, ci_files()).items():
        assert file in golden, f"immutable.json lacks {file}: run scripts/check-chart --golden"
        for name, expected in golden[file].items():
            assert name in fields, f"{file}: {name} is gone; an upgrade would delete it and make another"
            assert fields[name] == expected, f"{file}: {name}: {fields[name]}, and it was {expected}"


def against_last_release(chart):
    """the chart of the last tagged release upgrades to this one"""
    git = ["git", "-C", ROOT]
    tag = subprocess.run([*git, "describe", "--tags", "--abbrev=0", "HEAD^"], capture_output=True, text=True, check=False)
    if tag.returncode:
        raise Skip("no release is tagged before this commit; immutable.json stands in for it")
    tag = tag.stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run([*git, "archive", tag, "helm"], capture_output=True, check=False)
        if archive.returncode:
            raise Skip(f"{tag} has no chart")
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        old = Chart(Path(folder) / "helm/capvec")
        try:
            for file in ci_files():
                try:
                    before = immutable(old.render(file=file))
                except Refused:
                    continue  # The old chart doesn't know these values, so nobody has installed it with them.
                after = immutable(chart.render(file=file))
                for name, fields in before.items():
                    assert after.get(name) == fields, f"{file.name}: {name}: {after.get(name)}, and {tag} has {fields}"
        finally:
            old.remove()


def write_golden(chart):
    GOLDEN.write_text(json.dumps(of_ci_files(chart, ci_files()), indent=2, sort_keys=True) + "\n")


ALL = [against_golden, against_last_release]
