"""Values that must be refused, each with a part of what has to be said."""

from chart import FILE

FETCH = {"source": "fetch", "fetch": {"from": "http", "http": {"url": "https://m.example"}, "files": FILE}}


def fetch(**over):
    return {"model": {"source": "fetch", "fetch": {**FETCH["fetch"], **over}}}


def scaled(kind="keda", **over):
    return {"autoscaling": {"kind": kind, "partitions": 6, **over}}


def free_map(**over):
    return {"config": {"kafka": {"librdkafka": over}}}


def properties(**over):
    return free_map(**{key.replace("_", "."): value for key, value in over.items()})


def variable(name):
    return {"extraEnv": [{"name": name, "value": "x"}]}


# (what is wrong, values over the least that is required, a part of the message)
BAD = [
    # The schema's words.
    ("a key that isn't known", {"replica": 2}, "additional properties 'replica' not allowed"),
    ("a key deep inside", {"kafka": {"tls": {"cert": "x"}}}, "at '/kafka/tls': additional properties 'cert' not allowed"),
    ("an option that the program doesn't have", {"config": {"batch": {"token_max": 9}}},
     "at '/config/batch': additional properties 'token_max' not allowed"),
    ("a pointer without its slash", {"config": {"input": {"pointer": "caption"}}}, "at '/config/input/pointer'"),
    ("batches of no captions", {"config": {"batch": {"captions_max": 0}}},
     "at '/config/batch/captions_max': minimum: got 0, want 1"),
    ("a share of more than all", {"config": {"reject": {"breaker_share": 3}}},
     "at '/config/reject/breaker_share': maximum: got 3, want 1"),
    ("an amount of memory that is none", {"resources": {"limits": {"memory": "lots"}}}, "at '/resources/limits/memory'"),
    ("a word that an option doesn't take", {"config": {"output": {"format": "avro"}}},
     "at '/config/output/format': value must be one of 'native', 'json'"),
    ("no section for the brokers", {"config": {"kafka": None}}, "at '/config': missing property 'kafka'"),
    ("no section for the input", {"config": {"input": None}}, "at '/config': missing property 'input'"),
    ("no section for the output", {"config": {"output": None}}, "at '/config': missing property 'output'"),
    ("no options at all", {"config": None}, "missing property 'config'"),
    ("a budget of nothing", {"podDisruptionBudget": {"maxUnavailable": ""}}, "at '/podDisruptionBudget/maxUnavailable'"),
    ("no port for DNS, which would be every port", {"networkPolicy": {"dns": {"ports": []}}}, "at '/networkPolicy/dns/ports'"),
    ("an interval without a unit", {"monitoring": {"podMonitor": {"interval": "15"}}}, "at '/monitoring/podMonitor/interval'"),
    ("text for a number", {"replicas": "two"}, "at '/replicas': got string, want integer"),
    ("a negative number", {"replicas": -1}, "at '/replicas': minimum: got -1, want 0"),
    ("a duration without a unit", {"config": {"delivery": {"drain_timeout": "30"}}}, "at '/config/delivery/drain_timeout'"),
    ("a source of the model that there isn't", {"model": {"source": "ftp"}},
     "at '/model/source': value must be one of 'image', 'pvc', 'fetch', 'imageVolume'"),
    ("a sum that isn't a SHA-256", fetch(files=[{"name": "manifest.json", "sha256": "abc"}]),
     "at '/model/fetch/files/0/sha256'"),
    ("a file without its sum", fetch(files=[{"name": "manifest.json"}]), "missing property 'sha256'"),
    ("a file's name with a path in it", fetch(files=[{"name": "../x", "sha256": "1" * 64}]),
     "at '/model/fetch/files/0/name'"),
    ("a SASL mechanism that librdkafka doesn't have", {"kafka": {"sasl": {"mechanism": "SCRAM"}}},
     "'PLAIN', 'SCRAM-SHA-256', 'SCRAM-SHA-512'"),
    ("the root user", {"podSecurity": {"runAsUser": 0}}, "at '/podSecurity/runAsUser': minimum: got 0, want 1"),
    ("a digest that isn't one", {"image": {"digest": "latest"}}, "at '/image/digest'"),
    ("a GPU's name without its vendor", {"gpu": {"enabled": True, "resourceName": "gpu"}}, "at '/gpu/resourceName'"),
    # null takes a default away; nulls.py has every value.
    ("no path in the image", {"model": {"image": {"path": None}}}, "at '/model/image': missing property 'path'"),
    ("no least number of workers", scaled(minReplicas=None), "at '/autoscaling': missing property 'minReplicas'"),
    # The chart's own.
    ("a switch that nobody heeds", {"enabled": False}, "with `condition: capvec.enabled`"),
    ("static membership with KEDA", {"kafka": {"staticMembership": True}, **scaled()},
     "kafka.staticMembership and autoscaling exclude each other"),
    ("static membership with an HPA", {"kafka": {"staticMembership": True}, **scaled("hpa")},
     "Set kafka.staticMembership to false, or autoscaling.kind to none"),
    ("two faults at once", {"kafka": {"staticMembership": True}, "terminationGracePeriodSeconds": 44, **scaled()},
     "the values have 2 faults"),
    ("an option that the chart writes itself", {"config": {"model": {"package": "/x"}}},
     "config.model is what the chart writes from `model`"),
    ("one name for all workers' transactions",
     {"config": {"delivery": {"mode": "exactly-once", "transactional_id": "x"}}},
     "config.delivery.transactional_id would be the same for every worker"),
    ("no brokers", {"config": {"kafka": {"brokers": ""}}}, "config.kafka.brokers is required"),
    ("no group", {"config": {"kafka": {"group": ""}}}, "config.kafka.group is required"),
    ("no input", {"config": {"input": {"topic": ""}}}, "config.input.topic is required"),
    ("no output", {"config": {"output": {"topic": ""}}}, "config.output.topic is required"),
    ("the output in the input", {"config": {"output": {"topic": "captions"}}},
     'config.output.topic is "captions", the same topic as config.input.topic'),
    ("dead letters in the input", {"config": {"reject": {"topic": "captions"}}},
     'config.reject.topic is "captions", the same topic as config.input.topic'),
    ("dead letters among vectors", {"config": {"reject": {"topic": "vectors"}}},
     'config.reject.topic is "vectors", the same topic as config.output.topic'),
    ("a GPU that no pod asks for", {"config": {"embed": {"device": "cuda:0"}}},
     'config.embed.device is "cuda:0", and the pods ask for no GPU: set gpu.enabled'),
    ("TensorRT without a GPU", {"config": {"embed": {"device": "tensorrt:0"}}}, "the pods ask for no GPU"),
    ("a GPU that isn't used", {"gpu": {"enabled": True}, "config": {"embed": {"device": "cpu"}}},
     'config.embed.device is "cpu" with gpu.enabled'),
    ("a grace period that is too short", {"terminationGracePeriodSeconds": 44},
     "terminationGracePeriodSeconds is 44, and a worker may need 45 to stop"),
    ("a grace period that is too short for a longer drain",
     {"terminationGracePeriodSeconds": 60, "config": {"delivery": {"drain_timeout": "1m"}}},
     "terminationGracePeriodSeconds is 60, and a worker may need 75 to stop"),
    ("an outage that would restart the workers", {"config": {"kafka": {"delivery_timeout": "15m"}}},
     "config.kafka.delivery_timeout is 15m, not shorter than the 15m of config.admin.stall_timeout"),
    ("a drain as long as a session", {"config": {"delivery": {"drain_timeout": "45s"}}},
     "config.delivery.drain_timeout is 45s, not shorter than the group's session timeout of 45000 ms"),
    ("a session as short as the drain", free_map(session_timeout_ms=30000), "session timeout of 30000 ms"),
    ("transactions that the brokers could abort", {"config": {"delivery": {"mode": "exactly-once", "commit_interval": "23s"}}},
     "config.delivery.transaction_timeout is 45s, less than twice the 23s of config.delivery.commit_interval"),
    ("the drain's time behind the chart's back",
     {"extraEnv": [{"name": "CAPVEC__DELIVERY__DRAIN_TIMEOUT", "value": "10m"}]}, "extraEnv has CAPVEC__DELIVERY__DRAIN_TIMEOUT"),
    ("one name for all workers' transactions, as a variable",
     {"extraEnv": [{"name": "CAPVEC__DELIVERY__TRANSACTIONAL_ID", "value": "x"}]}, "extraEnv has CAPVEC__DELIVERY__TRANSACTIONAL_ID"),
    ("one member's name for all, as a variable",
     {"extraEnv": [{"name": "CAPVEC__KAFKA__LIBRDKAFKA__GROUP_INSTANCE_ID", "value": "x"}]},
     "extraEnv has CAPVEC__KAFKA__LIBRDKAFKA__GROUP_INSTANCE_ID"),
    *((f"what the chart has to know of, as the variable {name}", variable(name), f"extraEnv has {name}, on which")
      for name in [
          "CAPVEC__KAFKA__BROKERS", "CAPVEC__KAFKA__GROUP", "CAPVEC__INPUT__TOPIC",
          "CAPVEC__KAFKA__LIBRDKAFKA__SECURITY_PROTOCOL", "CAPVEC__KAFKA__LIBRDKAFKA__SASL_MECHANISM",
          "CAPVEC__KAFKA__LIBRDKAFKA__SASL_MECHANISMS",
          # The program's ways to write the same.
          "capvec__kafka__brokers", "CAPVEC__KAFKA.BROKERS", "CAPVEC__KAFKA__LIBRDKAFKA__security.protocol",
          "CAPVEC__KAFKA__LIBRDKAFKA__SASL__MECHANISM", "CAPVEC__KAFKA__LIBRDKAFKA_FILES__SASL_MECHANISM",
          "capvec__delivery__mode"]),
    ("one member's name for all, as a variable in small letters", variable("capvec__kafka__librdkafka__group.instance.id"),
     "extraEnv has capvec__kafka__librdkafka__group.instance.id, which the chart makes"),
    ("an admin port for the pod alone", {"config": {"admin": {"listen": "127.0.0.1:9180"}}},
     "config.admin.listen has to be 0.0.0.0:PORT"),
    ("a surge of GPUs", {"gpu": {"enabled": True}, "rollout": {"maxSurge": 1}}, "rollout.maxSurge is 1 with gpu.enabled"),
    ("a scrape that takes longer than its interval",
     {"monitoring": {"podMonitor": {"enabled": True, "interval": "5500ms", "scrapeTimeout": "6s"}}},
     "monitoring.podMonitor.scrapeTimeout is 6s, longer than the interval of 5500ms"),
    ("an alert to leave out that there isn't", {"monitoring": {"prometheusRule": {"leaveOut": ["CapvecLag"]}}},
     'monitoring.prometheusRule.leaveOut has "CapvecLag", and there is no alert of that name'),
    ("a rollout that can't begin", {"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "no rollout could begin"),
    ("a rollout that can't begin, by the default of the other", {"rollout": {"maxSurge": 0}}, "no rollout could begin"),
    ("a rollout of GPUs that can't begin", {"gpu": {"enabled": True}, "rollout": {"maxUnavailable": "0%"}},
     "no rollout could begin"),
    ("a Service that would begin with a digit", {"kafka": {"staticMembership": True}, "fullnameOverride": "1st"},
     "begins with a digit"),
    ("a password in the configuration", properties(sasl_password="x"), "the configuration is no place for a secret"),
    ("a key in the configuration", properties(ssl_key_pem="x"), "CAPVEC__KAFKA__LIBRDKAFKA__SSL_KEY_PEM"),
    ("a passphrase in the configuration", properties(sasl_oauthbearer_assertion_private_key_passphrase="x"),
     "CAPVEC__KAFKA__LIBRDKAFKA__SASL_OAUTHBEARER_ASSERTION_PRIVATE_KEY_PASSPHRASE"),
    ("one member's name for all", properties(group_instance_id="x"), "set kafka.staticMembership instead"),
    ("one member's name for all, with underscores", free_map(group_instance_id="x"), "set kafka.staticMembership instead"),
    ("a token's source in the configuration, with underscores", free_map(sasl_oauthbearer_config="x"),
     "CAPVEC__KAFKA__LIBRDKAFKA__SASL_OAUTHBEARER_CONFIG"),
    ("SASL without a password", {"kafka": {"sasl": {"mechanism": "PLAIN"}}}, "kafka.sasl.existingSecret is required"),
    ("a password without SASL", {"kafka": {"sasl": {"existingSecret": "s"}}}, "kafka.sasl.mechanism is required"),
    ("certificates without TLS", {"kafka": {"tls": {"ca": {"existingSecret": "s"}}}}, "set kafka.tls.enabled"),
    ("a Strimzi user without a cluster", {"kafka": {"strimzi": {"user": "u"}}}, "kafka.strimzi.user needs kafka.strimzi.cluster"),
    ("a volume without a claim", {"model": {"source": "pvc"}}, "model.pvc.claimName is required"),
    ("an image volume without an image", {"model": {"source": "imageVolume"}}, "model.imageVolume.reference is required"),
    ("a fetch without sums", fetch(files=[]), "model.fetch.files is required"),
    ("a fetch without a manifest", fetch(files=[{"name": "model.onnx", "sha256": "1" * 64}]), "lacks manifest.json"),
    ("a fetch from nowhere", fetch(**{"from": "s3"}), "model.fetch.s3.bucket is required"),
    ("a fetch from null", fetch(http={"url": None}), "model.fetch.http.url is required"),
    ("a fetch from a bucket that is null", fetch(**{"from": "s3", "s3": {"bucket": None}}), "model.fetch.s3.bucket is required"),
    ("a fetch with a password in its address", fetch(http={"url": "https://me:secret@m.example/x"}),
     "model.fetch.http.url has a user in it"),
    ("a fetch from S3 with a password in its address",
     fetch(**{"from": "s3", "s3": {"bucket": "b", "endpoint": "http://me:secret@minio:9000"}}),
     "model.fetch.s3.endpoint has a user in it"),
    ("scaling without the number of partitions", {"autoscaling": {"kind": "keda"}}, "autoscaling.partitions is required"),
    ("more workers than partitions", scaled(maxReplicas=7), "autoscaling.maxReplicas is 7, more than the 6 partitions"),
    ("a least number above the most", scaled(minReplicas=7), "autoscaling.minReplicas is 7, more than the most of 6"),
    ("KEDA with a login that it isn't told",
     {**properties(sasl_mechanism="OAUTHBEARER"), **scaled()}, "can't tell KEDA how to log in with OAUTHBEARER"),
    ("KEDA with a login that it isn't told, by the property's other name",
     {**properties(sasl_mechanisms="PLAIN"), **scaled()}, "can't tell KEDA how to log in with PLAIN"),
    ("KEDA with another login than the worker's",
     {**properties(sasl_mechanism="OAUTHBEARER"), **scaled(), "kafka": {"sasl": {"mechanism": "PLAIN", "existingSecret": "s"}}},
     "can't tell KEDA how to log in with OAUTHBEARER"),
    # librdkafka's mechanisms are in capitals, and it refuses this one.
    ("KEDA with a login in small letters",
     {**free_map(sasl_mechanism="plain"), **scaled(), "kafka": {"sasl": {"mechanism": "PLAIN", "existingSecret": "s"}}},
     "can't tell KEDA how to log in with plain"),
    ("a Kafka version that KEDA doesn't understand", scaled(keda={"version": "4"}), "at '/autoscaling/keda/version'"),
    ("an HPA from nothing", scaled("hpa", minReplicas=0), "use kind \"keda\""),
    ("an HPA on everybody's lag", scaled("hpa", hpa={"type": "External"}), "autoscaling.hpa.selector is empty"),
    *((f"an HPA on {metric}, which no worker has",
       {**scaled("hpa", hpa={"metric": metric}), "config": {"metrics": {"per_partition": False}}},
       f"autoscaling.hpa.metric is {metric}, which config.metrics.per_partition false takes away")
      for metric in ["capvec_consumer_lag_messages", "capvec_consumer_lag_seconds"]),
]

BAD_ON_OLD = [
    ("an image volume on Kubernetes 1.30", {"model": {"source": "imageVolume", "imageVolume": {"reference": "r/m:1"}}},
     "needs Kubernetes 1.31 or later"),
]
