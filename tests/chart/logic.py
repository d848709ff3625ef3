"""What the chart decides: one function a decision, its docstring is the check's name."""

import inspect
import re

import yaml

import schemas
from chart import FILE, file_at, kinds, one, options, pod_specs, worker, workload
from restricted import faults

FETCH = {"source": "fetch", "fetch": {"from": "http", "http": {"url": "https://models.example/m/"}, "files": FILE}}


def env(container):
    return {entry["name"]: entry for entry in container.get("env", [])}


def kafka_files(objects):
    """(Secret, key) of each file of Kafka's, by its path."""
    return {
        f"/etc/capvec/kafka/{item['path']}": (source["secret"]["name"], item["key"])
        for source in volumes(objects)["kafka"]["projected"]["sources"] for item in source["secret"]["items"]
    }


def secret(entry):
    """(Secret, key) of a variable."""
    reference = entry["valueFrom"]["secretKeyRef"]
    return reference["name"], reference["key"]


def property_secret(objects, name):
    """(Secret, key) of a property whose value is in a file."""
    return kafka_files(objects)[options(objects)["kafka"]["librdkafka_files"][name]]


def mounts(container):
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def volumes(objects):
    return {volume["name"]: volume for volume in workload(objects)["spec"]["template"]["spec"]["volumes"]}


# === Workload ===


def deployment_by_default(chart):
    """a Deployment by default, without a Service, a policy or custom resources"""
    objects = chart.render()
    assert kinds(objects) == {"Deployment", "ServiceAccount", "PodDisruptionBudget", "Pod"}, kinds(objects)
    assert workload(objects)["spec"]["replicas"] == 1


def stateful_for_static_membership(chart):
    """static membership makes a StatefulSet whose pods' names are the members'"""
    objects = chart.render({"kafka": {"staticMembership": True}, "replicas": 3})
    stateful = one(objects, "StatefulSet")
    assert "Deployment" not in kinds(objects)
    assert stateful["spec"]["serviceName"] == one(objects, "Service")["metadata"]["name"]
    assert one(objects, "Service")["spec"]["clusterIP"] == "None"
    given = env(worker(objects))
    assert given["CAPVEC__KAFKA__LIBRDKAFKA__GROUP_INSTANCE_ID"]["value"] == "$(POD_NAMESPACE).$(POD_NAME)"
    names = list(given)
    # Kubernetes puts in only what stands before.
    assert names.index("POD_NAME") < names.index("CAPVEC__KAFKA__LIBRDKAFKA__GROUP_INSTANCE_ID"), names


def stateful_for_exactly_once(chart):
    """exactly-once makes a StatefulSet whose pods' names are in the transactional ids, behind the group"""
    values = {"config": {"delivery": {"mode": "exactly-once"}, "kafka": {"group": "g"}}}
    for static in [False, True]:
        objects = chart.render({**values, "kafka": {"staticMembership": static}})
        assert one(objects, "StatefulSet")
        assert options(objects)["delivery"] == {"mode": "exactly-once"}
        given = env(worker(objects))
        assert given["CAPVEC__DELIVERY__TRANSACTIONAL_ID"]["value"] == "g.$(POD_NAMESPACE).$(POD_NAME)"
        assert ("CAPVEC__KAFKA__LIBRDKAFKA__GROUP_INSTANCE_ID" in given) == static
        names = list(given)
        assert max(map(names.index, ["POD_NAMESPACE", "POD_NAME"])) < names.index("CAPVEC__DELIVERY__TRANSACTIONAL_ID")
    # Without a StatefulSet names don't last, and the id isn't set.
    assert "CAPVEC__DELIVERY__TRANSACTIONAL_ID" not in env(worker(chart.render({"kafka": {"staticMembership": True}})))


def grace_period(chart):
    """the grace period is the drain, rounded up, and 15 s"""
    for drain, seconds in [("30s", 45), ("1500ms", 17), ("1m 30s", 105), ("44s", 59), ("100ms", 16)]:
        session = {"librdkafka": {"session.timeout.ms": 120000}}
        objects = chart.render({"config": {"delivery": {"drain_timeout": drain}, "kafka": session}})
        got = workload(objects)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert got == seconds, f"{drain}: {got}"
    objects = chart.render({"terminationGracePeriodSeconds": 300})
    assert workload(objects)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 300


def rollout(chart):
    """a rollout adds a pod first, and with GPUs takes one away first"""

    def strategy(values):
        rolling = workload(chart.render(values))["spec"]["strategy"]["rollingUpdate"]
        return rolling["maxSurge"], rolling["maxUnavailable"]

    assert strategy({}) == (1, 0)
    assert strategy({"gpu": {"enabled": True}}) == (0, 1)
    assert strategy({"gpu": {"enabled": True}, "rollout": {"maxUnavailable": "50%"}}) == (0, "50%")
    assert strategy({"rollout": {"maxSurge": "25%"}}) == ("25%", 0)
    for nothing in ["", None]:
        given = strategy({"rollout": {"maxSurge": nothing, "maxUnavailable": nothing}})
        assert given == (1, 0), f"{nothing!r} gave {given}"
    # A StatefulSet uses neither, so there is nothing to refuse.
    assert one(chart.render({"kafka": {"staticMembership": True}, "rollout": {"maxSurge": 0}}), "StatefulSet")


def gpu(chart):
    """a GPU is a limit under the name that was given, and picks the image for CUDA"""
    for name in ["nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-1g.10gb"]:
        container = worker(chart.render({"gpu": {"enabled": True, "resourceName": name, "count": 2}}))
        assert container["resources"]["limits"][name] == 2
        assert container["resources"]["limits"]["memory"], "the other limits stay"
        assert container["image"].endswith("-cuda"), container["image"]
    assert not worker(chart.render())["image"].endswith("-cuda")
    assert "embed" not in options(chart.render()), "without a GPU the program's default holds"
    for values, device in [
        ({}, "cuda:0"),
        ({"count": 3}, "cuda:0,cuda:1,cuda:2"),
        ({"resourceName": "nvidia.com/mig-1g.10gb", "count": 2}, "cuda:0"),
    ]:
        embed = options(chart.render({"gpu": {"enabled": True} | values}))["embed"]
        assert embed["device"] == device, embed
    named = {"gpu": {"enabled": True}, "config": {"embed": {"device": "auto", "sessions": 1}}}
    assert options(chart.render(named))["embed"] == {"device": "auto", "sessions": 1}
    tagged = {"gpu": {"enabled": True}, "image": {"repository": "r/c", "tag": "7"}}
    assert worker(chart.render(tagged))["image"] == "r/c:7"
    digest = "sha256:" + "a" * 64
    assert worker(chart.render({"image": {"digest": digest}}))["image"] == f"capvec@{digest}"


def probes(chart):
    """probes ask /livez and /readyz at the port of admin.listen, and nothing else"""
    container = worker(chart.render({"config": {"admin": {"listen": "[::]:9999"}}}))
    assert container["ports"] == [{"name": "admin", "containerPort": 9999, "protocol": "TCP"}]
    paths = {probe: container[probe]["httpGet"] for probe in ["startupProbe", "readinessProbe", "livenessProbe"]}
    assert paths == {
        "startupProbe": {"path": "/livez", "port": "admin"},
        "readinessProbe": {"path": "/readyz", "port": "admin"},
        "livenessProbe": {"path": "/livez", "port": "admin"},
    }
    assert worker(chart.render())["ports"][0]["containerPort"] == 9180


def replaced_by_configuration(chart):
    """a changed option replaces the pods; a changed number of them, or of a label of the chart, doesn't"""

    def template(values, **more):
        return workload(chart.render(values, **more))["spec"]["template"]

    before = template({})
    assert template({"config": {"batch": {"wait_max": "1ms"}}}) != before
    assert template({"replicas": 9}) == before
    assert template({"monitoring": {"podMonitor": {"enabled": True}}}) == before


def configuration_of_old_pods(chart):
    """a pod that restarts in the middle of a rollout starts with the configuration that it was made with, not the new one"""
    paths = ["/etc/capvec/config/capvec.toml", "/etc/capvec-fetch/SHA256SUMS"]
    for common in [{}, {"kafka": {"staticMembership": True}}, {"config": {"delivery": {"mode": "exactly-once"}}}]:
        versions = []
        for number in "12":
            files = [{"name": "manifest.json", "sha256": number * 64}]
            over = {"batch": {"wait_max": f"{number}ms"}, **common.get("config", {})}
            model = {"source": "fetch", "fetch": {**FETCH["fetch"], "files": files}}
            versions.append(chart.render({**common, "config": over, "model": model}))
        old, new = versions
        for pod in [workload(old)["spec"]["template"], one(old, "Pod")]:
            for path in paths:
                made_with, has_now = file_at(pod, path, old), file_at(pod, path, new)
                assert made_with == has_now, f"{path} was {made_with!r}, and a container that restarts has {has_now!r}"
        for path in paths:
            text = [file_at(workload(objects)["spec"]["template"], path, objects) for objects in versions]
            assert text[0] != text[1], f"{path} doesn't follow its values"


def mounts_of_folders(chart):
    """mounts are whole folders, none in a read-only one; what the annotations hold is far below what Kubernetes lets them"""
    tls = {"tls": {"enabled": True, "ca": {"existingSecret": "ca"}}}
    for model in [{}, FETCH, {"source": "pvc", "pvc": {"claimName": "c"}}]:
        objects = chart.render({"kafka": tls, "model": model})
        for name, spec in pod_specs(objects):
            for container in spec["containers"] + spec.get("initContainers", []):
                found = mounts(container)
                assert not any("subPath" in mount for mount in found.values()), f"{name}: {found}"
                inside = [(path, other) for path in found for other, mount in found.items()
                          if path.startswith(other + "/") and mount.get("readOnly")]
                assert not inside, f"{name}: {inside}"
                assert container["securityContext"]["readOnlyRootFilesystem"], name
        for pod in [workload(objects)["spec"]["template"], one(objects, "Pod")]:
            # 256 KiB for all of them; a fetch's script is the most of it.
            size = sum(len(key.encode()) + len(text.encode()) for key, text in pod["metadata"]["annotations"].items())
            assert size < 16 << 10, f"the annotations have {size} bytes"


def spread(chart):
    """workers are spread, selected by their own labels, and by none of a rollout's others"""
    (constraint,) = workload(chart.render())["spec"]["template"]["spec"]["topologySpreadConstraints"]
    selector = workload(chart.render())["spec"]["selector"]["matchLabels"]
    assert constraint["labelSelector"]["matchLabels"] == selector
    assert constraint["matchLabelKeys"] == ["pod-template-hash"]
    stateful = workload(chart.render({"kafka": {"staticMembership": True}}))
    assert "matchLabelKeys" not in stateful["spec"]["template"]["spec"]["topologySpreadConstraints"][0]
    assert "topologySpreadConstraints" not in workload(chart.render({"topologySpread": []}))["spec"]["template"]["spec"]


def check_pod_is_no_worker(chart):
    """the pod of `helm test` runs `capvec check` with the worker's own configuration, and nothing selects it"""
    objects = chart.render({"kafka": {"sasl": {"mechanism": "PLAIN", "username": "u", "existingSecret": "s"}}, "model": FETCH,
                            "extraEnv": [{"name": "X", "value": "given"}]})
    pod = one(objects, "Pod")
    (container,) = pod["spec"]["containers"]
    assert container["args"][0] == "check" and worker(objects)["args"] == ["run", *container["args"][1:]]
    assert container["env"] == worker(objects)["env"]
    assert container["volumeMounts"] == worker(objects)["volumeMounts"]
    assert pod["spec"]["volumes"] == workload(objects)["spec"]["template"]["spec"]["volumes"]
    assert pod["spec"]["initContainers"] == workload(objects)["spec"]["template"]["spec"]["initContainers"]
    selector = workload(objects)["spec"]["selector"]["matchLabels"]
    assert not selector.items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["restartPolicy"] == "Never"
    # The workers may hold every GPU.
    gpu = chart.render({"gpu": {"enabled": True}, "config": {"embed": {"device_bytes_max": 9, "device": "cuda:0"}}})
    (container,) = one(gpu, "Pod")["spec"]["containers"]
    assert "nvidia.com/gpu" not in container["resources"]["limits"], container["resources"]
    assert container["image"] == worker(gpu)["image"]
    assert container["args"] == [
        "check", "--config", "/etc/capvec/config/capvec.toml", "--set", "embed.device=cpu", "--set", "embed.device_bytes_max=0"]
    # What a cluster wants of its pods, it wants of this one.
    given = {"podLabels": {"sidecar": "no", **selector}, "podAnnotations": {"inject": "false", "helm.sh/hook": "none"}}
    metadata = one(chart.render(given), "Pod")["metadata"]
    assert metadata["labels"]["sidecar"] == "no" and metadata["labels"]["app.kubernetes.io/name"] == "capvec-check"
    assert metadata["annotations"]["inject"] == "false" and metadata["annotations"]["helm.sh/hook"] == "test"


# === Configuration and Kafka ===


def numbers_stay_whole(chart):
    """large numbers and booleans reach the program as what they are"""
    got = options(chart.render({"config": {
        "delivery": {"in_flight_bytes_max": 1099511627776},
        "output": {"include_caption": True, "format": "json"},
        "kafka": {"librdkafka": {"linger.ms": 20, "queued.min.messages": 1000000, "log.connection.close": False}},
    }}))
    assert got["delivery"]["in_flight_bytes_max"] == 1099511627776
    assert got["output"]["include_caption"] is True
    assert got["kafka"]["librdkafka"] == {
        "linger.ms": 20, "queued.min.messages": 1000000, "log.connection.close": False}


def text_is_quoted(chart):
    """quotes, backslashes and other scripts survive the way into the TOML"""
    text = 'a "b" \\ <é> \U0001f98c'
    got = options(chart.render({"config": {"kafka": {"client_id": text}}}))
    assert got["kafka"]["client_id"] == text, got


def plain_kafka(chart):
    """without tls and sasl nothing of them is said"""
    objects = chart.render()
    assert "librdkafka" not in options(objects)["kafka"]
    assert "env" not in worker(objects)
    assert set(volumes(objects)) == {"config", "tmp"}


def sasl(chart):
    """SASL: the password, and the user where it isn't given, come from the Secret's keys"""
    values = {"kafka": {"sasl": {"mechanism": "SCRAM-SHA-256", "existingSecret": "s", "usernameKey": "u", "passwordKey": "p"}}}
    objects = chart.render(values)
    assert property_secret(objects, "sasl.password") == ("s", "p")
    assert property_secret(objects, "sasl.username") == ("s", "u")
    assert mounts(worker(objects))["/etc/capvec/kafka"]["readOnly"] is True
    assert options(objects)["kafka"]["librdkafka"] == {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-256"}
    values["kafka"]["sasl"]["username"] = "me"
    values["kafka"]["tls"] = {"enabled": True}
    objects = chart.render(values)
    assert set(options(objects)["kafka"]["librdkafka_files"]) == {"sasl.password"}
    assert options(objects)["kafka"]["librdkafka"] == {
        "security.protocol": "SASL_SSL", "sasl.mechanism": "SCRAM-SHA-256", "sasl.username": "me"}


def mtls(chart):
    """mTLS: certificates are files from the Secrets' keys, where the options say"""
    objects = chart.render({"kafka": {"tls": {
        "enabled": True,
        "ca": {"existingSecret": "ca", "key": "root.pem"},
        "client": {"existingSecret": "me", "certKey": "c", "privateKeyKey": "k", "passwordKey": "pw"},
    }}})
    librdkafka = options(objects)["kafka"]["librdkafka"]
    files = kafka_files(objects)
    assert librdkafka["security.protocol"] == "SSL"
    assert files[librdkafka["ssl.ca.location"]] == ("ca", "root.pem")
    assert files[librdkafka["ssl.certificate.location"]] == ("me", "c")
    assert files[librdkafka["ssl.key.location"]] == ("me", "k")
    assert mounts(worker(objects))["/etc/capvec/kafka"]["readOnly"] is True
    assert property_secret(objects, "ssl.key.password") == ("me", "pw")


def strimzi(chart):
    """Strimzi's preset: brokers, CA and the KafkaUser's Secret by their names there"""
    nothing = {"config": {"kafka": {"brokers": ""}}}
    tls = chart.render({**nothing, "kafka": {"strimzi": {"cluster": "events", "user": "me"}}})
    # With the namespace, for KEDA's operator, which is in another, looks it up too; Strimzi's certificates have this name.
    brokers = "events-kafka-bootstrap.somewhere.svc:9093"
    assert options(tls)["kafka"]["brokers"] == brokers
    scaled = chart.render({
        **nothing, "kafka": {"strimzi": {"cluster": "events"}}, "autoscaling": {"kind": "keda", "partitions": 2}})
    assert one(scaled, "ScaledObject")["spec"]["triggers"][0]["metadata"]["bootstrapServers"] == brokers
    sources = volumes(tls)["kafka"]["projected"]["sources"]
    got = [(s["secret"]["name"], s["secret"]["items"][0]["key"]) for s in sources]
    assert got == [("events-cluster-ca-cert", "ca.crt"), ("me", "user.crt"), ("me", "user.key")], got
    assert options(tls)["kafka"]["librdkafka"]["security.protocol"] == "SSL"
    scram = chart.render({**nothing, "kafka": {"strimzi": {"cluster": "events", "user": "me", "authentication": "scram-sha-512"}}})
    assert options(scram)["kafka"]["librdkafka"]["security.protocol"] == "SASL_SSL"
    assert options(scram)["kafka"]["librdkafka"]["sasl.username"] == "me"
    assert property_secret(scram, "sasl.password") == ("me", "password")
    own = chart.render({"kafka": {"strimzi": {"cluster": "events"}}})
    assert options(own)["kafka"]["brokers"] == "kafka:9092", "brokers that are given stay"


def free_map_wins(chart):
    """the free map goes over what the chart derives"""
    objects = chart.render({
        "kafka": {"tls": {"enabled": True}},
        "config": {"kafka": {"librdkafka": {"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}}},
    })
    assert options(objects)["kafka"]["librdkafka"] == {
        "security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}
    # Under whatever name the program takes a property by: none is said twice.
    objects = chart.render({
        "kafka": {"tls": {"enabled": True}, "sasl": {"mechanism": "PLAIN", "existingSecret": "s"}},
        "config": {"kafka": {"librdkafka": {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanisms": "SCRAM-SHA-256"}}},
    })
    assert options(objects)["kafka"]["librdkafka"] == {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM-SHA-256"}


def called_like_secrets(chart):
    """properties that are called like secrets and are none may be in the free map"""
    properties = {
        "security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER", "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.token.endpoint.url": "https://login.example/token", "ssl.ca.pem": "a certificate",
    }
    objects = chart.render({"config": {"kafka": {"librdkafka": properties}}})
    assert options(objects)["kafka"]["librdkafka"] == properties


# === Model ===


def model_sources(chart):
    """each source of the model mounts it where model.package says, and has it verified"""
    cases = {
        "image": ({"source": "image", "image": {"path": "/opt/m"}}, "/opt/m", {"config", "tmp"}),
        "pvc": ({"source": "pvc", "pvc": {"claimName": "c"}}, "/models/package", {"config", "tmp", "models", "package"}),
        "pvc with a path": ({"source": "pvc", "pvc": {"claimName": "c", "path": "a/b"}}, "/models/package/a/b",
                            {"config", "tmp", "models", "package"}),
        "imageVolume": ({"source": "imageVolume", "imageVolume": {"reference": "r/m:1"}}, "/models/package",
                        {"config", "tmp", "models", "package"}),
        "fetch": (FETCH, "/models/package", {"config", "tmp", "models"}),
    }
    for name, (values, package, wanted) in cases.items():
        objects = chart.render({"model": values})
        assert options(objects)["model"] == {"package": package, "verify": True}, name
        assert set(volumes(objects)) == wanted, f"{name}: {set(volumes(objects))}"
        where = mounts(worker(objects))
        assert name == "image" or any(package.startswith(path) for path in where), name
        has_init = "initContainers" in workload(objects)["spec"]["template"]["spec"]
        assert has_init == (name == "fetch"), name
    assert options(chart.render({"model": {"verify": False}}))["model"]["verify"] is False


def fetch_urls(chart):
    """each origin of a fetch gives the address that its service has"""
    cases = [
        ({"from": "http", "http": {"url": "https://models.example/m/"}}, "https://models.example/m"),
        ({"from": "s3", "s3": {"bucket": "b", "prefix": "/a/b/", "region": "eu-west-1"}},
         "https://b.s3.eu-west-1.amazonaws.com/a/b"),
        # A certificate of *.s3.… holds for one label.
        ({"from": "s3", "s3": {"bucket": "models.example", "prefix": "a", "region": "eu-west-1"}},
         "https://s3.eu-west-1.amazonaws.com/models.example/a"),
        ({"from": "s3", "s3": {"bucket": "b", "endpoint": "http://minio:9000/"}}, "http://minio:9000/b"),
        ({"from": "huggingface", "huggingface": {"repository": "o/n", "revision": "abc", "path": "fp32"}},
         "https://huggingface.co/o/n/resolve/abc/fp32"),
    ]
    for fetch, url in cases:
        objects = chart.render({"model": {"source": "fetch", "fetch": {"files": FILE, **fetch}}})
        (init,) = workload(objects)["spec"]["template"]["spec"]["initContainers"]
        assert env(init)["FETCH_URL"]["value"] == url, env(init)["FETCH_URL"]
        template = workload(objects)["spec"]["template"]
        sums = file_at(template, env(init)["FETCH_SUMS"]["value"], objects)
        assert sums == f"{'1' * 64}  manifest.json\n", sums
        script = file_at(template, init["command"][1], objects)
        assert script == (chart.path / "files/fetch-model.sh").read_text()


def pull_policies(chart):
    """the worker's pull policy is the worker's alone; the fetch's image has one of its own, or Kubernetes' by the tag"""
    for given, policy in [({}, None), ({"pullPolicy": "Never"}, "Never")]:
        objects = chart.render({
            "image": {"pullPolicy": "Always"}, "model": {"source": "fetch", "fetch": {**FETCH["fetch"], **given}}})
        (init,) = workload(objects)["spec"]["template"]["spec"]["initContainers"]
        assert (worker(objects)["imagePullPolicy"], init.get("imagePullPolicy")) == ("Always", policy)


def fetch_secrets(chart):
    """a fetch's credentials come from its Secret: variables, and a file for a registry"""
    wanted = {
        "http": {"FETCH_AUTHORIZATION": "authorization"},
        "huggingface": {"FETCH_TOKEN": "token"},
        "s3": {"FETCH_ACCESS_KEY_ID": "access-key-id", "FETCH_SECRET_ACCESS_KEY": "secret-access-key"},
    }
    common = {"files": FILE, "existingSecret": "s", "http": {"url": "https://m.example"}, "s3": {"bucket": "b"},
              "huggingface": {"repository": "o/n"}, "oci": {"reference": "r/m:1"}}
    for origin, variables in wanted.items():
        objects = chart.render({"model": {"source": "fetch", "fetch": {**common, "from": origin}}})
        (init,) = workload(objects)["spec"]["template"]["spec"]["initContainers"]
        got = {name: secret(entry) for name, entry in env(init).items() if "valueFrom" in entry}
        assert got == {name: ("s", key) for name, key in variables.items()}, got
    objects = chart.render({"model": {"source": "fetch", "fetch": {**common, "from": "oci"}}})
    (init,) = workload(objects)["spec"]["template"]["spec"]["initContainers"]
    folder = env(init)["DOCKER_CONFIG"]["value"]
    assert mounts(init)[folder]["name"] == "registry"
    assert volumes(objects)["registry"]["secret"]["items"] == [{"key": ".dockerconfigjson", "path": "config.json"}]


# === Scaling ===


def keda(chart):
    """KEDA: at most as many workers as partitions, slow to scale down, with a fallback, and no fixed replicas"""
    values = {"autoscaling": {"kind": "keda", "partitions": 12}}
    objects = chart.render(values)
    spec = one(objects, "ScaledObject")["spec"]
    assert "replicas" not in workload(objects)["spec"]
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (1, 12)
    assert spec["fallback"] == {"failureThreshold": 4, "replicas": 1, "behavior": "currentReplicasIfHigher"}
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["limitToPartitionsWithLag"] == "true"
    assert trigger["metadata"]["version"] == "2.8.0"
    assert trigger["metadata"]["consumerGroup"] == options(objects)["kafka"]["group"]
    assert trigger["metadata"]["topic"] == options(objects)["input"]["topic"]
    assert trigger["metadata"]["bootstrapServers"] == options(objects)["kafka"]["brokers"]
    assert all(isinstance(value, str) for value in trigger["metadata"].values()), "KEDA takes text only"
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["stabilizationWindowSeconds"] >= 300 and down["policies"][0]["value"] == 1
    assert "authenticationRef" not in trigger and "TriggerAuthentication" not in kinds(objects)
    values["autoscaling"]["maxReplicas"] = 5
    assert one(chart.render(values), "ScaledObject")["spec"]["maxReplicaCount"] == 5
    for version, said in [("3.9.0", {"version": "3.9.0"}), ("", {})]:
        values["autoscaling"]["keda"] = {"version": version}
        (trigger,) = one(chart.render(values), "ScaledObject")["spec"]["triggers"]
        assert {key: value for key, value in trigger["metadata"].items() if key == "version"} == said, trigger["metadata"]


def keda_authentication(chart):
    """KEDA reads Kafka with the worker's own secrets, or with a TriggerAuthentication that is named"""
    values = {
        "autoscaling": {"kind": "keda", "partitions": 2},
        "kafka": {
            "tls": {"enabled": True, "ca": {"existingSecret": "ca"}, "client": {"existingSecret": "me"}},
            "sasl": {"mechanism": "SCRAM-SHA-512", "username": "u", "existingSecret": "s"},
        },
    }
    objects = chart.render(values)
    authentication = one(objects, "TriggerAuthentication")
    secrets = {r["parameter"]: (r["name"], r["key"]) for r in authentication["spec"]["secretTargetRef"]}
    assert secrets == {"password": ("s", "password"), "ca": ("ca", "ca.crt"), "cert": ("me", "tls.crt"), "key": ("me", "tls.key")}
    (username,) = authentication["spec"]["configMapTargetRef"]
    users = one(objects, "ConfigMap")
    assert (users["metadata"]["name"], users["data"][username["key"]]) == (username["name"], "u")
    (trigger,) = one(objects, "ScaledObject")["spec"]["triggers"]
    assert trigger["metadata"]["sasl"] == "scram_sha512" and trigger["metadata"]["tls"] == "enable"
    assert trigger["authenticationRef"]["name"] == authentication["metadata"]["name"]
    values["autoscaling"]["keda"] = {"triggerAuthentication": "mine"}
    objects = chart.render(values)
    assert "TriggerAuthentication" not in kinds(objects)
    assert one(objects, "ScaledObject")["spec"]["triggers"][0]["authenticationRef"] == {"name": "mine"}
    # A login that the chart doesn't know is the named one's to say, its mechanism included.
    values["kafka"] = {}
    values["config"] = {"kafka": {"librdkafka": {"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}}}
    (trigger,) = one(chart.render(values), "ScaledObject")["spec"]["triggers"]
    assert trigger["authenticationRef"] == {"name": "mine"} and "sasl" not in trigger["metadata"]
    # A protocol's name is the same in any case, and under any name of the property.
    for given, tls in [
        ({"security.protocol": "sasl_ssl"}, True), ({"security.protocol": "Ssl"}, True), ({"security_protocol": "SSL"}, True),
        ({"security.protocol": "sasl_plaintext"}, False),
    ]:
        (trigger,) = one(chart.render({**values, "config": {"kafka": {"librdkafka": given}}}), "ScaledObject")["spec"]["triggers"]
        assert (trigger["metadata"].get("tls") == "enable") == tls, given


def hpa(chart):
    """an HPA scales on the workers' own lag, up to the partitions, or on what a selector selects"""
    # The lag of all partitions: there is one by partition only where it is wanted.
    objects = chart.render({
        "autoscaling": {"kind": "hpa", "partitions": 4, "hpa": {"averageValue": 500}},
        "config": {"metrics": {"per_partition": False}}})
    spec = one(objects, "HorizontalPodAutoscaler")["spec"]
    assert spec["maxReplicas"] == 4 and "replicas" not in workload(objects)["spec"]
    assert spec["scaleTargetRef"]["name"] == workload(objects)["metadata"]["name"]
    # Or KEDA would refuse the ScaledObject of an upgrade, which Helm makes before it removes this.
    annotations = one(objects, "HorizontalPodAutoscaler")["metadata"].get("annotations", {})
    assert annotations.get("validations.keda.sh/hpa-ownership") == "false", annotations
    assert spec["metrics"] == [{"type": "Pods", "pods": {
        "metric": {"name": "capvec_lag_messages"}, "target": {"type": "AverageValue", "averageValue": "500"}}}]
    given = {"type": "External", "metric": "capvec_consumer_lag_messages", "selector": {"job": "a"}}
    objects = chart.render({"autoscaling": {"kind": "hpa", "partitions": 4, "hpa": given}})
    assert one(objects, "HorizontalPodAutoscaler")["spec"]["metrics"] == [{"type": "External", "external": {
        "metric": {"name": "capvec_consumer_lag_messages", "selector": {"matchLabels": {"job": "a"}}},
        "target": {"type": "AverageValue", "averageValue": "1000"}}}]


def own_variables(chart):
    """variables that are nobody else's concern stay as they are, those of Secrets among them"""
    given = [
        {"name": "CAPVEC__BATCH__WAIT_MAX", "value": "1ms"}, {"name": "CAPVEC__KAFKA__LIBRDKAFKA__SASL_PASSWORD", "value": "x"},
        {"name": "CAPVEC__KAFKA__LIBRDKAFKA__SASL_OAUTHBEARER_CLIENT_SECRET", "value": "x"}, {"name": "HTTPS_PROXY", "value": "x"}]
    assert worker(chart.render({"extraEnv": given}))["env"] == given


# === Around it ===


def network_policy(chart):
    """the network policy lets in scrapes, and out DNS, the brokers' ports and the model's, and nothing else"""
    values = {"networkPolicy": {"enabled": True}, "config": {"kafka": {"brokers": "a:9093, b:9094,c"}}}
    spec = one(chart.render(values), "NetworkPolicy")["spec"]
    assert sorted(spec["policyTypes"]) == ["Egress", "Ingress"]
    assert [port["port"] for rule in spec["ingress"] for port in rule["ports"]] == ["admin"]
    assert [port["port"] for rule in spec["egress"] for port in rule["ports"]] == [53, 53, 9093, 9094, 9092]
    for fetch, port in [
        ({"from": "http", "http": {"url": "https://m.example/a:1/"}}, 443),
        ({"from": "http", "http": {"url": "http://m.example"}}, 80),
        ({"from": "http", "http": {"url": "https://m.example:8443/m"}}, 8443),
        ({"from": "http", "http": {"url": "http://[2001:db8::1]/m"}}, 80),
        ({"from": "s3", "s3": {"bucket": "b"}}, 443),
        ({"from": "s3", "s3": {"bucket": "b", "endpoint": "http://minio:9000"}}, 9000),
        ({"from": "huggingface", "huggingface": {"repository": "o/n"}}, 443),
        ({"from": "oci", "oci": {"reference": "r.example/m:1@sha256:2"}}, 443),
        ({"from": "oci", "oci": {"reference": "r.example:5000/m:1"}}, 5000),
        ({"from": "oci", "oci": {"reference": "r.example/m:1", "plainHttp": True}}, 80),
    ]:
        model = {"source": "fetch", "fetch": {"files": FILE, **fetch}}
        spec = one(chart.render({**values, "model": model}), "NetworkPolicy")["spec"]
        assert [port["port"] for port in spec["egress"][-1]["ports"]] == [port], (fetch, spec["egress"][-1])
    named = {"enabled": True, "fetch": {"ports": [3128]}, "dns": {"ports": [53, 5353]}}
    spec = one(chart.render({"networkPolicy": named, "model": FETCH}), "NetworkPolicy")["spec"]
    assert spec["egress"][-1]["ports"] == [{"port": 3128, "protocol": "TCP"}]
    assert spec["egress"][0]["ports"] == [
        {"port": port, "protocol": protocol} for port in [53, 5353] for protocol in ["UDP", "TCP"]]
    objects = chart.render(values)
    (expression,) = spec["podSelector"]["matchExpressions"]
    pods = [workload(objects)["spec"]["template"]["metadata"], one(objects, "Pod")["metadata"]]
    assert [pod["labels"]["app.kubernetes.io/name"] for pod in pods] == expression["values"]


def account(chart):
    """the account is the chart's or the one that is named, and its token is never mounted"""
    objects = chart.render()
    assert one(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    objects = chart.render({"serviceAccount": {"create": False, "name": "theirs"}})
    assert "ServiceAccount" not in kinds(objects)
    assert all(spec["serviceAccountName"] == "theirs" for _, spec in pod_specs(objects))


def platform_ids(chart):
    """ids that are null are left to the platform, and the rest of \"restricted\" stays"""
    objects = chart.render({"podSecurity": {"runAsUser": None, "runAsGroup": None, "fsGroup": None}})
    for _, spec in pod_specs(objects):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(spec["securityContext"]), spec["securityContext"]
        assert list(faults(spec)) == []


def absence_where_none_is_due(chart):
    """where KEDA may stop all workers no alert says that there are none"""
    rules = {"prometheusRule": {"enabled": True}}
    whole = [one(chart.render({"monitoring": rules}), "PrometheusRule")["spec"]]
    for least in [1, 0]:
        keda = {"kind": "keda", "minReplicas": least, "partitions": 3}
        objects = chart.render({"monitoring": rules, "autoscaling": keda})
        whole.append(one(objects, "PrometheusRule")["spec"])
    names = [[rule.get("alert", rule.get("record")) for group in spec["groups"] for rule in group["rules"]] for spec in whole]
    assert whole[0] == whole[1] and "CapvecAbsent" in names[1]
    assert names[2] == [name for name in names[1] if name != "CapvecAbsent"], names[2]


def alerts_left_out(chart):
    """alerts that are named are left out, and the rest stays"""
    def rules(**over):
        rule = one(chart.render({"monitoring": {"prometheusRule": {"enabled": True, **over}}}), "PrometheusRule")
        return [rule for group in rule["spec"]["groups"] for rule in group["rules"]]

    left = rules(leaveOut=["CapvecLagGrows", "CapvecAbsent"])
    assert left == [rule for rule in rules() if rule.get("alert") not in ["CapvecLagGrows", "CapvecAbsent"]]
    assert len(left) == len(rules()) - 2


def absence_of_one_job(chart):
    """the alerts of absence watch the release's own job where the chart says what it is called"""

    def rendered(monitor):
        objects = chart.render({"monitoring": {"podMonitor": {"enabled": monitor}, "prometheusRule": {"enabled": True}}})
        groups = one(objects, "PrometheusRule")["spec"]["groups"]
        return {rule.get("alert", rule.get("record")): rule for group in groups for rule in group["rules"]}

    alone, watched = rendered(False), rendered(True)
    assert alone["CapvecAbsent"]["expr"] == "absent(capvec_build_info)"
    # What the operator calls the job of a PodMonitor, namespace/name.
    assert watched["CapvecAbsent"].pop("expr") == 'absent(capvec_build_info{job="somewhere/release-capvec"})'
    lines = [rules["CapvecWorkerDown"].pop("expr").splitlines() for rules in [alone, watched]]
    assert [first for first, _ in lines] == ["up == 0", 'up{job="somewhere/release-capvec"} == 0'], lines
    assert lines[0][1] == lines[1][1]
    alone["CapvecAbsent"].pop("expr")
    assert watched == alone


def name_like_a_number(chart):
    """a release may be called like a number or a truth value"""
    for name in ["2024", "on"]:
        for item in chart.render({"networkPolicy": {"enabled": True}}, release=name):
            labels = item["metadata"].get("labels", {})
            assert all(isinstance(value, str) for value in labels.values()), (item["kind"], labels)
            selected = item["spec"].get("podSelector", {}).get("matchLabels", {}) if "spec" in item else {}
            assert all(isinstance(value, str) for value in selected.values()), (item["kind"], selected)
    everything = {
        "fullnameOverride": "1234", "nameOverride": "1234", "networkPolicy": {"enabled": True},
        "autoscaling": {"kind": "keda", "partitions": 2}, "kafka": {"tls": {"enabled": True, "ca": {"existingSecret": "ca"}}},
        "monitoring": {part: {"enabled": True} for part in ["podMonitor", "prometheusRule", "dashboard"]},
    }
    objects = chart.render(everything) + chart.render({**everything, "autoscaling": {"kind": "hpa", "partitions": 2}})
    for item in objects:
        wrong = list(schemas.faults(item, schemas.versions()[-1]))
        assert not wrong, wrong
        assert item["metadata"]["name"].startswith("1234"), item["metadata"]["name"]


def monitoring(chart):
    """monitor, rules and dashboard: the monitor selects the pods, the others are the repository's files"""
    on = {"enabled": True, "labels": {"team": "x"}}
    alone = chart.render({"monitoring": {"prometheusRule": on}})
    objects = chart.render({"monitoring": {"podMonitor": on, "prometheusRule": on, "dashboard": on}})
    monitor = one(objects, "PodMonitor")
    pod = workload(objects)["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod.items()
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == worker(objects)["ports"][0]["name"]
    # Prometheus' own timeout fits itself to a shorter interval; one that is written wouldn't, and nothing would be scraped.
    assert "scrapeTimeout" not in monitor["spec"]["podMetricsEndpoints"][0]
    for given in [{"interval": "5s"}, {"interval": "1m", "scrapeTimeout": "20s"}]:
        (endpoint,) = one(
            chart.render({"monitoring": {"podMonitor": {**on, **given}}}), "PodMonitor")["spec"]["podMetricsEndpoints"]
        assert given.items() <= endpoint.items() and set(endpoint) == {"port", "path", *given}, endpoint
    # The operator then calls the job by the monitor's namespace and name, which no two releases have in common.
    assert "jobLabel" not in monitor["spec"]
    rules = yaml.safe_load((chart.path / "files/alerts.yaml").read_text())
    assert one(alone, "PrometheusRule")["spec"] == rules
    dashboard = next(i for i in objects if i["kind"] == "ConfigMap" and "capvec.json" in i["data"])
    assert dashboard["data"]["capvec.json"].strip() == (chart.path / "files/capvec.json").read_text().strip()
    for item in (monitor, one(objects, "PrometheusRule"), dashboard):
        assert item["metadata"]["labels"]["team"] == "x"


def extra_objects(chart):
    """extraObjects come as maps or as text, with templates in them"""
    objects = chart.render({"extraObjects": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "{{ .Release.Name }}-a"}},
        "apiVersion: v1\nkind: Secret\nmetadata: {name: '{{ include \"capvec.fullname\" . }}-b'}\n",
    ]})
    names = [item["metadata"]["name"] for item in objects if item["kind"] == "Secret"]
    assert names == ["release-a", "release-capvec-b"], names


def names(chart):
    """names follow the release, stay unique and short, and everything carries the usual labels"""
    long = "r" * 53
    objects = chart.render({"commonLabels": {"team": "x"}}, release=long)
    for item in objects:
        assert len(item["metadata"]["name"]) <= 63, item["metadata"]["name"]
        assert item["metadata"]["labels"]["team"] == "x", item["kind"]
    assert workload(chart.render(release="capvec"))["metadata"]["name"] == "capvec"
    assert workload(chart.render({"fullnameOverride": "mine"}))["metadata"]["name"] == "mine"
    # A Service's name has no dots.
    assert workload(chart.render(release="capvec.v2"))["metadata"]["name"] == "capvec-v2"


def labels_that_meet(chart):
    """labels that are given twice come once: those that select win, then an object's own, then the common ones"""
    taken = {"app.kubernetes.io/name": "mine", "app.kubernetes.io/instance": "mine"}
    on = {"enabled": True, "labels": {"team": "theirs", "app.kubernetes.io/version": "9", **taken}}
    objects = chart.render({
        "commonLabels": {"team": "x", "tier": "x", "helm.sh/chart": "x", **taken},
        "podLabels": {"team": "theirs", **taken},
        "podAnnotations": {"kubectl.kubernetes.io/default-container": "other"},
        "kafka": {"staticMembership": True},
        "monitoring": {"podMonitor": on, "prometheusRule": on, "dashboard": on},
    })
    for item in objects:
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "release" and labels["app.kubernetes.io/name"] != "mine", labels
    template = workload(objects)["spec"]["template"]["metadata"]
    selector = workload(objects)["spec"]["selector"]["matchLabels"]
    assert template["labels"] == {**selector, "team": "theirs", "tier": "x", "helm.sh/chart": "x"}, template["labels"]
    assert template["annotations"]["kubectl.kubernetes.io/default-container"] == "other"
    assert workload(objects)["metadata"]["labels"]["helm.sh/chart"] == "x"
    assert chart.render({"commonLabels": None, "podLabels": None, "podAnnotations": None})
    for item in [one(objects, "PodMonitor"), one(objects, "PrometheusRule")]:
        labels = item["metadata"]["labels"]
        assert (labels["team"], labels["tier"], labels["app.kubernetes.io/version"]) == ("theirs", "x", "9"), labels


def notes(chart):
    """the notes say what was installed, and how to look at it"""
    text = chart.render({"kafka": {"staticMembership": True}}, notes=True)
    assert "rollout status statefulset/release-capvec" in text
    assert re.search(r"gets 45 s to stop", text), text
    assert "stops at the first bad message" in text
    assert "dead-letter" not in chart.render({"config": {"reject": {"topic": "r"}}}, notes=True)
    assert "stops at the first bad message" in chart.render({"config": {"reject": None}}, notes=True)


# Every function of this file that takes a chart; a list by hand forgets some.
ALL = [
    check for check in list(globals().values())
    if inspect.isfunction(check) and check.__module__ == __name__ and list(inspect.signature(check).parameters) == ["chart"]
]
