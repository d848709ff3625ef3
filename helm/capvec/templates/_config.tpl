{{/* The worker's configuration as TOML. */}}

{{/* A value; YAML's numbers may have become floats, which the program refuses for whole ones. */}}
{{- define "capvec.tomlValue" -}}
{{- if kindIs "string" . -}}
{{- toJson . -}}
{{- else if kindIs "bool" . -}}
{{- . -}}
{{- else if eq (float64 .) (float64 (int64 .)) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{- define "capvec.toml" -}}
{{- $config := deepCopy .Values.config -}}
{{- $kafka := include "capvec.kafka" . | fromYaml -}}
{{- $_ := set $config.kafka "brokers" $kafka.brokers -}}
{{- $_ := set $config "model" (dict "package" (include "capvec.package" .) "verify" .Values.model.verify) -}}
{{- $properties := include "capvec.librdkafka" . | fromYaml -}}
{{- range $section, $options := $config }}
[{{ $section }}]
{{- range $key, $value := $options }}
{{- if not (kindIs "map" $value) }}
{{ $key }} = {{ include "capvec.tomlValue" $value }}
{{- end }}
{{- end }}
{{- range $key, $map := $options }}
{{- if and (kindIs "map" $map) (ne $key "librdkafka") }}

[{{ $section }}.{{ $key }}]
{{- range $name, $value := $map }}
{{ toJson $name }} = {{ include "capvec.tomlValue" $value }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (eq $section "kafka") $properties }}

[kafka.librdkafka]
{{- range $key, $value := $properties }}
{{ toJson $key }} = {{ include "capvec.tomlValue" $value }}
{{- end }}
{{- end }}
{{ end -}}
{{- end -}}

{{/* All keys of the ConfigMap. */}}
{{- define "capvec.configData" -}}
capvec.toml: |
  # Written by the chart from its values.
  {{- include "capvec.toml" . | nindent 2 }}
{{- $kafka := include "capvec.kafka" . | fromYaml }}
{{- if and (eq .Values.autoscaling.kind "keda") $kafka.mechanism $kafka.username }}
# For KEDA, which reads it from here.
kafka-username: {{ $kafka.username | quote }}
{{- end }}
{{- if eq .Values.model.source "fetch" }}
SHA256SUMS: |
  {{- range .Values.model.fetch.files }}
  {{ .sha256 }}  {{ .name }}
  {{- end }}
fetch-model.sh: |
  {{- .Files.Get "files/fetch-model.sh" | nindent 2 }}
{{- end }}
{{- end -}}
