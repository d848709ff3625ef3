{{/*
What the schema can't say, or can't say well: relations between values. All faults are told at once, each with what to
do. templates/validate.yaml, which is always rendered, includes it.
*/}}
{{- define "capvec.validate" -}}
{{- $faults := list -}}
{{- $kafka := include "capvec.kafka" . | fromYaml -}}

{{- if and (hasKey .Values "enabled") (not .Values.enabled) -}}
{{- $faults = append $faults "enabled is false, and the chart is installed all the same: only a chart around this one heeds it, with `condition: capvec.enabled` in its dependencies" -}}
{{- end -}}
{{- if and (include "capvec.stateful" .) (regexMatch "^[0-9]" (include "capvec.fullname" .)) -}}
{{- $faults = append $faults (printf "the objects' name %q begins with a digit, as a StatefulSet's Service may not: set fullnameOverride" (include "capvec.fullname" .)) -}}
{{- end -}}
{{- if not $kafka.brokers -}}
{{- $faults = append $faults "config.kafka.brokers is required: the brokers' addresses, host:port (or kafka.strimzi.cluster)" -}}
{{- end -}}
{{- range $path, $value := dict "config.kafka.group" .Values.config.kafka.group "config.input.topic" .Values.config.input.topic "config.output.topic" .Values.config.output.topic -}}
{{- if not $value }}{{ $faults = append $faults (printf "%s is required" $path) }}{{ end -}}
{{- end -}}
{{- range $pair := list (list "output" "input") (list "reject" "input") (list "reject" "output") -}}
{{- $topic := dig (index $pair 0) "topic" "" $.Values.config -}}
{{- if and $topic (eq $topic (dig (index $pair 1) "topic" "" $.Values.config)) -}}
{{- $faults = append $faults (printf "config.%s.topic is %q, the same topic as config.%s.topic" (index $pair 0) $topic (index $pair 1)) -}}
{{- end -}}
{{- end -}}
{{- if hasKey .Values.config "model" -}}
{{- $faults = append $faults "config.model is what the chart writes from `model`: set model.source and what belongs to it, and model.verify" -}}
{{- end -}}
{{- if dig "delivery" "transactional_id" "" .Values.config -}}
{{- $faults = append $faults "config.delivery.transactional_id would be the same for every worker, and each would end the others' transactions: leave it out, and the name is made of the pod's, which lasts" -}}
{{- end -}}

{{- $grace := int64 .Values.terminationGracePeriodSeconds -}}
{{- $least := include "capvec.gracePeriodMin" . | int64 -}}
{{- if and $grace (lt $grace $least) -}}
{{- $faults = append $faults (printf "terminationGracePeriodSeconds is %d, and a worker may need %d to stop: delivery.drain_timeout, and 15 to leave the group. Leave it at 0, or shorten config.delivery.drain_timeout" $grace $least) -}}
{{- end -}}

{{- /* Durations that must be in order, which the program refuses too: told here, before a pod ends by it. */}}
{{- $outage := dig "kafka" "delivery_timeout" "10m" .Values.config -}}
{{- $stall := dig "admin" "stall_timeout" "15m" .Values.config -}}
{{- if ge (include "capvec.milliseconds" $outage | int64) (include "capvec.milliseconds" $stall | int64) -}}
{{- $faults = append $faults (printf "config.kafka.delivery_timeout is %s, not shorter than the %s of config.admin.stall_timeout: an outage of the brokers that the workers would sit out would restart them" $outage $stall) -}}
{{- end -}}
{{- $drain := dig "delivery" "drain_timeout" "30s" .Values.config -}}
{{- $session := get (include "capvec.freeMap" . | fromYaml) "session.timeout.ms" | default 45000 -}}
{{- if ge (include "capvec.milliseconds" $drain | int64) (int64 $session) -}}
{{- $faults = append $faults (printf "config.delivery.drain_timeout is %s, not shorter than the group's session timeout of %d ms: shorten it, or set config.kafka.librdkafka.\"session.timeout.ms\"" $drain (int64 $session)) -}}
{{- end -}}
{{- $interval := dig "delivery" "commit_interval" "1s" .Values.config -}}
{{- $timeout := dig "delivery" "transaction_timeout" "45s" .Values.config -}}
{{- if and (eq (include "capvec.deliveryMode" .) "exactly-once") (lt (include "capvec.milliseconds" $timeout | int64) (include "capvec.milliseconds" $interval | int64 | mul 2)) -}}
{{- $faults = append $faults (printf "config.delivery.transaction_timeout is %s, less than twice the %s of config.delivery.commit_interval: the brokers could abort a transaction before it is committed" $timeout $interval) -}}
{{- end -}}

{{- range .Values.extraEnv -}}
{{- /* The program takes variables in any case, a dot for two underscores, and for a property's dots as many as one likes. */}}
{{- $name := upper .name | replace "." "__" -}}
{{- if regexMatch "^CAPVEC__KAFKA__LIBRDKAFKA(_FILES)?__" $name -}}
{{- $name = printf "LIBRDKAFKA %s" (regexReplaceAll "_+" (regexReplaceAll "^CAPVEC__KAFKA__LIBRDKAFKA(_FILES)?__" $name "") "_") -}}
{{- end -}}
{{- if has $name (list "CAPVEC__DELIVERY__DRAIN_TIMEOUT" "CAPVEC__ADMIN__LISTEN" "CAPVEC__MODEL__PACKAGE" "CAPVEC__DELIVERY__MODE" "CAPVEC__KAFKA__BROKERS" "CAPVEC__KAFKA__GROUP" "CAPVEC__INPUT__TOPIC" "LIBRDKAFKA SECURITY_PROTOCOL" "LIBRDKAFKA SASL_MECHANISM" "LIBRDKAFKA SASL_MECHANISMS") -}}
{{- $faults = append $faults (printf "extraEnv has %s, on which other parts of the chart depend; set it in `config`, `kafka` or `model` (what a Secret alone has may come by extraEnvFrom, which isn't looked into, and those parts don't know it then)" .name) -}}
{{- end -}}
{{- if has $name (list "CAPVEC__DELIVERY__TRANSACTIONAL_ID" "LIBRDKAFKA GROUP_INSTANCE_ID") -}}
{{- $faults = append $faults (printf "extraEnv has %s, which the chart makes of each pod's name: leave it out, and set config.delivery.mode or kafka.staticMembership" .name) -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^(0\\.0\\.0\\.0|\\[::\\]):[0-9]+$" (dig "admin" "listen" "0.0.0.0:9180" .Values.config)) -}}
{{- $faults = append $faults "config.admin.listen has to be 0.0.0.0:PORT or [::]:PORT, or neither the kubelet nor Prometheus gets an answer" -}}
{{- end -}}

{{- /* GPUs may come otherwise: as a limit of another name, or all of a node's by its runtime. */}}
{{- $device := dig "embed" "device" "" .Values.config -}}
{{- $extended := keys (dig "limits" dict .Values.resources | default dict) | join " " | contains "/" -}}
{{- if and (regexMatch "^(cuda|tensorrt)" $device) (not .Values.gpu.enabled) (not $extended) (not .Values.runtimeClassName) -}}
{{- $faults = append $faults (printf "config.embed.device is %q, and the pods ask for no GPU: set gpu.enabled" $device) -}}
{{- end -}}
{{- if and .Values.gpu.enabled (eq $device "cpu") -}}
{{- $faults = append $faults "config.embed.device is \"cpu\" with gpu.enabled: each worker would hold a GPU and not use it. Leave config.embed.device out, or gpu.enabled" -}}
{{- end -}}

{{- $surge := include "capvec.maxSurge" . -}}
{{- $unavailable := include "capvec.maxUnavailable" . -}}
{{- if and .Values.gpu.enabled (not (regexMatch "^0+%?$" $surge)) -}}
{{- $faults = append $faults (printf "rollout.maxSurge is %s with gpu.enabled: another pod would wait for ever for the GPU that the old one holds. Leave it empty" $surge) -}}
{{- end -}}
{{- if and (not (include "capvec.stateful" .)) (regexMatch "^0+%?$" $surge) (regexMatch "^0+%?$" $unavailable) -}}
{{- $faults = append $faults (printf "rollout.maxSurge is %s and rollout.maxUnavailable %s, their defaults counted in, so that no rollout could begin" $surge $unavailable) -}}
{{- end -}}

{{- range $key, $_ := include "capvec.freeMap" . | fromYaml -}}
{{- /* As the program tells them on its command line: an address or a path is called like a secret and is none. */}}
{{- $isSecret := regexMatch "password|passphrase|secret|pem|token|jaas|oauthbearer\\.config" $key -}}
{{- $isPublic := regexMatch "\\.(url|location|file)$|^ssl\\.(ca|certificate)\\.pem$" $key -}}
{{- if and $isSecret (not $isPublic) -}}
{{- $faults = append $faults (printf "config.kafka.librdkafka has %q, and the configuration is no place for a secret, as whoever sees the pods sees it: use kafka.sasl or kafka.tls, or the variable CAPVEC__KAFKA__LIBRDKAFKA__%s from a Secret in extraEnv" $key (upper $key | replace "." "_")) -}}
{{- end -}}
{{- if eq $key "group.instance.id" -}}
{{- $faults = append $faults "config.kafka.librdkafka has group.instance.id, the same for every worker: set kafka.staticMembership instead" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.kafka.sasl.mechanism (not .Values.kafka.sasl.existingSecret) -}}
{{- $faults = append $faults "kafka.sasl.existingSecret is required with kafka.sasl.mechanism: the Secret with the password" -}}
{{- end -}}
{{- if and .Values.kafka.sasl.existingSecret (not .Values.kafka.sasl.mechanism) -}}
{{- $faults = append $faults "kafka.sasl.mechanism is required with kafka.sasl.existingSecret: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512" -}}
{{- end -}}
{{- if and (or .Values.kafka.tls.ca.existingSecret .Values.kafka.tls.client.existingSecret) (not .Values.kafka.tls.enabled) (not .Values.kafka.strimzi.cluster) -}}
{{- $faults = append $faults "kafka.tls has Secrets and isn't enabled: set kafka.tls.enabled" -}}
{{- end -}}
{{- if and .Values.kafka.strimzi.user (not .Values.kafka.strimzi.cluster) -}}
{{- $faults = append $faults "kafka.strimzi.user needs kafka.strimzi.cluster, whose CA signed the brokers' certificates" -}}
{{- end -}}

{{- with .Values.model -}}
{{- if and (eq .source "pvc") (not .pvc.claimName) -}}
{{- $faults = append $faults "model.pvc.claimName is required with model.source \"pvc\"" -}}
{{- end -}}
{{- if and (eq .source "imageVolume") (not .imageVolume.reference) -}}
{{- $faults = append $faults "model.imageVolume.reference is required with model.source \"imageVolume\"" -}}
{{- end -}}
{{- if and (eq .source "imageVolume") (semverCompare "<1.31.0-0" $.Capabilities.KubeVersion.Version) -}}
{{- $faults = append $faults (printf "model.source \"imageVolume\" needs Kubernetes 1.31 or later with the feature gate ImageVolume, and this is %s; use \"pvc\" or \"fetch\"" $.Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- if eq .source "fetch" -}}
{{- if not .fetch.files -}}
{{- $faults = append $faults "model.fetch.files is required with model.source \"fetch\": the package's files, each {name, sha256}; `sha256sum *` in its folder prints them" -}}
{{- else -}}
{{- $names := list -}}
{{- range .fetch.files }}{{ $names = append $names .name }}{{ end -}}
{{- if not (has "manifest.json" $names) }}{{ $faults = append $faults "model.fetch.files lacks manifest.json, which every package has" }}{{ end -}}
{{- end -}}
{{- $where := get (dict "http" (list "http.url" .fetch.http.url) "s3" (list "s3.bucket" .fetch.s3.bucket) "huggingface" (list "huggingface.repository" .fetch.huggingface.repository) "oci" (list "oci.reference" .fetch.oci.reference)) .fetch.from -}}
{{- if not (index $where 1) -}}
{{- $faults = append $faults (printf "model.fetch.%s is required with model.fetch.from %q" (index $where 0) .fetch.from) -}}
{{- end -}}
{{- /* The address is in the pod's spec and in the log. */}}
{{- if regexMatch "^[a-z]+://[^/]*@" (include "capvec.fetchUrl" $) -}}
{{- $address := get (dict "http" "http.url" "s3" "s3.endpoint" "huggingface" "huggingface.endpoint") .fetch.from -}}
{{- $faults = append $faults (printf "model.fetch.%s has a user in it, and whoever sees the pods or their log would see the password: leave it out, and name the Secret to authenticate with in model.fetch.existingSecret (with model.fetch.from \"http\", its key %q has the header's value, such as \"Basic \" and the Base64 of user:password)" $address .fetch.keys.authorization) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- with .Values.autoscaling -}}
{{- if ne .kind "none" -}}
{{- if $.Values.kafka.staticMembership -}}
{{- $faults = append $faults "kafka.staticMembership and autoscaling exclude each other: a static member that is scaled away keeps its partitions, unread, for a whole session timeout. Set kafka.staticMembership to false, or autoscaling.kind to none" -}}
{{- end -}}
{{- $partitions := int64 .partitions -}}
{{- $most := int64 .maxReplicas -}}
{{- if not $partitions -}}
{{- $faults = append $faults (printf "autoscaling.partitions is required with autoscaling.kind %q: how many the input topic has" .kind) -}}
{{- end -}}
{{- if gt $most $partitions -}}
{{- $faults = append $faults (printf "autoscaling.maxReplicas is %d, more than the %d partitions of the input (autoscaling.partitions): the others would idle" $most $partitions) -}}
{{- end -}}
{{- if and $partitions (gt (int64 .minReplicas) (default $partitions $most)) -}}
{{- $faults = append $faults (printf "autoscaling.minReplicas is %d, more than the most of %d" (int64 .minReplicas) (default $partitions $most)) -}}
{{- end -}}
{{- if and (eq .kind "hpa") (not (int64 .minReplicas)) -}}
{{- $faults = append $faults "autoscaling.minReplicas is 0, which a HorizontalPodAutoscaler can't do; use kind \"keda\"" -}}
{{- end -}}
{{- $perPartition := list "capvec_consumer_lag_messages" "capvec_consumer_lag_seconds" -}}
{{- if and (eq .kind "hpa") (has .hpa.metric $perPartition) (not (dig "metrics" "per_partition" true $.Values.config)) -}}
{{- $faults = append $faults (printf "autoscaling.hpa.metric is %s, which config.metrics.per_partition false takes away: use capvec_lag_messages, the lag of all of a worker's partitions" .hpa.metric) -}}
{{- end -}}
{{- if and (eq .kind "hpa") (eq .hpa.type "External") (not .hpa.selector) -}}
{{- $faults = append $faults "autoscaling.hpa.selector is empty with type \"External\", which would add up the workers of every release: select this one's series by their labels, or use type \"Pods\"" -}}
{{- end -}}
{{- range $key, $mechanism := include "capvec.librdkafka" $ | fromYaml -}}
{{- if and (eq $.Values.autoscaling.kind "keda") (not $.Values.autoscaling.keda.triggerAuthentication) (eq $key "sasl.mechanism") (ne $mechanism $kafka.mechanism) -}}
{{- $faults = append $faults (printf "the chart can't tell KEDA how to log in with %s, which config.kafka.librdkafka says: use kafka.sasl, or name a TriggerAuthentication of your own in autoscaling.keda.triggerAuthentication, with `sasl` and what belongs to it" $mechanism) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- with .Values.monitoring.podMonitor -}}
{{- if and .enabled .interval .scrapeTimeout (gt (include "capvec.milliseconds" .scrapeTimeout | int64) (include "capvec.milliseconds" .interval | int64)) -}}
{{- $faults = append $faults (printf "monitoring.podMonitor.scrapeTimeout is %s, longer than the interval of %s, so that the operator would leave the monitor out: make it shorter, or leave it empty" .scrapeTimeout .interval) -}}
{{- end -}}
{{- end -}}
{{- range .Values.monitoring.prometheusRule.leaveOut -}}
{{- if not (contains (printf "alert: %s\n" .) (include "capvec.file" (dict "root" $ "name" "alerts.yaml"))) -}}
{{- $faults = append $faults (printf "monitoring.prometheusRule.leaveOut has %q, and there is no alert of that name" .) -}}
{{- end -}}
{{- end -}}

{{- if $faults -}}
{{- fail (printf "\n\nthe values have %d fault%s:\n  - %s\n" (len $faults) (ternary "" "s" (eq (len $faults) 1)) (join "\n  - " $faults)) -}}
{{- end -}}
{{- end -}}
