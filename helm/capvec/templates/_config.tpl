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

{{/* The GPUs that a worker with gpu.enabled names, so that it refuses to run without them. What isn't a whole GPU, a
slice or a share of one, CUDA shows as one device however many are asked for. */}}
{{- define "capvec.devices" -}}
{{- $names := list -}}
{{- range $ordinal := until (int .Values.gpu.count) -}}
{{- $names = append $names (printf "cuda:%d" $ordinal) -}}
{{- end -}}
{{- eq .Values.gpu.resourceName "nvidia.com/gpu" | ternary (join "," $names) "cuda:0" -}}
{{- end -}}

{{- define "capvec.toml" -}}
{{- $config := deepCopy .Values.config -}}
{{- $kafka := include "capvec.kafka" . | fromYaml -}}
{{- $_ := set $config.kafka "brokers" $kafka.brokers -}}
{{- $_ := set $config "model" (dict "package" (include "capvec.package" .) "verify" .Values.model.verify) -}}
{{- if .Values.gpu.enabled -}}
{{- $devices := dict "device" (include "capvec.devices" .) -}}
{{- $_ := set $config "embed" (merge (get $config "embed" | default dict) $devices) -}}
{{- end -}}
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
