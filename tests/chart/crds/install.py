#!/usr/bin/env python3
"""Prints CustomResourceDefinitions with the schemas of this folder, for an API server to try the chart on."""

import json
from pathlib import Path

import yaml


def structural(node):
    """A schema in the dialect that API servers take, which is the one that convert.py began with."""
    if isinstance(node, list):
        return [structural(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == ["integer", "string"]:
        return {"x-kubernetes-int-or-string": True}
    schema = {key: structural(value) for key, value in node.items() if key not in ("additionalProperties", "pattern")}
    if isinstance(node.get("additionalProperties"), dict):
        schema["additionalProperties"] = structural(node["additionalProperties"])
    if isinstance(schema.get("type"), list):
        schema["type"] = schema["type"][0]
        schema["nullable"] = True
    if schema.get("type") == "object" and "properties" not in schema and "additionalProperties" not in schema:
        schema["x-kubernetes-preserve-unknown-fields"] = True
    return schema


def main():
    crds = []
    for path in sorted(Path(__file__).parent.glob("*.json")):
        group, version, kind = path.stem.split("_")
        schema = json.loads(path.read_text())
        if "definitions" in schema:
            # Written by hand, with references, which API servers don't follow.
            schema = {"type": "object", "properties": {"spec": {"type": "object"}}}
        plural = kind.lower() + "s"
        # Implied, and refused where it is said.
        schema["properties"].pop("metadata", None)
        crds.append({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
                "versions": [{"name": version, "served": True, "storage": True,
                              "schema": {"openAPIV3Schema": structural(schema)}}],
            },
        })
    print(yaml.safe_dump_all(crds))


main()
