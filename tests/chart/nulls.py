"""null for each value: Helm takes the key away, its default too. What has an empty default stays as it is without; what
has another is refused by its path, for a template would write nothing in its place."""

import json
import re

import yaml

import schemas
from chart import CHART, FILE, Refused, ci_files, merged

# What null may take away, as the comments of values.yaml and of the schema say: the section of an option, ids, amounts.
TAKEN_AWAY = re.compile(
    r"config\.reject(\.topic)?|podSecurity\.\w+|(model\.fetch\.)?resources\.(requests|limits)(\.\w+)?"
    r"|monitoring\.dashboard\.labels\.\w+")
# What the templates ask for, whatever takes it away.
ASKED_FOR = {"config.kafka.brokers", "config.kafka.group", "config.input.topic", "config.output.topic"}
# A 0 that is meant.
MEANT = {"autoscaling.behavior.scaleUp.stabilizationWindowSeconds"}


def nulls(paths):
    """The values that set each of the paths to null."""
    result = {}
    for path in paths:
        value = None
        for key in reversed(path.split(".")):
            value = {key: value}
        result = merged(result, value)
    return result


def defaults():
    """Each value of values.yaml and each group of them: {path: default}."""

    def walk(node, prefix):
        for key, value in node.items():
            yield prefix + key, value
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return dict(walk(yaml.safe_load((CHART / "values.yaml").read_text()), ""))


def is_empty(path, value):
    return value in ("", 0, False, [], {}) and path not in MEANT


def is_set(values, path):
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def of_every_kind():
    """Values that between them switch on each part of the chart."""
    for file in ci_files():
        yield file.name, yaml.safe_load(file.read_text())
    for source, given in [
        ("http", {"url": "http://m.example"}), ("s3", {"bucket": "b"}), ("huggingface", {"repository": "o/n"}),
        ("oci", {"reference": "r.example/m:1"}),
    ]:
        fetch = {"from": source, "files": FILE, source: given}
        yield source, {"model": {"source": "fetch", "fetch": fetch}, "networkPolicy": {"enabled": True}}
    yield "gpu", {"gpu": {"enabled": True}, "monitoring": {"dashboard": {"enabled": True}}}
    yield "external", {"autoscaling": {
        "kind": "hpa", "partitions": 2, "hpa": {"type": "External", "selector": {"job": "a"}}}}
    yield "strimzi", {"kafka": {"strimzi": {"cluster": "c", "user": "u"}}, "autoscaling": {"kind": "keda", "partitions": 2}}


def is_changed(chart, values, paths):
    """Whether null at the paths makes other objects, or none."""
    before = chart.render(values)
    try:
        return chart.render(merged(values, nulls(paths))) != before
    except Refused:
        return True


def empty_stays_empty(chart):
    """null for a value whose default is empty changes nothing"""
    empty = [path for path, value in defaults().items()
             if is_empty(path, value) and path not in ASKED_FOR and not TAKEN_AWAY.fullmatch(path)]
    assert len(empty) > 50, empty
    for name, values in [("nothing", {}), *of_every_kind()]:
        unset = [path for path in empty if not is_set(values, path)]
        if is_changed(chart, values, unset):
            alone = [path for path in unset if is_changed(chart, values, [path])]
            raise AssertionError(f"{name}: {', '.join(alone)}")


def other_defaults_are_refused(chart):
    """null for a value whose default isn't empty is refused by its path"""
    wanted = {path for path, value in defaults().items()
              if not is_empty(path, value) and not TAKEN_AWAY.fullmatch(path)}
    assert len(wanted) > 80, wanted
    # Those of one depth at once: a group that is gone hides what is in it.
    for depth in range(max(path.count(".") for path in wanted) + 1):
        level = {path for path in wanted if path.count(".") == depth}
        try:
            chart.render(nulls(level))
        except Refused as words:
            told = set()
            for group, keys in re.findall(r"- at '(.*?)': missing propert(?:y|ies) (.*)", str(words)):
                told |= {f"{group}/{key}".lstrip("/").replace("/", ".") for key in re.findall(r"'(\w+)'", keys)}
            assert told == level, f"not told: {level - told}; told without need: {told - level}"
        else:
            raise AssertionError(f"rendered without {level}")


def options_are_refused(chart):
    """null for an option of the worker is refused by its path; one that isn't set keeps the program's default"""
    sections = json.loads((CHART / "values.schema.json").read_text())["properties"]["config"]["properties"]
    known = defaults()
    options = {f"config.{section}.{key}" for section, node in sections.items() for key in node.get("properties", {})}
    options -= {path for path in options if path in known}
    assert len(options) > 30, options
    try:
        chart.render(nulls(options))
    except Refused as words:
        told = {path.strip("/").replace("/", ".") for path in re.findall(r"- at '(.*?)': (?:got null|value must)", str(words))}
        assert told == options, (options - told, told - options)
    else:
        raise AssertionError("rendered without a word")


def what_may_be_taken_away(chart):
    """what null may take away leaves objects that Kubernetes takes"""
    taken = [path for path in defaults() if TAKEN_AWAY.fullmatch(path)]
    for name, values in [("nothing", {}), *of_every_kind()]:
        for paths in [[path for path in taken if path.count(".") == depth] for depth in range(4)]:
            values = merged(values, nulls(path for path in paths if not is_set(values, path)))
            for item in chart.render(values):
                faults = list(schemas.faults(item, schemas.versions()[-1]))
                assert not faults, f"{name}: {faults}"


ALL = [empty_stays_empty, other_defaults_are_refused, options_are_refused, what_may_be_taken_away]
