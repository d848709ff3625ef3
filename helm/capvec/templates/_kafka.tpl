{{/* How the worker and KEDA reach Kafka: one view of `kafka`, its preset for Strimzi and `config.kafka`. */}}

{{/*
YAML of: brokers; protocol, mechanism, username; and where the secrets are: ca, certificate, privateKey, keyPassword,
usernameFrom, password, each {name, key} or absent. Strimzi's names come first, then what the values say.
The brokers' name has the namespace in it: KEDA's operator looks it up from another.
*/}}
{{- define "capvec.kafka" -}}
{{- $kafka := .Values.kafka -}}
{{- $strimzi := $kafka.strimzi -}}
{{- $tls := or $kafka.tls.enabled (not (empty $strimzi.cluster)) -}}
{{- $view := dict "brokers" .Values.config.kafka.brokers "mechanism" $kafka.sasl.mechanism "username" $kafka.sasl.username -}}
{{- if $strimzi.cluster -}}
{{- $_ := set $view "ca" (dict "name" (printf "%s-cluster-ca-cert" $strimzi.cluster) "key" "ca.crt") -}}
{{- if not $view.brokers }}{{ $_ := set $view "brokers" (printf "%s-kafka-bootstrap.%s.svc:9093" $strimzi.cluster .Release.Namespace) }}{{ end -}}
{{- if and $strimzi.user (eq $strimzi.authentication "tls") -}}
{{- $_ := set $view "certificate" (dict "name" $strimzi.user "key" "user.crt") -}}
{{- $_ := set $view "privateKey" (dict "name" $strimzi.user "key" "user.key") -}}
{{- else if $strimzi.user -}}
{{- $_ := set $view "mechanism" "SCRAM-SHA-512" -}}
{{- $_ := set $view "username" $strimzi.user -}}
{{- $_ := set $view "password" (dict "name" $strimzi.user "key" "password") -}}
{{- end -}}
{{- end -}}
{{- if $tls -}}
{{- with $kafka.tls.ca }}{{ if .existingSecret }}{{ $_ := set $view "ca" (dict "name" .existingSecret "key" .key) }}{{ end }}{{ end -}}
{{- with $kafka.tls.client -}}
{{- if .existingSecret -}}
{{- $_ := set $view "certificate" (dict "name" .existingSecret "key" .certKey) -}}
{{- $_ := set $view "privateKey" (dict "name" .existingSecret "key" .privateKeyKey) -}}
{{- if .passwordKey }}{{ $_ := set $view "keyPassword" (dict "name" .existingSecret "key" .passwordKey) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $kafka.sasl -}}
{{- if and .mechanism .existingSecret -}}
{{- $_ := set $view "password" (dict "name" .existingSecret "key" .passwordKey) -}}
{{- if not .username }}{{ $_ := set $view "usernameFrom" (dict "name" .existingSecret "key" .usernameKey) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- if $view.mechanism -}}
{{- $_ := set $view "protocol" (ternary "SASL_SSL" "SASL_PLAINTEXT" $tls) -}}
{{- else if $tls -}}
{{- $_ := set $view "protocol" "SSL" -}}
{{- end -}}
{{- toYaml $view -}}
{{- end -}}

{{/* The free map by librdkafka's names. The program takes underscores for dots, and has one name where librdkafka has two. */}}
{{- define "capvec.freeMap" -}}
{{- $given := dict -}}
{{- range $key, $value := .Values.config.kafka.librdkafka -}}
{{- $_ := set $given (replace "_" "." $key | replace "sasl.mechanisms" "sasl.mechanism") $value -}}
{{- end -}}
{{- toYaml $given -}}
{{- end -}}

{{/* The librdkafka properties that follow from it, and over them those of the free map. */}}
{{- define "capvec.librdkafka" -}}
{{- $kafka := include "capvec.kafka" . | fromYaml -}}
{{- $properties := dict -}}
{{- with $kafka.protocol }}{{ $_ := set $properties "security.protocol" . }}{{ end -}}
{{- with $kafka.mechanism }}{{ $_ := set $properties "sasl.mechanism" . }}{{ end -}}
{{- if $kafka.mechanism -}}
{{- with $kafka.username }}{{ $_ := set $properties "sasl.username" . }}{{ end -}}
{{- end -}}
{{- if $kafka.ca }}{{ $_ := set $properties "ssl.ca.location" "/etc/capvec/kafka/ca.crt" }}{{ end -}}
{{- if $kafka.certificate -}}
{{- $_ := set $properties "ssl.certificate.location" "/etc/capvec/kafka/client.crt" -}}
{{- $_ := set $properties "ssl.key.location" "/etc/capvec/kafka/client.key" -}}
{{- end -}}
{{- toYaml (merge (include "capvec.freeMap" . | fromYaml) $properties) -}}
{{- end -}}

{{/* Properties whose values are in files, and the files. Not variables: a worker that is cut off ends where a file has
changed, and so logs in with what a Secret has now. */}}
{{- define "capvec.librdkafkaFiles" -}}
{{- $kafka := include "capvec.kafka" . | fromYaml -}}
{{- $given := include "capvec.freeMap" . | fromYaml -}}
{{- $files := dict -}}
{{- range $property, $file := dict "sasl.username" (list "username" $kafka.usernameFrom) "sasl.password" (list "password" $kafka.password) "ssl.key.password" (list "client.key.password" $kafka.keyPassword) -}}
{{- if and (index $file 1) (not (hasKey $given $property)) }}{{ $_ := set $files $property (printf "/etc/capvec/kafka/%s" (index $file 0)) }}{{ end -}}
{{- end -}}
{{- toYaml (merge (dig "kafka" "librdkafka_files" dict .Values.config | deepCopy) $files) -}}
{{- end -}}

{{/* Variables with the pod's own name. */}}
{{- define "capvec.kafkaEnv" -}}
{{- if include "capvec.stateful" . }}
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef: {fieldPath: metadata.namespace}
{{- if .Values.kafka.staticMembership }}
- name: CAPVEC__KAFKA__LIBRDKAFKA__GROUP_INSTANCE_ID
  value: $(POD_NAMESPACE).$(POD_NAME)
{{- end }}
{{- if eq (include "capvec.deliveryMode" .) "exactly-once" }}
# The group stands first: an ACL for transactional ids with that prefix covers all workers.
- name: CAPVEC__DELIVERY__TRANSACTIONAL_ID
  value: {{ printf "%s.$(POD_NAMESPACE).$(POD_NAME)" .Values.config.kafka.group | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The projected volume with certificates and passwords; none where there are none. */}}
{{- define "capvec.kafkaVolume" -}}
{{- $kafka := include "capvec.kafka" . | fromYaml -}}
{{- if or $kafka.ca $kafka.certificate $kafka.password }}
- name: kafka
  projected:
    # Readable by fsGroup.
    defaultMode: 0440
    sources:
      {{- range $path, $from := dict "ca.crt" $kafka.ca "client.crt" $kafka.certificate "client.key" $kafka.privateKey "client.key.password" $kafka.keyPassword "username" $kafka.usernameFrom "password" $kafka.password }}
      {{- if $from }}
      - secret:
          name: {{ $from.name | quote }}
          items: [{key: {{ $from.key | quote }}, path: {{ $path }}}]
      {{- end }}
      {{- end }}
{{- end }}
{{- end -}}

{{/* Ports of the brokers' addresses, 9092 where one has none. */}}
{{- define "capvec.brokerPorts" -}}
{{- $kafka := include "capvec.kafka" . | fromYaml -}}
{{- $ports := list -}}
{{- range splitList "," $kafka.brokers -}}
{{- $ports = append $ports (regexFind ":[0-9]+$" (trim .) | trimPrefix ":" | default "9092" | int) -}}
{{- end -}}
{{- uniq $ports | toJson -}}
{{- end -}}
