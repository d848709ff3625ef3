"""Prints the pods that a release would make, as objects of their own: pods.py CHART NAMESPACE VALUES."""

import subprocess
import sys

import yaml


def main():
    chart, namespace, values = sys.argv[1:]
    text = subprocess.run(
        ["helm", "template", "capvec", chart, "--namespace", namespace, "--values", values, "--kube-version", "1.37.0"],
        capture_output=True, text=True, check=True,
    ).stdout
    pods = []
    for item in filter(None, yaml.safe_load_all(text)):
        if item["kind"] in ("Deployment", "StatefulSet"):
            template = item["spec"]["template"]
            template["metadata"]["name"] = f"{item['metadata']['name']}-0"
            pods.append({"apiVersion": "v1", "kind": "Pod", **template})
        elif item["kind"] == "Pod":
            pods.append(item)
    print(yaml.safe_dump_all(pods))


main()
