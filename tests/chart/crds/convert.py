#!/usr/bin/env python3
"""Makes the closed JSON schemas in this folder of CustomResourceDefinitions: convert.py CRD.yaml...

An API server drops fields that a CRD doesn't know, without a word; here they are faults. Descriptions are left out.
"""

import json
import sys
from pathlib import Path

import yaml


def closed(node):
    """A CRD's schema as JSON Schema, with no keys but those that it names."""
    if isinstance(node, list):
        return [closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    schema = {}
    for key, value in node.items():
        if key == "properties":
            schema[key] = {name: closed(of) for name, of in value.items()}
        elif key == "enum":
            schema[key] = value
        elif key == "pattern":
            # Go takes flags anywhere in an expression, Python at its beginning only.
            schema[key] = "(?i)" + value.replace("(?i)", "") if "(?i)" in value else value
        elif key not in ("description", "default", "example", "format") and not key.startswith("x-kubernetes-"):
            schema[key] = closed(value)
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if "properties" in schema and not is_open:
        schema["additionalProperties"] = False
    if schema.pop("nullable", False) and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    return schema


def main():
    for path in sys.argv[1:]:
        for crd in filter(None, yaml.safe_load_all(Path(path).read_text())):
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                name = f"{spec['group']}_{version['name']}_{spec['names']['kind']}.json"
                target = Path(__file__).parent / name
                target.write_text(json.dumps(schema, separators=(",", ":")) + "\n")
                print(target)


main()
